//! The report guests under QEMU and under each engine: `xenolith_testsuites::report`.

use xenolith_machine::{Engine, Mmu};
use xenolith_testsuites::asm::case::Maker;
use xenolith_testsuites::asm::{engine, qemu};
use xenolith_testsuites::report::{ReportGuest, build, compare, lines};

fn reports_agree(guest: ReportGuest) {
    let image = build(guest).expect("install-peers.sh was run");
    let (output, stop) = qemu::boot(&image, Maker::Intel).expect("install-peers.sh was run");
    let theirs = lines(&output, &stop).expect("QEMU runs it to its end");
    assert!(theirs.len() > 100, "only {} lines", theirs.len());
    let mut wrong = String::new();
    for (name, kind, mmu) in
        [("interp", Engine::Interp, Mmu::default()), ("bt", Engine::Bt, Mmu::default())]
    {
        let (output, stop) =
            engine::boot(&image, kind, mmu, Maker::Intel).expect("the machine is built");
        match lines(&output, &stop) {
            Ok(ours) => {
                let text = compare(guest, &theirs, &ours);
                if !text.is_empty() {
                    wrong.push_str(&format!("{name}:\n{text}"));
                }
            }
            Err(error) => wrong.push_str(&format!("{name}: {error}\n")),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn long_mode_does_as_qemu_does_or_the_manual_says_who_is_right() {
    reports_agree(ReportGuest::Long);
}

#[test]
fn protected_mode_does_as_qemu_does_or_the_manual_says_who_is_right() {
    reports_agree(ReportGuest::Protected);
}
