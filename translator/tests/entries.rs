//! Where a block may be entered in its middle: nowhere that it relies on what it has kept since earlier.

use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ecx, edx, rbx, rsi, st0, st1};
use iced_x86::{DecoderOptions, IcedError, Instruction};
use xenolith_translator::emit::{Frame, Page, Routines, Translator};
use xenolith_translator::host::Host;
use xenolith_translator::mode::{Loads, Mode};
use xenolith_translator::plan::Limits;

const RIP: u64 = 0x40_0000;

/// For each instruction, whether its block may be entered there.
fn entries(shadow: bool, write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<bool> {
    let mut asm = CodeAssembler::new(64).expect("64-bit code");
    write(&mut asm).expect("instructions");
    let code = asm.assemble(RIP).expect("code");
    let mode = Mode {
        bits: 64,
        privilege: 0,
        vector: 2,
        x87: true,
        shadow,
        ring0: false,
        time: true,
        segmented: false,
        stack16: false,
        expands_down: false,
        loads: Loads::Descriptor,
        armed: false,
    };
    let frame = Frame {
        base: 0x7000_0000,
        routines: Routines { exit: 0x6fff_0000, ..Routines::default() },
        first_site: 0,
        mode,
        rip: RIP,
        page: Page { la: RIP, id: 1 },
        second: None,
        code_base: 0,
        host: Host { bmi2: true, ..Host::OLD },
    };
    let limits = Limits {
        start: None,
        length_max: 64,
        allowed: &|_: &Instruction| true,
        decoder_options: DecoderOptions::NONE,
        windows: true,
        counts: false,
        looks_up: &|_: &Instruction| false,
        code_limit: u64::MAX,
    };
    let block = Translator::default().translate(frame, &code, &limits).expect("a block");
    block.expect("instructions that have blocks").map.iter().map(|entry| entry.enters).collect()
}

#[test]
fn not_while_an_addend_is_kept() {
    for shadow in [false, true] {
        let found = entries(shadow, |asm| {
            asm.mov(eax, dword_ptr(rsi))?;
            asm.mov(ecx, dword_ptr(rbx))?;
            asm.inc(edx)?;
            asm.mov(dword_ptr(rbx + 8), ecx)?;
            asm.mov(eax, dword_ptr(rsi + 0x4000))?;
            asm.ret()
        });
        // Behind the access that begins a window, up to its last.
        let wide = entries(shadow, |asm| {
            asm.mov(eax, dword_ptr(rbx))?;
            asm.ret()
        });
        assert_eq!(wide, [true, true]);
        let kept_by_rsi = shadow;
        assert_eq!(found[0..2], [true, !kept_by_rsi], "shadow {shadow}");
        assert_eq!(found[2..4], [false, false], "shadow {shadow}");
        assert_eq!(found[4..], [!kept_by_rsi, true], "shadow {shadow}");
    }
}

#[test]
fn not_while_x87_registers_are_the_hosts() {
    let found = entries(false, |asm| {
        asm.inc(eax)?;
        asm.fadd_2(st0, st1)?;
        asm.mov(ecx, dword_ptr(rbx))?;
        asm.ret()
    });
    assert_eq!(found, [true, true, false, false]);
}
