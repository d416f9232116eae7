//! How a run ends: exit statuses, and what is on which output.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    ECHO, POWER_OFF, STOP, Scratch, TIME_LIMITS, TRIPLE_FAULT, guest, out8, print, run, xenolith,
};

fn code(parts: &[&[u8]]) -> Vec<u8> {
    guest(&parts.concat())
}

#[test]
fn power_off_is_success_and_stdout_is_the_guests() {
    let scratch = Scratch::new("poweroff");
    let kernel =
        scratch.file("kernel", &code(&[&print("Hello, host\r\n\x00\x7f"), POWER_OFF, STOP]));
    let output = run(&kernel, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"Hello, host\r\n\x00\x7f");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn serial_can_go_to_a_file_or_nowhere() {
    let scratch = Scratch::new("serial");
    let kernel = scratch.file("kernel", &code(&[&print("to a file"), POWER_OFF, STOP]));
    let path = scratch.path().join("out.txt");
    let output = run(&kernel, &["--serial", &format!("file:{}", path.display())]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert_eq!(std::fs::read(&path).expect("written"), b"to a file");
    let output = run(&kernel, &["--serial", "none"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}

#[test]
fn the_second_serial_line_is_a_uart_with_a_file_and_an_interrupt() {
    let scratch = Scratch::new("serial2");
    // A scratch register of its own; then IRQ 3 from the empty transmitter, seen in the 8259's request register.
    let second = [
        out8(0x2ff, 0x5a),
        out8(0x3ff, 0xa5),
        out8(0x2f8, b'2'),
        out8(0x2fc, 8),
        out8(0x2f9, 2),
        // Until it is requested: mov al, 0x0a; out 0x20, al; in al, 0x20; test al, 8; jz
        vec![0xb0, 0x0a, 0xe6, 0x20, 0xe4, 0x20, 0xa8, 0x08, 0x74, 0xf6],
        // mov dx, 0x2ff; in al, dx; mov dx, 0x3f8; out dx, al
        vec![0x66, 0xba, 0xff, 0x02, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee],
    ]
    .concat();
    let kernel = scratch.file("kernel", &code(&[&second, POWER_OFF, STOP]));
    let path = scratch.path().join("out.txt");
    let output = run(&kernel, &["--serial2", &format!("file:{}", path.display())]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"\x5a");
    assert_eq!(std::fs::read(&path).expect("written"), b"2");
    let output = run(&kernel, &[]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"\x5a"[..]));
}

#[test]
fn debug_exit_tells_its_value() {
    let scratch = Scratch::new("debugexit");
    for (value, status) in [(0, 1), (1, 3), (0x10, 0x21), (0x7f, 0xff), (0x80, 1)] {
        let kernel = scratch.file("kernel", &code(&[&out8(0xf4, value), STOP]));
        assert_eq!(run(&kernel, &[]).status.code(), Some(status), "value {value:#x}");
    }
}

#[test]
fn a_triple_fault_shows_the_registers() {
    let scratch = Scratch::new("triplefault");
    let kernel = scratch.file("kernel", &code(&[TRIPLE_FAULT]));
    let output = run(&kernel, &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("triple fault"), "{stderr}");
    for register in ["EIP", "CR0", "CR3", "IDT"] {
        let long = register.replace('E', "R");
        assert!(
            stderr.to_uppercase().contains(register) || stderr.to_uppercase().contains(&long),
            "no {register}: {stderr}"
        );
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn a_reset_ends_the_run_only_if_asked() {
    let scratch = Scratch::new("reset");
    let reset = out8(0xcf9, 6);
    let kernel = scratch.file("kernel", &code(&[&print("."), &reset, STOP]));
    let output = run(&kernel, &["--no-reboot"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"."[..]));
    // Without it the machine starts again, and again.
    let starts_again = TIME_LIMITS.iter().any(|limit| {
        let output = run(&kernel, &["--timeout", limit]);
        assert_eq!(output.status.code(), Some(124));
        output.stdout.len() > 1
    });
    assert!(starts_again);
}

#[test]
fn the_clocks_memory_and_time_outlive_resets() {
    let scratch = Scratch::new("battery");
    // mov al, INDEX; out 0x70, al; in al, 0x71
    let get = |index: u8| vec![0xb0, index, 0xe6, 0x70, 0xe4, 0x71];
    // mov al, INDEX; out 0x70, al; mov al, VALUE; out 0x71, al
    let set = |index: u8, value: u8| vec![0xb0, index, 0xe6, 0x70, 0xb0, value, 0xe6, 0x71];
    // Counts its starts in byte 0x60, and sets the century at the first of them. At the third it prints what is there.
    let code = [
        get(0x60),
        // inc al; mov bl, al; mov al, 0x60; out 0x70, al; mov al, bl; out 0x71, al
        vec![0xfe, 0xc0, 0x88, 0xc3, 0xb0, 0x60, 0xe6, 0x70, 0x88, 0xd8, 0xe6, 0x71],
        // cmp bl, 3; je behind the resets
        vec![0x80, 0xfb, 3, 0x74, 8 + 7 + 1],
        set(0x32, 0x21),
        out8(0xcf9, 6),
        vec![0xf4],
        get(0x32),
        // mov dx, 0x3f8; out dx, al; mov al, bl; out dx, al
        vec![0x66, 0xba, 0xf8, 0x03, 0xee, 0x88, 0xd8, 0xee],
    ]
    .concat();
    let kernel = scratch.file("kernel", &guest(&[&code, POWER_OFF, STOP].concat()));
    let output = run(&kernel, &["--timeout", "300"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, [0x21, 3]);
}

#[test]
fn a_timeout_has_its_status() {
    let scratch = Scratch::new("timeout");
    let kernel = scratch.file("kernel", &code(&[STOP]));
    let spin = scratch.file("spin", &code(&[&[0xeb, 0xfe]]));
    for kernel in [kernel, spin] {
        let start = Instant::now();
        let output = run(&kernel, &["--timeout", "0.7"]);
        assert_eq!(output.status.code(), Some(124));
        let taken = start.elapsed();
        assert!(
            taken >= Duration::from_millis(700) && taken < Duration::from_secs(120),
            "{taken:?}"
        );
    }
}

#[test]
fn standard_input_reaches_the_guest_and_may_end() {
    let scratch = Scratch::new("stdin");
    let kernel = scratch.file("kernel", &code(&[ECHO]));
    let mut child =
        xenolith(&["run", "--kernel", kernel.to_str().expect("plain"), "--timeout", "300"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"a\x03\x01a\xffq").expect("taken");
    // The end of the input is not the end of the guest.
    drop(stdin);
    let mut text = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut text).expect("readable");
    assert_eq!(child.wait().expect("ended").code(), Some(7));
    assert_eq!(text, b"[a][\x03][\x01][\xff][q]");
}

#[test]
fn an_input_at_its_end_and_a_sleeping_guest_cost_nothing() {
    let scratch = Scratch::new("idle");
    let kernel = scratch.file("kernel", &code(&[&print("."), STOP]));
    let mut child =
        xenolith(&["run", "--kernel", kernel.to_str().expect("plain"), "--timeout", "300"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
    // Processor time in milliseconds.
    let stat = format!("/proc/{}/stat", child.id());
    let used_ms = || {
        let stat = std::fs::read_to_string(&stat).expect("it runs");
        let fields: Vec<&str> =
            stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        [11, 12].iter().map(|&i| 10 * fields[i].parse::<u64>().expect("a number")).sum::<u64>()
    };
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut [0]).expect("the guest prints");
    // What is left to do before the rest takes the longer the busier the computer is.
    let spells: Vec<u64> = (0..10)
        .map(|_| {
            let before = used_ms();
            std::thread::sleep(Duration::from_secs(2));
            used_ms() - before
        })
        .take_while(|&used| used > 50)
        .collect();
    child.kill().expect("ours");
    child.wait().expect("ended");
    assert!(spells.len() < 10, "{spells:?} ms of processor time in 2 s each");
}

/// The program waits for the pipe's other end, as for a slow file.
#[test]
fn a_signal_ends_the_program_before_there_is_a_machine() {
    use std::os::unix::process::ExitStatusExt;
    let scratch = Scratch::new("waits");
    let pipe = scratch.path().join("rom");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("coreutils").success());
    let mut child = xenolith(&["run", "--bios", pipe.to_str().expect("plain")])
        .spawn()
        .expect("the program starts");
    let pid = child.id().to_string();
    // The bit of SIGTERM, among those that the main thread has blocked.
    let blocked = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("Linux");
        u64::from_str_radix(mask.trim(), 16).expect("a mask") & 1 << 14 != 0
    };
    let patience = Instant::now() + Duration::from_secs(120);
    while !blocked() {
        assert!(Instant::now() < patience, "signals are never blocked");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").arg(&pid).status().expect("procps").success());
    let ended = loop {
        if let Some(status) = child.try_wait().expect("ours") {
            break status;
        }
        if Instant::now() > patience {
            child.kill().expect("ours");
            panic!("SIGTERM is not obeyed");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(ended.signal(), Some(15));
}

#[test]
fn a_reader_that_leaves_ends_the_run() {
    let scratch = Scratch::new("epipe");
    // print '.' for ever
    let kernel =
        scratch.file("kernel", &code(&[&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfd]]));
    let mut child =
        xenolith(&["run", "--kernel", kernel.to_str().expect("plain"), "--timeout", "300"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut [0; 10]).expect("the guest prints");
    drop(stdout);
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_and_the_list_of_guests_go_to_stdout() {
    let scratch = Scratch::new("list");
    for args in [&["--help"][..], &["run", "--help"], &["guests", "--help"], &["--version"]] {
        let output = common::output(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    let output =
        xenolith(&["guests"]).env("XENOLITH_CACHE", scratch.path()).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    for word in ["debian", "debian-i386", "linux-image-amd64", "busybox-static", "not fetched"] {
        assert!(text.contains(word), "{text}");
    }
}
