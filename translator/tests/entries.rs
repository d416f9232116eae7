//! What blocks are made of: where one may be entered in its middle (nowhere that it relies on what it has kept since
//! earlier), which instructions stay locked, and what becomes of loops.

use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, ah, byte_ptr, dword_ptr, eax, ebx, ecx, edx, esp, qword_ptr, r10,
    rax, rbx, rcx, rdx, rsi, rsp, st0, st1, xmm0, xmm1, xmmword_ptr,
};
use iced_x86::{Decoder, DecoderOptions, IcedError, Instruction, Mnemonic, OpKind};
use xenolith_codecache::cache::Link;
use xenolith_translator::emit::{Frame, Page, Routines, Site, Translation, Translator};
use xenolith_translator::host::Host;
use xenolith_translator::mode::{Loads, Mode};
use xenolith_translator::plan::Limits;

const RIP: u64 = 0x40_0000;

/// What is asked of a block.
#[derive(Clone, Copy, Default)]
struct Wanted {
    shadow: bool,
    unlocks: bool,
    unrolls: bool,
    counts: bool,
    /// Flat 32-bit code instead of 64-bit code.
    narrow: bool,
    /// The code ends where its page does.
    ends_page: bool,
    /// The guest's processor has neither TZCNT nor LZCNT.
    old: bool,
}

/// A block of user code.
fn block(
    wanted: Wanted,
    write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Translation {
    let Wanted { shadow, unlocks, unrolls, counts, narrow, ends_page, old } = wanted;
    let bits = if narrow { 32 } else { 64 };
    let mut asm = CodeAssembler::new(bits).expect("such code");
    write(&mut asm).expect("instructions");
    let code = asm.assemble(RIP).expect("code");
    let rip = if ends_page { RIP + 0x1000 - code.len() as u64 } else { RIP };
    let code = asm.assemble(rip).expect("the same code");
    let mode = Mode {
        bits: bits as u8,
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
        rip,
        page: Page { la: RIP, id: 1 },
        second: None,
        code_base: 0,
        host: Host { bmi2: true, ..Host::OLD },
        unlocks,
    };
    let limits = Limits {
        start: None,
        length_max: 64,
        allowed: &|_: &Instruction| true,
        decoder_options: if old {
            DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD
        } else {
            DecoderOptions::NONE
        },
        windows: true,
        counts,
        unrolls,
        looks_up: &|_: &Instruction| false,
        code_limit: u64::MAX,
    };
    let block = Translator::default().translate(frame, &code, &limits).expect("a block");
    block.expect("instructions that have blocks")
}

/// For each instruction, whether its block may be entered there.
fn entries(shadow: bool, write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<bool> {
    block(Wanted { shadow, ..Wanted::default() }, write)
        .map
        .iter()
        .map(|entry| entry.enters)
        .collect()
}

/// For each instruction but the last, whether its host code has a locked one.
fn locked(unlocks: bool, write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<bool> {
    let block = block(Wanted { shadow: true, unlocks, ..Wanted::default() }, write);
    let is_locked = |code: &[u8]| {
        Decoder::new(64, code, DecoderOptions::NONE).iter().any(|insn| {
            let swaps = insn.mnemonic() == Mnemonic::Xchg && insn.op0_kind() == OpKind::Memory;
            insn.has_lock_prefix() || swaps
        })
    };
    let starts: Vec<usize> = block.map.iter().map(|entry| entry.host as usize).collect();
    starts.windows(2).map(|pair| is_locked(&block.code[pair[0]..pair[1]])).collect()
}

#[test]
fn without_others_only_fences_are_locked() {
    let code = |asm: &mut CodeAssembler| {
        asm.lock().inc(dword_ptr(rsi))?;
        asm.lock().xadd(qword_ptr(rbx + rcx), rdx)?;
        asm.lock().cmpxchg(dword_ptr(r10), ecx)?;
        asm.xchg(dword_ptr(rsi), eax)?;
        asm.xchg(qword_ptr(rbx + rcx * 8 + 16), rdx)?;
        asm.lock().add(dword_ptr(rsp), 0)?;
        asm.lock().or(qword_ptr(rsp - 128), 0)?;
        asm.lock().and(dword_ptr(rsi), -1)?;
        asm.lock().add(dword_ptr(rsi), 1)?;
        asm.ret()
    };
    assert_eq!(locked(false, code), [true; 9]);
    let fences = [false, false, false, false, false, true, true, true, false];
    assert_eq!(locked(true, code), fences);
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

/// Whether a loop of one block looks up the windows of its accesses before the first round.
fn looks_ahead(write: impl Fn(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>) -> bool {
    let block = a_loop(Wanted { shadow: true, ..Wanted::default() }, write);
    block.again != block.polled
}

/// A block with a label at its beginning.
fn a_loop(
    wanted: Wanted,
    write: impl Fn(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>,
) -> Translation {
    block(wanted, |asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        write(asm, again)?;
        asm.ret()
    })
}

#[test]
fn loops_look_ahead_where_each_round_is_near_the_last() {
    assert!(looks_ahead(|asm, again| {
        asm.mov(eax, dword_ptr(rsi))?;
        asm.add(qword_ptr(rbx + rcx * 8), rdx)?;
        asm.add(rsi, 4)?;
        asm.inc(rcx)?;
        asm.jne(again)
    }));
    // What comes from memory may lead anywhere.
    assert!(!looks_ahead(|asm, again| {
        asm.mov(rsi, qword_ptr(rsi))?;
        asm.dec(rcx)?;
        asm.jne(again)
    }));
    // Too far in a round.
    assert!(!looks_ahead(|asm, again| {
        asm.mov(eax, dword_ptr(rsi))?;
        asm.add(rsi, 0x10_0001)?;
        asm.dec(rcx)?;
        asm.jne(again)
    }));
    // It need not be accessed.
    assert!(!looks_ahead(|asm, again| {
        asm.vmaskmovps(xmm0, xmm1, xmmword_ptr(rsi))?;
        asm.add(rsi, 16)?;
        asm.dec(rcx)?;
        asm.jne(again)
    }));
    // What is left to Rust may change the windows.
    assert!(!looks_ahead(|asm, again| {
        asm.mov(eax, dword_ptr(rsi))?;
        asm.cpuid()?;
        asm.dec(rcx)?;
        asm.jne(again)
    }));
}

#[test]
fn loops_at_work_are_made_of_several_rounds() {
    let busy = Wanted { shadow: true, unrolls: true, ..Wanted::default() };
    // Of each instruction of the host code its guest's address from the block's beginning; and how often the block looks
    // at the attention word or wants to be made again.
    let rounds = |wanted: Wanted, length: usize| {
        let block = a_loop(wanted, |asm, again| {
            asm.add(rdx, qword_ptr(rbx + rcx * 8))?;
            for _ in 3..length {
                asm.inc(rax)?;
            }
            asm.dec(rcx)?;
            asm.jne(again)
        });
        let guests: Vec<u16> = block.map.iter().map(|entry| entry.guest).collect();
        let starts = guests.iter().filter(|&&guest| guest == 0).count();
        // All but the first keep what was looked up before it.
        let enters: Vec<bool> = block.map.iter().map(|entry| entry.enters).collect();
        assert!(enters[0] && !enters[1..starts * length].contains(&true), "{enters:?}");
        assert!(block.map.is_sorted_by(|one, two| one.host < two.host));
        assert_eq!(guests.len(), starts * length + 1, "the RET comes once");
        let polls = |wants: bool| {
            let is_one =
                |site: &&Site| matches!(site, Site::Poll { unrolls, .. } if *unrolls == wants);
            block.sites.iter().filter(is_one).count()
        };
        (starts, polls(false), polls(true))
    };
    assert_eq!(rounds(busy, 3), (4, 2, 0));
    assert_eq!(rounds(busy, 40), (4, 2, 0));
    assert_eq!(rounds(busy, 60), (2, 2, 0));
    // One that hasn't been seen at work says that it could be.
    assert_eq!(rounds(Wanted { unrolls: false, ..busy }, 3), (1, 0, 2));
    // Where blocks count, each round looks whether it may go on.
    assert_eq!(rounds(Wanted { counts: true, ..busy }, 3), (1, 2, 0));
}

#[test]
fn flat_32_bit_code_is_copied_where_it_can_be() {
    let made = |write: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let wanted = Wanted { shadow: true, narrow: true, unlocks: true, ..Wanted::default() };
        let block = block(wanted, |asm| {
            write(asm)?;
            asm.ret()
        });
        block.code[block.map[0].host as usize..block.map[1].host as usize].to_vec()
    };
    assert_eq!(made(|asm| asm.add(eax, ecx)), [0x01, 0xc8]);
    assert_eq!(made(|asm| asm.add(eax, dword_ptr(ebx + 8))), [0x64, 0x67, 0x03, 0x43, 0x08]);
    assert_eq!(
        made(|asm| asm.mov(byte_ptr(esp + ecx * 4), ah)),
        [0x64, 0x67, 0x88, 0x24, 0x8c],
        "no REX prefix: AH stays what it is"
    );
    // One byte here, a prefix there.
    assert_eq!(made(|asm| asm.inc(ecx)), [0xff, 0xc1]);
    // In its own bytes that would be relative to RIP there.
    assert_eq!(
        made(|asm| asm.add(eax, dword_ptr(0x1234_5678))),
        [0x64, 0x67, 0x03, 0x04, 0x25, 0x78, 0x56, 0x34, 0x12]
    );
    // With one processor nothing is locked.
    assert_eq!(made(|asm| asm.lock().inc(dword_ptr(ebx))), [0x64, 0x67, 0xff, 0x03]);
    // Bits of VEX that 32-bit code doesn't look at: VADDPS XMM0, XMM1, [EBX] with B as if it were XMM8 and above.
    assert_eq!(
        made(|asm| asm.db(&[0xc4, 0xc1, 0x70, 0x58, 0x03])),
        made(|asm| asm.vaddps(xmm0, xmm1, xmmword_ptr(ebx)))
    );
}

#[test]
fn what_follows_a_loop_in_another_page_is_guarded() {
    for unrolls in [false, true] {
        let wanted = Wanted { shadow: true, unrolls, ends_page: true, ..Wanted::default() };
        let block = block(wanted, |asm| {
            let mut again = asm.create_label();
            asm.set_label(&mut again)?;
            asm.add(rdx, qword_ptr(rbx + rcx * 8))?;
            asm.dec(rcx)?;
            asm.jne(again)
        });
        let links: Vec<(u64, Link)> = block
            .sites
            .iter()
            .filter_map(|site| match *site {
                Site::Chain { target, link, .. } => Some((target, link)),
                _ => None,
            })
            .collect();
        let start = RIP + 0x1000 - block.bytes as u64;
        assert_eq!(links, [(start, Link::Again), (RIP + 0x1000, Link::Guarded)]);
    }
}

#[test]
fn prefixes_that_make_another_instruction_of_it_on_the_host_are_left_out() {
    for narrow in [false, true] {
        for old in [false, true] {
            // With a register and with memory.
            for (opcode, operand) in [(0xbc, 0xc1), (0xbd, 0xc1), (0xbc, 0x03), (0xbd, 0x03)] {
                let wanted = Wanted { shadow: true, narrow, old, ..Wanted::default() };
                let block = block(wanted, |asm| {
                    asm.db(&[0xf3, 0x0f, opcode, operand])?;
                    asm.ret()
                });
                let code = &block.code[block.map[0].host as usize..block.map[1].host as usize];
                let mut insns = Decoder::new(64, code, DecoderOptions::NONE);
                let found: Vec<Mnemonic> = insns.iter().map(|insn| insn.mnemonic()).collect();
                let (scan, count) = match opcode {
                    0xbc => (Mnemonic::Bsf, Mnemonic::Tzcnt),
                    _ => (Mnemonic::Bsr, Mnemonic::Lzcnt),
                };
                let (wanted, other) = if old { (scan, count) } else { (count, scan) };
                assert!(found.contains(&wanted) && !found.contains(&other), "{found:?}");
            }
        }
    }
}
