//! Wrong usage and configuration: always one clear line on standard error, nothing on standard output,
//! status 1; never a panic.

mod common;

use common::{Scratch, guest, output, run};

/// Runs the program with a mistake and gives the line it says.
fn mistake(args: &[&str]) -> String {
    let output = output(args);
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
    wrong("user,romfile=x", &["romfile", "e1000"]);
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
