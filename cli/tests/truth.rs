//! `xenolith diff --snippet` and `xenolith fuzz`: what a person sees of the comparisons.

mod common;

use common::{Scratch, output, xenolith};

fn text(args: &[&str], status: i32) -> String {
    let output = output(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The cells of a row of the table.
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let words = |line: &'a str| line.split_whitespace().collect::<Vec<_>>();
    let found = table.lines().map(words).find(|words| words.contains(&name));
    found.unwrap_or_else(|| panic!("no row {name}:\n{table}"))
}

#[test]
fn a_snippet_runs_everywhere_and_makes_one_table() {
    let table =
        text(&["diff", "--snippet", "48 b8 0700000000000000 48 6b c0 06 90", "--mode", "64"], 0);
    for word in ["interp", "bt", "host"] {
        assert!(table.contains(word), "{table}");
    }
    let rax = row(&table, "RAX");
    // Name, before, and everybody.
    assert!(rax.len() >= 5 && rax[2..].iter().all(|it| *it == "2a"), "{rax:?}");
    // push ax; in 32-bit code the operand size prefix makes it two bytes.
    for (mode, code) in [("16", "50"), ("32", "66 50")] {
        let table = text(&["diff", "--snippet", code, "--mode", mode], 0);
        let rsp = row(&table, "RSP");
        let before = u64::from_str_radix(rsp[1], 16).expect("a number");
        for after in &rsp[2..] {
            let after = u64::from_str_radix(after, 16).expect("a number");
            assert_eq!(after & 0xffff, (before - 2) & 0xffff, "{rsp:?}");
        }
    }
}

#[test]
fn a_snippets_faults_are_shown() {
    let table = text(&["diff", "--snippet", "8b 04 25 00 20 01 01"], 0);
    let end = table.lines().find(|line| line.contains("#PF")).expect("a page fault");
    assert!(
        end.matches("#PF(0x4)").count() >= 3 || table.matches("#PF(0x4)").count() >= 3,
        "{table}"
    );
    assert!(table.contains("cr2=0x1012000"), "{table}");
}

#[test]
fn a_file_gives_registers_and_memory() {
    let scratch = Scratch::new("source");
    let source = b"; in: rax=5 rsi=DATA+0x10\n; in-mem: DATA+0x10 = 07\n  add rax, [rsi]\n";
    let path = scratch.file("add.asm", source);
    let path = path.to_str().expect("plain");
    let table = text(&["diff", "--snippet", path, "--mode", "64"], 0);
    assert!(row(&table, "RAX")[2..].iter().all(|it| *it == "c"), "{table}");
    // Without NASM the line says so.
    let output = xenolith(&["diff", "--snippet", path]).env("PATH", "/nowhere").output();
    let output = output.expect("the program starts");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("nasm is not installed") && line.lines().count() == 1, "{line}");
}

#[test]
fn the_same_seed_compares_the_same() {
    let scratch = Scratch::new("fuzz");
    let folder = scratch.path().to_str().expect("plain");
    let run = |seed: &str| {
        let args = ["fuzz", "--insns", "--engine", "interp", "--snippets", "1500", "--seed", seed];
        let output = output(&[&args[..], &["--out", folder]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        let (counts, rest) = line.split_once(" in ").expect("how long it took");
        let (_, endings) = rest.split_once(';').expect("findings");
        format!("{counts};{endings}")
    };
    let first = run("4");
    assert!(first.contains("1500 snippets") && first.contains("0 different findings"), "{first}");
    assert_eq!(first, run("4"));
    assert_ne!(first, run("5"));
}
