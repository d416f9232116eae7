//! The truth machine's slice for every change: engines, the bare processor and QEMU on the same snippets.

use std::sync::{Arc, Mutex, PoisonError};

use xenolith_machine::Mmu;
use xenolith_machine::fuzz::{self, Config, Counts};
use xenolith_machine::snippet::judge::{Mask, agree, differences};
use xenolith_machine::snippet::{Bits, End, Snippet, Who, engine, layout};
use xenolith_testsuites::asm::layout::symbol;

/// Compares snippets of a seed; what was found as text.
fn compare(who: Vec<Who>, seed: u64, snippets: u64) -> (Counts, String) {
    let found = Arc::new(Mutex::new(String::new()));
    let keep = |text: &str, found: &Mutex<String>| {
        found.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    };
    let (first, second) = (Arc::clone(&found), Arc::clone(&found));
    let config = Config {
        seed,
        first: 0,
        snippets: Some(snippets),
        time: None,
        cpu: "host".to_owned(),
        who,
        making: Mmu::default().into(),
        folder: None,
        findings_max: 5,
        report: Box::new(move |finding| {
            keep(
                &format!("{:?} {:#?}\n{}\n", finding.names, finding.differences, finding.text),
                &first,
            );
        }),
        report_unsteady: Box::new(move |unsteady| keep(&format!("{unsteady:#x?}\n"), &second)),
        progress: None,
    };
    let counts = fuzz::run(config).expect("the host gives memory and a process");
    let text = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (counts, text)
}

/// The fixed slice of every change: at least two million instructions compared.
#[test]
fn two_million_instructions_do_as_the_processor_does() {
    let (counts, found) = compare(vec![Who::Host, Who::Interp, Who::Bt], 1, 230_000);
    assert!(found.is_empty(), "{found}");
    assert!(counts.instructions >= 2_000_000, "{counts:?}");
    // Excuses are rare, and each kind of ending has been seen.
    let excused: u64 = counts.excused.values().sum();
    assert!(excused * 50 < counts.snippets, "{:?}", counts.excused);
    for end in ["#DE", "#DB", "#BP", "#OF", "#BR", "#UD", "#NP", "#SS", "#GP", "#PF", "#MF", "#AC"]
    {
        assert!(counts.endings.contains_key(end), "no {end}: {:?}", counts.endings);
    }
}

/// Snippets whose outcome anybody can work out, everywhere.
#[test]
fn everybody_runs_simple_snippets_alike() {
    let model = engine::model("host").expect("every host carries itself");
    let mut runners: Vec<_> = Who::ALL
        .iter()
        .map(|who| who.runner(Mmu::default(), &model).expect("install-peers.sh was run"))
        .collect();
    for bits in Bits::ALL {
        for n in 0..40 {
            // add al, n; push ax (or so); cmp al, 7; jne +1; nop
            let mut snippet = Snippet::new(bits, vec![0x04, n, 0x50, 0x3c, 7, 0x75, 1, 0x90]);
            snippet.gpr[0] = 0x1234_5600;
            let endings: Vec<_> =
                runners.iter_mut().map(|it| it.run(&snippet).expect("it runs")).collect();
            for ending in &endings {
                assert!(ending.is_complete(&snippet), "{bits:?} {n}: {ending:?}");
                assert_eq!(ending.gpr[0] & 0xffff_ffff, 0x1234_5600 + u64::from(n));
                assert!(agree(&snippet, &endings[0], ending, &Mask::default()), "{bits:?} {n}");
            }
        }
    }
    // A fault, with all that goes with it: mov eax, [ABSENT+4].
    let mut code = vec![0x8b, 0x04, 0x25];
    code.extend((layout::ABSENT as u32 + 4).to_le_bytes());
    let snippet = Snippet::new(Bits::B64, code);
    for runner in &mut runners {
        let ending = runner.run(&snippet).expect("it runs");
        let fault = End::Exception { vector: 14, error: 4, cr2: layout::ABSENT + 4 };
        assert_eq!(ending.end, fault, "{}", runner.name());
        assert_eq!(ending.rip, layout::CODE);
    }
}

/// What a snippet does to its runner stays there.
#[test]
fn endless_and_hostile_snippets_harm_nobody() {
    let model = engine::model("host").expect("every host carries itself");
    let good = Snippet::new(Bits::B64, vec![0xb8, 42, 0, 0, 0]);
    for who in [Who::Host, Who::Interp, Who::Bt] {
        let mut runner = who.runner(Mmu::default(), &model).expect("the host gives it");
        // jmp to itself; SYSCALL for exit; INT 0x80 for exit in 32-bit code; a far jump into nothing.
        let endless = runner.run(&Snippet::new(Bits::B64, vec![0xeb, 0xfe])).expect("it ends");
        assert_eq!(endless.end, End::Endless, "{who:?}");
        let mut exit = Snippet::new(Bits::B64, vec![0x0f, 0x05]);
        exit.gpr[0] = 231;
        let ending = runner.run(&exit).expect("it ends");
        if who == Who::Host {
            assert_eq!(ending.end, End::SystemCall);
        }
        let mut exit = Snippet::new(Bits::B32, vec![0xcd, 0x80]);
        exit.gpr[0] = 1;
        runner.run(&exit).expect("it ends");
        let ending = runner.run(&good).expect("it still runs");
        assert!(ending.is_complete(&good) && ending.gpr[0] == 42, "{who:?}: {ending:?}");
        let batch: Vec<_> = (0..600).map(|_| good.clone()).collect();
        runner.start(&batch).expect("it starts");
        let endings = runner.finish(&batch).expect("it ends");
        assert_eq!(endings.len(), 600);
        assert!(endings.iter().all(|it| it.gpr[0] == 42));
    }
}

/// Addresses and selectors are the conformance suite's: a snippet becomes a case unchanged.
#[test]
fn snippets_live_where_cases_do() {
    for (name, value) in [
        ("CODE", layout::CODE),
        ("RWX", layout::RWX),
        ("DATA", layout::DATA),
        ("ABSENT", layout::ABSENT),
        ("RO", layout::RO),
        ("STACK", layout::STACK),
        ("STACK_MID", layout::STACK_MID),
        ("CODE16", layout::CODE16),
        ("DATA16", layout::DATA16),
        ("EXTRA16", layout::EXTRA16),
        ("STACK16", layout::STACK16),
        ("STACK16_SP", layout::STACK16_SP),
        ("UCODE32", u64::from(layout::UCODE32)),
        ("UCODE64", u64::from(layout::UCODE64)),
        ("UDATA", u64::from(layout::UDATA)),
        ("KCODE32", u64::from(layout::KCODE32)),
        ("KCODE64", u64::from(layout::KCODE64)),
        ("KDATA", u64::from(layout::KDATA)),
    ] {
        assert_eq!(symbol(name), value, "{name}");
    }
    for (name, selector, ..) in layout::LOCAL {
        assert_eq!(symbol(name), u64::from(selector), "{name}");
    }
    // The text of a difference names what differs.
    let snippet = Snippet::new(Bits::B64, vec![0x90]);
    let model = engine::model("host").expect("every host carries itself");
    let mut runner = Who::Interp.runner(Mmu::default(), &model).expect("memory for an engine");
    let a = runner.run(&snippet).expect("it runs");
    let mut b = a.clone();
    b.gpr[3] = 5;
    let named = differences(&snippet, &a, &b, &Mask::default());
    assert_eq!(named.len(), 1);
    assert_eq!(named[0].name, "RBX");
}
