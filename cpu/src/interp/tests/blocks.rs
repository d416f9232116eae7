//! Blocks: where they end, what they count, and code that changes under them.

use iced_x86::code_asm::{byte_ptr, registers as r};

use super::bench::{Bench, CODE};
use crate::interp::Exit;
use crate::state::reg::{RAX, RBX, RCX};
use crate::state::sreg;

/// A loop whose block goes on past a branch that is taken every other time: 7 or 6 instructions a turn.
fn zigzag(b: &mut Bench) {
    b.code(|a| {
        let (mut again, mut skip) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(r::eax)?;
        a.test(r::al, 1)?;
        a.jz(skip)?;
        a.inc(r::ebx)?;
        a.set_label(&mut skip)?;
        a.nop()?;
        a.dec(r::ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
}

#[test]
fn a_branch_in_the_middle_of_a_block_counts_as_one() {
    for bits in [32, 64] {
        let mut b = Bench::new(bits);
        zigzag(&mut b);
        b.vm.state.gpr[RCX] = 10;
        assert_eq!(b.run(), Exit::Halted);
        let cpu = &b.vm.state;
        assert_eq!((cpu.gpr[RAX], cpu.gpr[RBX], cpu.gpr[RCX]), (10, 5, 0));
        // Five turns of each length, and the HLT.
        assert_eq!(cpu.retired, 5 * 7 + 5 * 6 + 1);
    }
}

#[test]
fn a_budget_is_kept_to_the_instruction() {
    let mut whole = Bench::new(64);
    zigzag(&mut whole);
    whole.vm.state.gpr[RCX] = 10;
    whole.run();
    for budget in 1..66 {
        let mut b = Bench::new(64);
        zigzag(&mut b);
        b.vm.state.gpr[RCX] = 10;
        let mut exit = Exit::Budget;
        while exit == Exit::Budget {
            let before = b.vm.state.retired;
            exit = b.vm.run(budget);
            if exit == Exit::Budget {
                assert_eq!(b.vm.state.retired - before, budget);
            }
        }
        assert_eq!(b.vm.state.gpr, whole.vm.state.gpr, "in steps of {budget}");
        assert_eq!(b.vm.state.retired, whole.vm.state.retired);
    }
}

#[test]
fn a_loop_of_one_block_sees_its_own_change() {
    let mut b = Bench::new(32);
    // The third turn turns INC EBX into DEC EBX, which lies ahead in the same block.
    b.code(|a| {
        let (mut again, mut skip) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cmp(r::ecx, 8)?;
        a.jne(skip)?;
        a.mov(byte_ptr(CODE + 12), 0x4b)?;
        a.set_label(&mut skip)?;
        a.db(&[0x43])?;
        a.dec(r::ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let code = b.read_u32(CODE + 12);
    assert_eq!(code as u8, 0x43, "INC EBX isn't where the test thinks");
    b.vm.state.gpr[RCX] = 10;
    assert_eq!(b.run(), Exit::Halted);
    assert_eq!(b.vm.state.gpr[RBX] as u32, 2u32.wrapping_sub(8));
}

#[test]
fn a_branch_that_faults_is_not_taken() {
    let mut b = Bench::new(32);
    b.code(|a| {
        a.xor(r::eax, r::eax)?;
        a.jz(CODE + 0x200)
    });
    b.vm.state.seg[sreg::CS].limit = (CODE + 0x100) as u32;
    b.expect(13, 0, 2);
}
