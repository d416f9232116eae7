//! Wrong usage and configuration: always one clear line on standard error, nothing on standard output,
//! status 1; never a panic.

mod common;

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output, Stdio};

use common::{Scratch, guest, output, run};

/// Runs the program with a mistake and gives the line it says.
fn mistake(args: &[&str]) -> String {
    one_line(args, &output(args))
}

/// The line of a mistake.
fn one_line(args: &[&str], output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: something on standard output");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("xenolith: "), "{args:?}: {stderr}");
    for word in ["panicked", "backtrace", "os error", "Usage", "not built"] {
        assert!(!stderr.contains(word), "{args:?}: {stderr}");
    }
    stderr
}

#[track_caller]
fn names(args: &[&str], words: &[&str]) {
    let line = mistake(args);
    for word in words {
        assert!(line.contains(word), "{args:?} does not name {word}: {line}");
    }
}

#[test]
fn usage() {
    names(&[], &["xenolith run debian"]);
    names(&["fly"], &["'fly'"]);
    names(&["run"], &["--kernel"]);
    names(&["run", "--kernal", "x"], &["--kernal", "--kernel"]);
    names(&["run", "debian", "--frobnicate"], &["--frobnicate"]);
    names(&["run", "debian", "--kernel", "x"], &["--kernel"]);
    names(&["run", "--initrd", "x"], &["--kernel"]);
    names(&["run", "nosuchguest"], &["nosuchguest", "debian", "debian-i386"]);
    names(&["run", "--kernel", "x", "--engine", "jit"], &["jit", "interp"]);
    names(&["run", "--kernel", "x", "--kernel-unpack", "us"], &["us", "guest"]);
}

#[test]
fn fuzzing() {
    names(&["fuzz"], &["--insns"]);
    names(&["fuzz", "--insns", "--snippets", "no"], &["--snippets"]);
    names(&["fuzz", "--insns", "--seconds", "0"], &["--seconds"]);
    names(&["fuzz", "--insns", "--engine", "jit"], &["jit", "interp", "bt"]);
    names(&["fuzz", "--insns", "--cpu", "none"], &["--cpu", "none"]);
    names(&["fuzz", "--insns", "--no-host", "--engine", "bt"], &["--no-host", "--engine"]);
}

#[test]
fn snippets() {
    names(&["diff"], &["--kernel", "--snippet"]);
    names(&["diff", "--snippet", "zz"], &["--snippet", "zz", ".asm"]);
    names(&["diff", "--snippet", ""], &["--snippet"]);
    names(&["diff", "--snippet", "/nowhere/x.asm"], &["/nowhere/x.asm"]);
    names(&["diff", "--snippet", "90", "--mode", "8"], &["--mode", "64"]);
    names(&["diff", "--snippet", "90", "--kernel", "x"], &["--kernel", "--snippet"]);
    names(&["diff", "--snippet", "90", "--cpu", "none"], &["--cpu", "none"]);
    let scratch = Scratch::new("snippets");
    let wrong = scratch.file("wrong.asm", b"frobnicate rax\n");
    names(&["diff", "--snippet", wrong.to_str().expect("plain")], &["wrong.asm:1:", "instruction"]);
    let wrong = scratch.file("in.asm", b"; in: zax=1\nnop\n");
    names(&["diff", "--snippet", wrong.to_str().expect("plain")], &["in.asm", "zax"]);
}

#[test]
fn listings() {
    names(&["disasm"], &["--code", "--kernel"]);
    names(&["disasm", "--code", "zz"], &["--code", "zz", "hexadecimal"]);
    names(&["disasm", "--code", ""], &["--code", "no code"]);
    names(&["disasm", "--code", "/nowhere/x.bin"], &["/nowhere/x.bin"]);
    names(&["disasm", "--code", "90", "--mode", "8"], &["--mode", "64"]);
    names(&["disasm", "--code", "90", "--at", "1g"], &["--at", "hexadecimal"]);
    names(&["disasm", "--code", "90", "--cpu", "none"], &["none"]);
    names(&["disasm", "--code", "06"], &["0x1000", "64-bit"]);
    names(&["disasm", "--code", "90", "--kernel", "x"], &["--kernel", "--code"]);
    names(&["disasm", "nosuchguest"], &["nosuchguest", "debian"]);
    names(&["disasm", "--kernel", "/nowhere/k"], &["/nowhere/k"]);
}

#[test]
fn memory() {
    let scratch = Scratch::new("memory");
    let kernel = scratch.file("kernel", &guest(common::STOP));
    let kernel = kernel.to_str().expect("plain");
    for size in ["0", "1", "10T", "lots", "", "-5", "1.5G", "99999999999999999999G", "12Q"] {
        names(&["run", "--kernel", kernel, "-m", size], &["-m"]);
    }
}

#[test]
fn processors_and_time() {
    let scratch = Scratch::new("processors");
    let kernel = scratch.file("kernel", &guest(common::STOP));
    let kernel = kernel.to_str().expect("plain");
    for count in ["0", "10000", "-1", "two", "99999999999"] {
        names(&["run", "--kernel", kernel, "-c", count], &["-c"]);
    }
    for cpu in ["host,+frob", "host,frob", "pentium9", "", "host,,"] {
        names(&["run", "--kernel", kernel, "--cpu", cpu], &["--cpu"]);
    }
    for seconds in ["0", "-1", "soon", "nan", "inf", ""] {
        names(&["run", "--kernel", kernel, "--timeout", seconds], &["--timeout"]);
    }
}

#[test]
fn kernels() {
    let scratch = Scratch::new("kernels");
    let text =
        scratch.file("notes.txt", b"Dear kernel,\nthis is a letter.\n".repeat(1000).as_slice());
    let empty = scratch.file("empty", b"");
    let missing = scratch.path().join("missing");
    for path in [&text, &empty, &missing, &scratch.path().to_path_buf()] {
        let path = path.to_str().expect("plain");
        names(&["run", "--kernel", path], &["--kernel", path]);
    }
}

#[test]
fn truncated_kernels() {
    let scratch = Scratch::new("truncated");
    // A multiboot header that promises more than the file holds.
    let mut image = guest(common::STOP);
    image[20..24].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    let path = scratch.file("multiboot", &image);
    names(&["run", "--kernel", path.to_str().expect("plain")], &["--kernel"]);
    // The beginnings of an ELF file and of a bzImage.
    let elf = std::fs::read(env!("CARGO_BIN_EXE_xenolith")).expect("our own program");
    for len in [4, 40, 64, 200] {
        let path = scratch.file(&format!("elf{len}"), &elf[..len]);
        names(&["run", "--kernel", path.to_str().expect("plain")], &["--kernel"]);
    }
    let mut bzimage = vec![0; 0x400];
    bzimage[0x1f1] = 4;
    bzimage[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
    bzimage[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    for len in [0x205, 0x220, 0x400] {
        let path = scratch.file(&format!("bz{len}"), &bzimage[..len]);
        names(&["run", "--kernel", path.to_str().expect("plain")], &["--kernel"]);
    }
}

#[test]
fn initrds() {
    let scratch = Scratch::new("initrds");
    let kernel = scratch.file("kernel", &guest(common::STOP));
    let kernel = kernel.to_str().expect("plain");
    let large = scratch.path().join("large");
    let file = std::fs::File::create(&large).expect("scratch is writable");
    file.set_len(96 << 20).expect("sparse");
    for path in [large, scratch.path().join("missing"), scratch.path().to_path_buf()] {
        let path = path.to_str().expect("plain");
        names(&["run", "--kernel", kernel, "-m", "64M", "--initrd", path], &["--initrd", path]);
    }
}

#[test]
fn disks_and_serial() {
    let scratch = Scratch::new("disks");
    let kernel = scratch.file("kernel", &guest(common::STOP));
    let kernel = kernel.to_str().expect("plain");
    let missing = scratch.path().join("missing");
    let missing = missing.to_str().expect("plain");
    names(&["run", "--kernel", kernel, "--disk", missing], &["--disk", missing]);
    let folder = scratch.path().to_str().expect("plain");
    names(&["run", "--kernel", kernel, "--disk", folder], &["--disk", folder]);
    // Told before anything is fetched.
    names(&["run", "debian", "--cache", folder, "--disk", missing], &["--disk", missing]);
    names(
        &["run", "--kernel", kernel, "--serial", "file:/nonexistent/x"],
        &["--serial", "/nonexistent/x"],
    );
    names(&["run", "--kernel", kernel, "--serial", "file:"], &["--serial"]);
    names(&["run", "--kernel", kernel, "--serial", "pigeon"], &["--serial", "pigeon"]);
    names(
        &["run", "--kernel", kernel, "--serial2", "file:/nonexistent/x"],
        &["--serial2", "/nonexistent/x"],
    );
    names(&["run", "--kernel", kernel, "--serial2", "stdio"], &["--serial2", "stdio"]);
}

#[test]
fn more_disks_than_the_bus_has_slots() {
    let scratch = Scratch::new("slots");
    let kernel = scratch.file("kernel", &guest(common::STOP));
    let mut args = vec!["run".to_owned(), "--kernel".to_owned(), kernel.display().to_string()];
    for n in 0..32 {
        let disk = scratch.file(&format!("disk{n}"), &[0; 512]);
        args.extend(["--disk".to_owned(), disk.display().to_string()]);
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    names(&args, &["disks", "32 slots"]);
}

/// Files for drives, in a folder of their own.
struct Files(Scratch);

impl Files {
    fn name(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("plain").to_owned()
    }

    fn make(&self, name: &str, bytes: &[u8]) -> String {
        self.0.file(name, bytes);
        self.name(name)
    }

    fn image(&self, args: &[&str]) {
        let mut create = common::xenolith(&[&["image", "create", "-f", "qcow2"], args].concat());
        assert!(create.current_dir(self.0.path()).status().expect("the program starts").success());
    }

    /// What is in each file that is one, by name.
    fn content(&self) -> Vec<(OsString, Option<Vec<u8>>)> {
        let mut found: Vec<_> = fs::read_dir(self.0.path())
            .expect("there")
            .map(|entry| entry.expect("readable"))
            .map(|entry| {
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                (entry.file_name(), is_file.then(|| fs::read(entry.path()).ok()).flatten())
            })
            .collect();
        found.sort();
        found
    }
}

#[test]
fn files_in_drives() {
    let files = Files(Scratch::new("drives"));
    let pipe = files.name("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("coreutils").success());
    fs::create_dir(files.name("folder")).expect("scratch is writable");
    files.image(&["sound", "4M"]);
    let sound = fs::read(files.name("sound")).expect("made");
    let broken = |name: &str, at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        files.make(name, &bytes)
    };
    // Two images that build on each other, the one by another name; one that builds on nothing.
    files.image(&["first", "4M"]);
    files.image(&["-b", "first", "second"]);
    files.image(&["-b", "second", "third"]);
    fs::remove_file(files.name("first")).expect("made");
    files.image(&["gone", "4M"]);
    files.image(&["-b", "gone", "orphan"]);
    fs::remove_file(files.name("gone")).expect("made");
    symlink("third", files.name("first")).expect("scratch is writable");

    let kernel = files.make("kernel", &guest(common::STOP));
    let neither = "neither a file nor a block device";
    for (file, part) in [
        (files.name("missing"), "No such file"),
        (files.name("folder"), "folder"),
        (pipe, neither),
        ("/dev/null".to_owned(), neither),
        (files.make("empty", b""), "0 bytes"),
        (files.make("small", &[1; 511]), "511 bytes"),
        (files.make("short", &sound[..60]), "header is cut short"),
        (broken("version", 7, 9), "version 9"),
        (broken("clusters", 23, 63), "2^63 bytes"),
        (broken("table", 41, 0x7f), "first-level table"),
        (files.make("foreign", &[b"KDMV".as_slice(), &[0; 1020]].concat()), "a VMDK image"),
        (files.name("second"), "in a circle"),
        (files.name("orphan"), "gone: No such file"),
    ] {
        let before = files.content();
        // What is on a disc may be shorter than a sector.
        let options: &[_] = match part {
            "511 bytes" => &["--disk", "--floppy"],
            _ => &["--disk", "--cdrom", "--floppy"],
        };
        for &option in options {
            names(&["run", option, &file], &[option, &file, part]);
        }
        // Behind one that is sound, with a kernel, to write or not.
        let good = format!("{},ro", files.name("sound"));
        for more in [",if=ide", ",ro", ",snapshot"] {
            let disk = format!("{file}{more}");
            let args = ["run", "--kernel", &kernel, "--disk", &good, "--disk", &disk];
            names(&args, &["--disk", &file]);
        }
        assert!(files.content() == before, "{file}: something was written");
    }

    let (size, sized) = ("2949120 (2880 KiB)", files.make("sized", &[0x55; 3000 << 10]));
    names(&["run", "--floppy", &sized], &["--floppy", &sized, "3072000 bytes", size]);
    // A slip behind a name, and one file twice.
    let slip = format!("{sized},snapshto");
    names(&["run", "--disk", &slip], &["--disk", &slip, "\"snapshto\" is no option"]);
    names(&["run", &slip], &["--disk", &slip, "\"snapshto\" is no option"]);
    names(&["run", &format!("{sized},if=scsi")], &[&sized, "if=scsi", "if=virtio"]);
    names(&["run", &sized, "--disk", &format!("{sized},ro")], &["--disk", &sized, "given twice"]);
    names(&["run", "--floppy", &format!("{sized},if=ide")], &["--floppy", "if= is for disks"]);
    // A disk of a sound image is one of another size as well.
    let sound = files.name("sound");
    names(&["run", "--floppy", &sound], &["--floppy", &sound, "4194304 bytes", size]);
    assert_eq!(fs::read(&sized).expect("there"), [0x55; 3000 << 10]);
    names(&["run", "--floppy", "a", "--floppy", "b", "--floppy", "c"], &["--floppy", "3", "2"]);
    for (option, value) in [("--disk", ",ro"), ("--floppy", ",ro"), ("--disk", "a,ro,snapshot")] {
        names(&["run", option, value], &[option]);
    }
}

/// Root reads what its owner alone may, unless it gives that up.
#[test]
fn files_in_drives_that_may_not_be_read_or_written() {
    let files = Files(Scratch::new("unreadable"));
    let file = files.make("secret", &[1; 1440 << 10]);
    let run = |mode: u32, option: &str| {
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("ours");
        let args = ["run", option, &file];
        let plain = common::xenolith(&args);
        let able = File::options().read(true).write(true).open(&file).is_ok();
        let mut command = if able {
            let mut command = Command::new("setpriv");
            command.arg("--bounding-set=-dac_override,-dac_read_search");
            command.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
            command
        } else {
            plain
        };
        let output = command.output().expect("the program starts, or util-linux's setpriv");
        let line = one_line(&args, &output);
        for word in [option, &file, "ermission denied"] {
            assert!(line.contains(word), "{mode:o} {option}: {line}");
        }
    };
    for option in ["--disk", "--cdrom", "--floppy"] {
        run(0, option);
    }
    for option in ["--disk", "--floppy"] {
        run(0o400, option);
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("ours");
    assert_eq!(fs::read(&file).expect("there"), [1; 1440 << 10]);
}

#[test]
fn networks() {
    let scratch = Scratch::new("networks");
    let kernel = scratch.file("kernel", &guest(common::STOP));
    let kernel = kernel.to_str().expect("plain");
    let wrong = |net: &str, words: &[&str]| {
        names(&["run", "--kernel", kernel, "--net", net], &[&["--net"], words].concat());
    };
    wrong("tap", &["tap", "user", "none"]);
    wrong("user,frob=1", &["frob", "hostfwd"]);
    wrong("user,hostfwd=tcp:2222", &["hostfwd=tcp:2222", "tcp:127.0.0.1:2222-:22"]);
    wrong("user,hostfwd=tcp::2222-192.168.0.1:22", &["10.0.2.15"]);
    wrong("user,mac=1:2", &["52:54:00:12:34:56"]);
    wrong("user,model=ne2000", &["ne2000", "virtio", "e1000"]);
    wrong("user,tftp=/nonexistent/x", &["tftp=/nonexistent/x"]);
    wrong("user,dump=/nonexistent/x", &["dump=/nonexistent/x"]);
    wrong("user,romfile=x", &["romfile", "firmware"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    wrong(&format!("user,hostfwd=tcp:127.0.0.1:{port}-:22"), &["hostfwd=tcp", &port, "in use"]);
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    wrong(&format!("user,hostfwd=udp:127.0.0.1:{port}-:22"), &["hostfwd=udp", &port, "in use"]);
}

#[test]
fn a_guest_that_cannot_be_fetched() {
    let scratch = Scratch::new("fetch");
    // A machine without apt stands for one without network: both end in the same message.
    let output = common::xenolith(&["run", "debian"])
        .env("XENOLITH_CACHE", scratch.path())
        .env("PATH", "/nonexistent")
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().expect("a message");
    for word in
        ["--kernel", "--initrd", "apt-get", "'debian'", "linux-image-amd64", "busybox-static"]
    {
        assert!(last.contains(word), "{last}");
    }
    // An interrupted or failed fetch leaves nothing that looks like a guest.
    let guests = std::fs::read_dir(scratch.path().join("guests")).expect("made");
    let names: Vec<_> = guests.map(|entry| entry.expect("readable").file_name()).collect();
    assert_eq!(names, ["debian.lock"]);
}

#[test]
fn output_that_nobody_takes() {
    let scratch = Scratch::new("full");
    let mut code = common::print("hello");
    code.extend_from_slice(common::STOP);
    let kernel = scratch.file("kernel", &guest(&code));
    let output = run(&kernel, &["--serial", "file:/dev/full"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("serial output"), "{stderr}");
}
