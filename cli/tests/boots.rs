//! Debian's kernels to a shell, used as a person would.
//!
//! The guests are fetched once, into the folder that XENOLITH_CACHE names or else one below the build's
//! own. Each boot has a deadline, and a failure shows what the guest printed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::pty::{Session, is_cooked};
use common::{Scratch, xenolith};

/// For one step; a kernel takes well under a minute to its shell where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(300);

fn cache() -> String {
    std::env::var("XENOLITH_CACHE").unwrap_or_else(|_| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        folder.to_str().expect("a plain name").to_owned()
    })
}

/// Boots a named guest and waits for its prompt.
fn boot(name: &str, more: &[&str]) -> Session {
    let cache = cache();
    let mut args = vec!["run", name, "--cache", &cache, "--timeout", "600"];
    args.extend(more);
    let mut session = Session::start(&args, PATIENCE);
    session.wait_for_text(format!("root@{name}:/root# ").as_bytes());
    session
}

#[test]
fn boots_debian_to_a_usable_shell() {
    let mut session = boot("debian", &["--append", "loglevel=7"]);
    session.press(b"uname -sm; echo $((6*7))\r");
    session.wait_for_text(b"Linux x86_64");
    session.wait_for_text(b"42");
    session.wait_for_text(b"# ");

    // Job control: Ctrl-C ends the program in front and not the shell, nor the machine.
    session.press(b"trap 'echo caught' INT; (echo sleeping; sleep 1000; echo not reached)\r");
    session.wait_for_text(b"sleeping\r\n");
    session.press(b"\x03");
    session.wait_for_text(b"# ");
    session.press(b"trap - INT; (echo resting; sleep 1000)\r");
    session.wait_for_text(b"resting\r\n");
    session.press(b"\x1a");
    session.wait_for_text(b"Stopped");
    session.press(b"kill %1; echo ${PWD}-alive\r");
    session.wait_for_text(b"/root-alive");

    // The window's size, first and changed.
    session.press(b"stty size\r");
    session.wait_for_text(b"24 80");
    session.resize(111, 33);
    session.press(b"until [ \"$(stty size)\" = '33 '111 ]; do sleep 1; done; stty size\r");
    session.wait_for_text(b"33 111");
    session.wait_for_text(b"# ");

    // Line editing: left, left, insert.
    session.press(b"echo eited\x1b[D\x1b[D\x1b[D\x1b[Dd\r");
    session.wait_for_text(b"\nedited");

    session.press(b"poweroff\r");
    assert_eq!(session.wait_for_end().code(), Some(0), "{}", session.screen());
    assert!(is_cooked(&session.settings()));
}

/// The kernel's last console is where one types; what others write to the virtio console isn't shown.
#[test]
fn the_virtio_console_is_heard_only_where_the_guest_has_its_console() {
    let mut session = boot("debian", &["--append", "console=hvc0"]);
    session.press(b"tty; echo $((6*7))\r");
    session.wait_for_text(b"\n/dev/hvc0\r\n42");
    // What the two write may come between each other's letters, but not all the time.
    session.press(b"for n in 1 2 3 4; do echo on the 'line' >/dev/ttyS0; done\r");
    session.wait_for_text(b"on the line");
    session.press(b"poweroff\r");
    assert_eq!(session.wait_for_end().code(), Some(0), "{}", session.screen());

    let mut session = boot("debian", &[]);
    session.press(b"echo n''owhere >/dev/hvc0; echo h''ere\r");
    session.wait_for_text(b"\nhere");
    session.press(b"poweroff\r");
    assert_eq!(session.wait_for_end().code(), Some(0), "{}", session.screen());
    assert!(!session.screen().contains("nowhere"), "{}", session.screen());
}

#[test]
fn boots_debian_i386_to_a_usable_shell() {
    // The kernel leaves its restart to firmware, which isn't there.
    let mut session = boot("debian-i386", &["--no-reboot", "--append", "reboot=bios"]);
    session.press(b"uname -m; echo $((6*7))\r");
    session.wait_for_text(b"\ni686");
    session.wait_for_text(b"\n42");
    session.wait_for_text(b"# ");
    session.press(b"reboot\r");
    assert_eq!(session.wait_for_end().code(), Some(0), "{}", session.screen());
}

/// Runs a program of e2fsprogs or util-linux, which an ordinary PATH may not have.
fn tool(args: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("/bin/sh")
        .args(["-c", "exec \"$@\"", "sh"])
        .args(args)
        .env("PATH", path)
        .output()
        .expect("there is a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Writes a file, has the kernel account for it, and leaves the disk as a shutdown should.
const INIT: &str = "\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox grep ' / ' /proc/mounts
echo written by the guest >/note
/bin/busybox dd if=/dev/urandom of=/large bs=65536 count=64 2>/dev/null
/bin/busybox sha256sum /large >/sum
/bin/busybox sync
/bin/busybox mount -o remount,ro /
/bin/busybox poweroff -f
";

#[test]
fn boots_a_partitioned_ext4_disk_as_root_and_leaves_it_clean() {
    let scratch = Scratch::new("ext4");
    // Once, so that busybox is there to put on the disk.
    let cache = cache();
    let listed = xenolith(&["guests", "--cache", &cache]).output().expect("the program starts");
    assert!(listed.status.success());
    let busybox = PathBuf::from(&cache).join("guests/debian/busybox");
    if !busybox.exists() {
        let fetched = xenolith(&["run", "debian", "--cache", &cache, "--timeout", "0.01"]).output();
        assert_eq!(fetched.expect("the program starts").status.code(), Some(124));
    }

    let tree = scratch.path().join("tree");
    for folder in ["bin", "sbin", "dev", "proc", "sys", "run"] {
        fs::create_dir_all(tree.join(folder)).expect("scratch is writable");
    }
    fs::copy(&busybox, tree.join("bin/busybox")).expect("fetched above");
    fs::write(tree.join("sbin/init"), INIT).expect("scratch is writable");
    for program in ["bin/busybox", "sbin/init"] {
        tool(&["chmod", "755", tree.join(program).to_str().expect("plain")]);
    }
    let disk = scratch.path().join("disk.img");
    let disk = disk.to_str().expect("plain");
    fs::File::create(disk).and_then(|file| file.set_len(66 << 20)).expect("scratch is writable");
    tool(&[
        "sh",
        "-c",
        &format!("echo 'start=2048, size=131072, type=83' | sfdisk --quiet {disk}"),
    ]);
    let tree = tree.to_str().expect("plain");
    // 64 MiB behind the partition table.
    tool(&["mkfs.ext4", "-q", "-F", "-E", "offset=1048576", "-d", tree, disk, "65536k"]);

    let output = xenolith(&["run", "debian", "--cache", &cache, "--timeout", "600"])
        .args(["--disk", disk, "--append", "root=/dev/vda1"])
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("/dev/vda1 / ext4 rw"), "{text}");

    let partition = format!("{disk}?offset=1048576");
    tool(&["e2fsck", "-f", "-n", &partition]);
    let state = tool(&["dumpe2fs", "-h", &partition]);
    assert!(state.contains("Filesystem state:         clean"), "{state}");
    assert!(!state.contains("needs_recovery"), "{state}");
    let image = scratch.path().join("partition.img");
    let image = image.to_str().expect("plain");
    tool(&["dd", &format!("if={disk}"), &format!("of={image}"), "bs=1M", "skip=1", "count=64"]);
    assert_eq!(tool(&["debugfs", "-R", "cat /note", image]), "written by the guest\n");
    let large = scratch.path().join("large");
    let large = large.to_str().expect("plain");
    tool(&["debugfs", "-R", &format!("dump /large {large}"), image]);
    let expected = tool(&["debugfs", "-R", "cat /sum", image]);
    let found = tool(&["sha256sum", large]);
    assert_eq!(found.split_whitespace().next(), expected.split_whitespace().next());
    assert_eq!(fs::metadata(large).expect("dumped").len(), 4 << 20);
}

/// Captures README's session: `cargo test --release -p xenolith --test boots -- --ignored readme`.
#[test]
#[ignore = "rewrites README.md; run by hand when what a person sees has changed"]
fn readme_session() {
    let mut session = boot("debian", &[]);
    for (command, answer) in [
        ("uname -a", "GNU/Linux"),
        ("head -5 /proc/cpuinfo", "model name"),
        ("free -m | head -2", "Mem:"),
        ("ls /sys/bus/virtio/devices", "virtio"),
    ] {
        session.press(format!("{command}\r").as_bytes());
        session.wait_for_text(answer.as_bytes());
        session.wait_for_text(b"# ");
    }
    session.press(b"poweroff\r");
    assert_eq!(session.wait_for_end().code(), Some(0));
    let screen = session.screen();

    let lines: Vec<String> = screen.lines().map(plain).collect();
    let ready =
        lines.iter().position(|line| line.starts_with("Linux 6") && line.contains("Xenolith"));
    let ready = ready.expect("the greeting");
    let first = lines.iter().position(|line| line.contains("Linux version")).expect("the kernel");
    let mut shown = vec!["$ cargo run --release -- run debian".to_owned()];
    shown.extend(lines[first..first + 4].iter().cloned());
    shown.push(format!("  ... {} more lines of the kernel ...", ready - first - 8));
    shown.extend(lines[ready - 4..].iter().cloned());
    shown.push("$ echo $?\n0".to_owned());
    let block = format!("```console\n{}\n```\n", shown.join("\n").trim_end());

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).expect("README.md is there");
    let (head, rest) = readme.split_once("<!-- session:begin").expect("marked");
    let (note, rest) = rest.split_once("-->\n").expect("marked");
    let (_, tail) = rest.split_once("<!-- session:end").expect("marked");
    let text = format!("{head}<!-- session:begin{note}-->\n{block}<!-- session:end{tail}");
    fs::write(path, text).expect("README.md is ours");
}

/// A line without terminal control sequences.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' => {
                // CSI: up to a letter; others here are two characters.
                if characters.next() == Some('[') {
                    for character in characters.by_ref() {
                        if character.is_ascii_alphabetic() {
                            break;
                        }
                    }
                }
            }
            '\r' => {}
            '\t' => text.push(character),
            _ if character.is_control() => {}
            _ => text.push(character),
        }
    }
    text.trim_end().to_owned()
}
