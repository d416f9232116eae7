//! What the accesses of a loop share from one round to the next.
//!
//! Problem: with shadow windows each access looks for its window, which costs a short loop more than its own
//! instructions. Scheme: where a block jumps back to its beginning, the registers that make an access's address often move
//! by a constant each round, or not at all. What is to be added to it for its window is then looked up before the loop
//! only, and kept as that of a [`Window`](crate::plan::Window) is. Invariants: such an access is made in every round, so
//! that it can't leave the room around its window, which faults, without being made there; one that may skip
//! memory (a masked one) is no such access. The loop is entered by looking up: what is kept is good for rounds that follow
//! each other.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::area::WINDOWS_MAX;
use crate::classify::Class;
use crate::mode::Mode;
use crate::plan::{Part, Step, Values, Window, follow, is_hint};

/// Bytes that an address may move by in a round, and displacements that share a window may be apart: together much less
/// than there is around a window.
const MOVED_MAX: i64 = 1 << 20;
const APART_MAX: i64 = 1 << 30;

/// A loop of one block.
#[derive(Debug, Default)]
pub struct Loop {
    /// Which step jumps back; nothing if there is no such loop, or nothing to be kept in it.
    pub edge: Option<usize>,
    /// Steps whose accesses are looked up before the loop.
    pub ahead: Vec<usize>,
}

/// What makes an address, but for its displacement.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    base: Register,
    index: Register,
    scale: u32,
}

/// Finds the loop of a block at `rip`, and makes what is looked up ahead a window of its own.
pub fn hoist(
    mode: Mode,
    rip: u64,
    steps: &mut [Step],
    windows: &mut Vec<Window>,
    found: &mut Loop,
) {
    found.edge = None;
    found.ahead.clear();
    let leads_back = |step: &Step| {
        matches!(step.class, Class::Branch | Class::Jump)
            && step.insn.op0_kind() == OpKind::NearBranch64
            && step.insn.near_branch_target() == rip
    };
    let Some(edge) = steps.iter().position(leads_back) else { return };
    let is_simple = |step: &Step| {
        matches!(step.class, Class::Same | Class::Vector(_) | Class::Branch | Class::Jump)
    };
    if mode.bits < 64 || !mode.shadow || !steps[..=edge].iter().all(is_simple) {
        return;
    }
    let mut values = Values::new();
    for step in &steps[..=edge] {
        follow(mode, step, &mut values);
    }
    let moves_little = |register: Register, scale: u32| {
        register == Register::None
            || register == Register::RIP
            || register.is_gpr64() && {
                let moved = values.moved(register.number());
                moved.is_some_and(|by| by.unsigned_abs() <= (MOVED_MAX / i64::from(scale)) as u64)
            }
    };
    let mut kept: Vec<(Shape, i64, u8)> = Vec::new();
    for (number, step) in steps.iter_mut().enumerate().take(edge + 1) {
        let insn = step.insn;
        if step.looks_up || !always_accesses(&insn) {
            continue;
        }
        let shape = Shape {
            base: insn.memory_base(),
            index: insn.memory_index(),
            scale: insn.memory_index_scale(),
        };
        if !moves_little(shape.base, 1) || !moves_little(shape.index, shape.scale) {
            continue;
        }
        let at = insn.memory_displacement64().cast_signed();
        let shares = |&&(other, there, _): &&(Shape, i64, u8)| {
            other == shape && there.checked_sub(at).is_some_and(|by| by.abs() <= APART_MAX)
        };
        let window = match kept.iter().find(shares) {
            Some(&(.., window)) => window,
            None if windows.len() < WINDOWS_MAX => {
                let window = windows.len() as u8;
                windows.push(Window { below: 0, bytes: 0, write: false });
                kept.push((shape, at, window));
                found.ahead.push(number);
                window
            }
            None => continue,
        };
        step.part = Some(Part { window, first: false });
    }
    if kept.is_empty() {
        return;
    }
    found.edge = Some(edge);
    // Windows that began with an access that is now another's.
    let first_new = windows.len() - kept.len();
    for window in 0..first_new as u8 {
        let mut parts = steps.iter_mut().filter_map(|step| step.part.as_mut());
        if let Some(part) = parts.find(|part| part.window == window) {
            part.first = true;
        }
    }
}

/// The instruction accesses the memory that it names, whatever its operands are.
fn always_accesses(insn: &Instruction) -> bool {
    use Mnemonic as N;
    let has_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    let skips = matches!(
        insn.mnemonic(),
        N::Lea
            | N::Maskmovq
            | N::Maskmovdqu
            | N::Vmaskmovdqu
            | N::Vmaskmovps
            | N::Vmaskmovpd
            | N::Vpmaskmovd
            | N::Vpmaskmovq
    );
    let segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
    has_memory && !skips && !segment && !is_hint(insn)
}
