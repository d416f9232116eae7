//! The first difference, for a person.
//!
//! Problem: whoever debugs wants the wrong instruction, not two dumps. Scheme: plain data that the two
//! kinds of lockstep fill in, and one text. When a step is a whole block, the instruction that last wrote
//! what differs is named first. Pure.

use std::collections::VecDeque;
use std::fmt;

use iced_x86::{Formatter, Instruction, InstructionInfoFactory, NasmFormatter, OpAccess};
use xenolith_cpu::CpuState;
use xenolith_cpu::state::Rflags;

use super::compare::{Field, differing, listing};
use super::watch::{SHOWN, Touch};

/// Blocks shown.
const BLOCKS: usize = 32;
/// Rows of memory shown.
const ROWS_MAX: usize = 24;

/// Straight-line code that was executed. Ends where RIP doesn't go on within 15 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    pub rip: u64,
    pub instructions: u64,
}

/// The last blocks.
#[derive(Clone, Debug, Default)]
pub struct History {
    blocks: VecDeque<BlockRun>,
}

impl History {
    /// An instruction at `from` has led to `to`.
    pub fn note(&mut self, from: u64, to: u64) {
        match self.blocks.back_mut() {
            Some(block) => block.instructions += 1,
            None => self.blocks.push_back(BlockRun { rip: from, instructions: 1 }),
        }
        if !(1..=15).contains(&to.wrapping_sub(from)) {
            if self.blocks.len() > BLOCKS {
                self.blocks.pop_front();
            }
            self.blocks.push_back(BlockRun { rip: to, instructions: 0 });
        }
    }
}

/// One instruction of the step that went wrong.
#[derive(Clone, Debug)]
pub struct Executed {
    pub rip: u64,
    pub bytes: Vec<u8>,
    pub insn: Instruction,
    /// Its first touch in the step's list.
    pub touches_from: usize,
}

impl Executed {
    /// Bytes and disassembly.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        NasmFormatter::new().format(&self.insn, &mut text);
        let bytes: Vec<_> = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:016x}  {:<30}  {text}", self.rip, bytes.join(" "))
    }
}

/// A place in memory with what each side has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRow {
    pub touch: Touch,
    pub after: [[u8; SHOWN]; 2],
}

/// The first difference of two engines.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Number of the step that went wrong, from 1. A step is an instruction (a faulting one included); of
    /// the translator, a block.
    pub step: u64,
    /// Instructions that had been retired before it.
    pub retired: u64,
    pub names: [&'static str; 2],
    /// Instructions of the step.
    pub executed: Vec<Executed>,
    pub before: CpuState,
    pub after: [CpuState; 2],
    pub fields: Vec<Field>,
    pub memory: Vec<MemoryRow>,
    pub history: History,
    /// What registers and memory don't show.
    pub notes: Vec<String>,
}

impl Difference {
    /// The instruction that most probably went wrong: the last that wrote what differs, in the step.
    #[must_use]
    pub fn instruction(&self) -> Option<&Executed> {
        let mut factory = InstructionInfoFactory::new();
        let wrong_flags = (self.after[0].rflags ^ self.after[1].rflags) & Rflags::STATUS.bits();
        let names: Vec<_> = self.fields.iter().map(|field| field.name.as_str()).collect();
        let mut wrote = |it: &Executed| {
            let info = factory.info(&it.insn);
            let written = info.used_registers().iter().any(|used| {
                let full = format!("{:?}", used.register().full_register());
                !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
                    && names.contains(&full.as_str())
            });
            written || wrong_flags != 0 && it.insn.rflags_modified() != 0
        };
        let by_register = self.executed.iter().rposition(&mut wrote);
        let wrong_row = |row: &MemoryRow| row.after[0] != row.after[1];
        let by_memory = self.memory.iter().position(wrong_row).map(|row| {
            self.executed.iter().rposition(|it| it.touches_from <= row).unwrap_or_default()
        });
        // A wrong store comes of its own; a wrong register may be loaded from it.
        by_memory.or(by_register).map_or(self.executed.last(), |n| self.executed.get(n))
    }

    /// RIP of [`Difference::instruction`].
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.instruction().map_or(self.before.rip, |it| it.rip)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.names;
        writeln!(
            f,
            "first difference: {a} and {b}, step {}, after {} instructions",
            self.step, self.retired
        )?;
        if let Some(it) = self.instruction() {
            writeln!(f, "  {}", it.text())?;
        }
        if self.executed.len() > 1 {
            writeln!(f, "the step (what differs was last written by the instruction above):")?;
            for it in &self.executed {
                writeln!(f, "  {}", it.text())?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        self.write_registers(f)?;
        if !self.memory.is_empty() {
            writeln!(f, "memory touched (* differs): linear, physical, before, {a}, {b}")?;
        }
        // Those that differ first, if not all can be shown.
        let mut rows: Vec<_> = self.memory.iter().collect();
        rows.sort_by_key(|row| row.after[0] == row.after[1]);
        for row in rows.iter().take(ROWS_MAX) {
            let MemoryRow { touch, after } = row;
            let mark = if after[0] == after[1] { ' ' } else { '*' };
            let way = if touch.write { 'w' } else { 'r' };
            let [x, y] = after.map(|bytes| dump(&bytes));
            writeln!(f, "{mark} {way} {:016x} {:#x}", touch.gva, touch.gpa)?;
            writeln!(f, "      {}\n      {x}\n      {y}", dump(&touch.before))?;
        }
        if rows.len() > ROWS_MAX {
            writeln!(f, "  and {} more", rows.len() - ROWS_MAX)?;
        }
        writeln!(f, "the last blocks before, oldest first: address, instructions")?;
        for block in &self.history.blocks {
            writeln!(f, "  {:016x} {:6}", block.rip, block.instructions)?;
        }
        Ok(())
    }
}

impl Difference {
    fn write_registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// RIP, the general registers and RFLAGS are always shown.
        const ALWAYS: usize = 18;
        let [a, b] = self.names;
        writeln!(f, "registers (* differs): before, {a}, {b}")?;
        let before = listing(&self.before);
        let after = self.after.each_ref().map(listing);
        for (n, (name, old)) in before.iter().enumerate() {
            let [x, y] = [&after[0][n].1, &after[1][n].1];
            if n >= ALWAYS && x == y && x == old {
                continue;
            }
            let mark = if x == y { ' ' } else { '*' };
            if old.len() + x.len() + y.len() <= 60 {
                writeln!(f, "{mark} {name:<8} {old:<18} {x:<18} {y}")?;
            } else {
                writeln!(f, "{mark} {name:<8} {old}\n{:11}{x}\n{:11}{y}", "", "")?;
            }
        }
        Ok(())
    }

    /// Fills in what follows from the states.
    pub(super) fn compared(mut self) -> Self {
        self.fields = differing(&self.after[0], &self.after[1]);
        self
    }
}

fn dump(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
