//! Loops of one block: what their accesses share from one round to the next, and how many rounds are made of them.
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

/// Copies of a loop's steps at most, and steps of them all.
const ROUNDS_MAX: usize = 4;
const ROUND_STEPS_MAX: usize = 160;

/// A loop of one block.
#[derive(Debug, Default)]
pub struct Loop {
    /// Which step jumps back; nothing if the block is no loop of simple steps.
    pub edge: Option<usize>,
    /// Rounds that are made one after the other, so that only every so many jump back and look at the world.
    pub rounds: usize,
    /// Steps whose accesses are looked up before the loop.
    pub ahead: Vec<usize>,
}

impl Loop {
    /// Whether the step is in a loop that keeps what is looked up before it.
    pub fn keeps_in(&self, step: usize) -> bool {
        !self.ahead.is_empty() && self.edge.is_some_and(|edge| step <= edge)
    }
}

/// Finds the loop of a block at `rip`; `unrolls` says whether it is worth several rounds.
pub fn find_loop(mode: Mode, rip: u64, steps: &[Step], unrolls: bool, found: &mut Loop) {
    found.edge = edge(mode, rip, steps);
    found.rounds = match found.edge {
        Some(edge) if unrolls => (ROUND_STEPS_MAX / (edge + 1)).clamp(1, ROUNDS_MAX),
        _ => 1,
    };
}

/// The step that jumps back to the block's beginning, if those up to it are simple.
fn edge(mode: Mode, rip: u64, steps: &[Step]) -> Option<usize> {
    let (kind, bits) = match mode.bits {
        64 if mode.shadow => (OpKind::NearBranch64, u64::MAX),
        32 if mode.shadow => (OpKind::NearBranch32, u64::from(u32::MAX)),
        _ => return None,
    };
    for (number, Step { insn, class, .. }) in steps.iter().enumerate() {
        match class {
            Class::Same | Class::Vector(_) => {}
            Class::Branch | Class::Jump => {
                if insn.op0_kind() == kind && insn.near_branch_target() == rip & bits {
                    return Some(number);
                }
            }
            _ => break,
        }
    }
    None
}

/// What makes an address, but for its displacement.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    base: Register,
    index: Register,
    scale: u32,
}

/// Makes what can be looked up ahead of a loop windows of its own.
pub fn hoist(mode: Mode, steps: &mut [Step], windows: &mut Vec<Window>, found: &mut Loop) {
    let Some(edge) = found.edge else { return };
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
