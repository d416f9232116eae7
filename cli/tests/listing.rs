//! `xenolith disasm`: of bytes, and of a guest as it ran.

mod common;

use common::{POWER_OFF, STOP, Scratch, guest, output, print};

fn listing(args: &[&str]) -> String {
    let output = output(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    assert!(stderr.is_empty(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn has_line(text: &str, parts: &[&str]) {
    let found = text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "no line with {parts:?}:\n{text}");
}

#[test]
fn bytes_become_host_code() {
    let scratch = Scratch::new("listing");
    let file = scratch.file("code.bin", &[0x01, 0x07, 0xc3]);
    let file = file.to_str().expect("plain");
    for mode in ["16", "32", "64"] {
        let from_file = listing(&["disasm", "--code", file, "--mode", mode, "--at", "0x7c00"]);
        let from_hex = listing(&["disasm", "--code", "01 07 c3", "--mode", mode, "--at", "7c00"]);
        assert_eq!(from_file, from_hex);
        has_line(&from_hex, &["block 7c00", &format!("{mode}-bit")]);
        has_line(&from_hex, &["in: 2 instructions, 3 bytes", "out: "]);
        has_line(&from_hex, &["7c00 ", "0107", "add", "+"]);
    }
    let shadow = listing(&["disasm", "--code", "01 07 c3", "--mmu", "shadow"]);
    has_line(&shadow, &["shadow windows"]);
    has_line(&shadow, &["gs:", "regions+"]);
}

/// `mov ecx, 1000; again: add ebx, ecx; dec ecx; jnz again`.
const LOOP: &[u8] = &[0xb9, 0xe8, 3, 0, 0, 0x01, 0xcb, 0x49, 0x75, 0xfb];
/// Where [`guest`] has its code.
const START: u32 = 0x10_0020;

#[test]
fn a_guests_blocks_are_shown_as_they_were_chained() {
    let scratch = Scratch::new("chained");
    let code = [LOOP, &print("done"), POWER_OFF, STOP].concat();
    let kernel = scratch.file("kernel", &guest(&code));
    let kernel = kernel.to_str().expect("plain");
    let again = START + 5;
    let at = format!("{again:#x}");
    for more in [&[][..], &["--until", "one"]] {
        let args = [&["disasm", "--kernel", kernel, "-m", "64M", "--at", &at], more].concat();
        let text = listing(&args);
        has_line(&text, &[&format!("block {again:x}: 32-bit, supervisor")]);
        has_line(&text, &["jne", "; chained: ", &format!("{again:x}")]);
        has_line(&text, &["the interpreter does OUT at"]);
    }
    let all = listing(&["disasm", "--kernel", kernel, "-m", "64M"]);
    has_line(&all, &[&format!("{again:016x}"), "32-bit"]);
    let nowhere = output(&["disasm", "--kernel", kernel, "-m", "64M", "--at", "0x200000"]);
    assert_eq!((nowhere.status.code(), nowhere.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("--at 0x200000: no block"));
}
