//! The fuzzer itself: is everything generated, is it the same every time, is a mistake found.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::interp::Interp;
use xenolith_mmu::SoftMmu;

use super::assemble::{Place, Registers, assemble};
use super::coverage::{self, Treatment, treatment};
use super::generate::{BATCH, Generator};
use super::rng::Rng;
use super::shrink::{boundaries, shrink};
use super::template::Template;
use crate::config;
use crate::snippet::engine::{EngineRunner, model};
use crate::snippet::judge::{Mask, agree};
use crate::snippet::layout::{CODE, DATA};
use crate::snippet::{Bits, End, Runner, Snippet, System};

fn host_model() -> Arc<CpuidModel> {
    model("host").expect("every host carries itself")
}

/// An instruction of that code, if one can be made.
fn sample(code: Code, bits: Bits) -> Option<Instruction> {
    let mut rng = Rng::new(code as u64);
    let template = Template::new(code);
    (0..200).find_map(|_| {
        let mut registers = Registers { initial: [0; 16], known: 0, free: u16::MAX };
        let place = Place { bits, rip: CODE, target: DATA };
        let made = assemble(&mut rng, &template, place, &mut registers)?;
        let bytes = &made.bytes[..made.len];
        let insn = Decoder::with_ip(bits.number(), bytes, CODE, DecoderOptions::NONE).decode();
        (insn.code() == code).then_some(insn)
    })
}

/// Codes that the engines have: the interpreter has a handler.
fn supported(model: &CpuidModel) -> HashMap<Code, Vec<Bits>> {
    let mut all: HashMap<Code, Vec<Bits>> = HashMap::new();
    for bits in Bits::ALL {
        for code in coverage::codes(model, bits) {
            if let Some(insn) = sample(code, bits)
                && Interp::<SoftMmu>::supports(&insn, model)
            {
                all.entry(code).or_default().push(bits);
            }
        }
    }
    all
}

/// The table of what is generated and what is left out has every supported code in exactly one place.
#[test]
fn every_supported_code_is_generated_and_executed_or_left_out_with_a_reason() {
    let model = host_model();
    let supported = supported(&model);
    assert!(supported.len() > 1500, "only {} codes are supported", supported.len());
    let mut generator = Generator::new(&model, true);
    let mut interp = EngineRunner::new(config::Engine::Interp, config::Mmu::Auto, &model)
        .expect("memory for an engine");
    let mut executed: HashSet<Code> = HashSet::new();
    let wanted = || supported.keys().filter(|&&code| treatment(code) == Treatment::Compared);
    // Each code comes up once in some thousand instructions.
    for n in 0..1_000_000 {
        let snippet = generator.snippet(1, n);
        interp.trace(&snippet, |state, bytes| {
            let bits = state.code_bits();
            let insn = Decoder::with_ip(bits, bytes, state.rip, DecoderOptions::NONE).decode();
            if coverage::is_compared(&insn, &bytes[..insn.len()], bits, &model) {
                executed.insert(insn.code());
            }
        });
        if n % 4096 == 0 && wanted().all(|code| executed.contains(code)) {
            break;
        }
    }
    let missing: Vec<_> = wanted().filter(|code| !executed.contains(code)).collect();
    assert!(missing.is_empty(), "neither executed nor in LEFT_OUT: {missing:?}");
    let both: Vec<_> =
        executed.iter().filter(|&&code| treatment(code) != Treatment::Compared).collect();
    assert!(both.is_empty(), "in LEFT_OUT and executed: {both:?}");
}

#[test]
fn what_is_left_out_exists_and_says_why() {
    let all: HashSet<Mnemonic> = Code::values().map(Code::mnemonic).collect();
    for (list, reason) in coverage::LEFT_OUT {
        assert!(!reason.is_empty());
        assert!(list.iter().all(|mnemonic| all.contains(mnemonic)));
    }
    let mut named = HashSet::new();
    for (list, _) in coverage::LEFT_OUT {
        assert!(list.iter().all(|mnemonic| named.insert(*mnemonic)), "{list:?}: twice");
    }
}

#[test]
fn a_seed_makes_the_same_snippets() {
    let model = host_model();
    let (mut a, mut b) = (Generator::new(&model, true), Generator::new(&model, true));
    let mut kinds = HashSet::new();
    for n in (0..10 * BATCH).rev() {
        let (x, y) = (a.snippet(7, n), b.snippet(7, n));
        assert_eq!(format!("{x:?}"), format!("{y:?}"), "snippet {n}");
        kinds.insert(x.bits);
        assert_ne!(format!("{x:?}"), format!("{:?}", b.snippet(8, n)));
    }
    assert_eq!(kinds.len(), 3, "code of all sizes");
}

#[test]
fn running_a_snippet_leaves_nothing_behind() {
    let model = host_model();
    let mut generator = Generator::new(&model, true);
    let mut used = EngineRunner::new(config::Engine::Interp, config::Mmu::Auto, &model)
        .expect("memory for an engine");
    for n in 0..2000 {
        let snippet = generator.snippet(3, n);
        let first = used.run(&snippet).expect("an engine runs everything");
        if n % 40 != 0 {
            continue;
        }
        let mut fresh = EngineRunner::new(config::Engine::Interp, config::Mmu::Auto, &model)
            .expect("memory for an engine");
        let other = fresh.run(&snippet).expect("an engine runs everything");
        assert!(agree(&snippet, &first, &other, &Mask::default()), "snippet {n}");
    }
}

/// Shrinking with a mistake of our own making: everything goes but what the mistake needs.
#[test]
fn shrinking_keeps_what_matters() {
    let model = host_model();
    let mut generator = Generator::new(&model, true);
    let is_adc = |insn: &Instruction| insn.mnemonic() == Mnemonic::Adc;
    let has_adc = |snippet: &Snippet| {
        boundaries(snippet).windows(2).any(|pair| {
            let bytes = &snippet.code[pair[0]..pair[1]];
            is_adc(&Decoder::new(snippet.bits.number(), bytes, DecoderOptions::NONE).decode())
        })
    };
    // Wrong for ADC with R9 below 1000, as it were.
    let mut fails = |snippet: &Snippet| has_adc(snippet) && snippet.gpr[9] > 1000;
    let snippet = (0..100_000)
        .map(|n| generator.snippet(1, n))
        .find(|it| it.bits == Bits::B64 && fails(it) && boundaries(it).len() > 5)
        .expect("ADC is common");
    let small = shrink(&snippet, &mut fails);
    assert_eq!(boundaries(&small).len(), 2, "one instruction");
    assert!(small.gpr[9] > 1000 && small.memory.is_empty() && small.pattern == 0);
    let zero = Snippet::new(Bits::B64, Vec::new());
    assert!((0..16).all(|n| n == 9 || small.gpr[n] == zero.gpr[n]), "{:x?}", small.gpr);
    assert_eq!((small.rip, small.rflags), (zero.rip, zero.rflags));
}

/// Protected, virtual-8086 and real mode: snippets are made for them, run, and leave nothing behind.
#[test]
fn snippets_run_outside_long_mode() {
    let model = host_model();
    let mut generator = Generator::new(&model, true);
    let systems: HashSet<System> =
        (0..32).map(|batch| generator.snippet(1, batch * BATCH).system).collect();
    assert_eq!(systems.len(), 4, "{systems:?}");
    for kind in [config::Engine::Interp, config::Engine::Bt] {
        let mut engine = EngineRunner::new(kind, config::Mmu::Auto, &model).expect("memory");
        let mut run = |snippet: &Snippet| engine.run(snippet).expect("it runs");
        let places = [
            (System::Protected, Bits::B16),
            (System::Protected, Bits::B32),
            (System::V86, Bits::B16),
            (System::Real, Bits::B16),
        ];
        for (system, bits) in places {
            let increment = Snippet::under(system, bits, vec![0x40]);
            let ending = run(&increment);
            assert!(ending.is_complete(&increment), "{kind:?} {system:?}: {:?}", ending.end);
            assert_eq!((ending.gpr[0], ending.selectors), (1, increment.selectors));
        }
        // PUSHF is the kernel's business in virtual-8086 mode, unless IOPL is 3.
        let mut push = Snippet::under(System::V86, Bits::B16, vec![0x9c]);
        assert!(matches!(run(&push).end, End::Exception { vector: 13, .. }));
        push.rflags |= 3 << 12;
        assert!(run(&push).is_complete(&push));
        // INT 21h; then a store to low memory, which the next snippet must not see.
        let int = run(&Snippet::under(System::Real, Bits::B16, vec![0xcd, 0x21]));
        assert!(matches!(int.end, End::Exception { vector: 0x21, .. }), "{:?}", int.end);
        assert_eq!(int.rip, 2);
        let mut store = Snippet::under(System::Real, Bits::B16, vec![0xc6, 6, 0, 5, 0x77]);
        store.selectors[3] = 0;
        assert!(run(&store).changed > 0);
        let mut load = Snippet::under(System::Real, Bits::B16, vec![0xa0, 0, 5]);
        load.selectors[3] = 0;
        assert_eq!(run(&load).gpr[0], 0, "{kind:?}");
    }
}
