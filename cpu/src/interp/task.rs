//! Hardware task switches.
//!
//! Problem: JMP, CALL, IRET, and events through task gates may replace nearly all registers by those of
//! a task state segment. Scheme: one function, [`Interp::switch`], told which of the ways it is. It reads
//! the new TSS whole, proves that both can be written, saves the old state, then commits; checks of
//! the new segments come after, and their exceptions belong to the new task. Invariants: a fault before
//! the commit leaves the old task untouched; there is exactly one busy TSS for each level of nesting.
//! Source: SDM vol. 3, "Task Management".

use super::Interp;
use super::far::Target;
use super::memory::null_segment;
use super::segment::{Descriptor, V86_ACCESS, is_null, kind};
use crate::env::{Memory, Privilege};
use crate::exception::{Outcome, Trap, Vector};
use crate::state::{Cr0, Rflags, Segment, sreg};

/// How the switch comes about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Jump,
    /// CALL, or an event: the old task will be returned to.
    Call,
    Return,
}

/// Field offsets of a TSS; the 16-bit one in the second column.
struct Layout {
    size: usize,
    word: usize,
    ip: usize,
    flags: usize,
    gpr: usize,
    seg: usize,
    segs: usize,
    ldt: usize,
}

const LAYOUT_32: Layout =
    Layout { size: 0x68, word: 4, ip: 0x20, flags: 0x24, gpr: 0x28, seg: 0x48, segs: 6, ldt: 0x60 };
const LAYOUT_16: Layout =
    Layout { size: 0x2c, word: 2, ip: 0x0e, flags: 0x10, gpr: 0x12, seg: 0x22, segs: 4, ldt: 0x2a };
/// CR3 in a 32-bit TSS.
const CR3: usize = 0x1c;
/// The debug trap flag's byte in a 32-bit TSS.
const DEBUG_TRAP: usize = 0x64;
/// DR6.BT: the trap came from a task switch.
const DR6_BT: u32 = 1 << 15;
/// DR7's local enable bits.
const DR7_LOCAL: u64 = 0x155;

fn layout(tss_type: u32) -> &'static Layout {
    if tss_type & 8 != 0 { &LAYOUT_32 } else { &LAYOUT_16 }
}

/// Reads a field of a TSS image.
fn field(image: &[u8], at: usize, bytes: usize) -> u64 {
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(&image[at..at + bytes]);
    u64::from_le_bytes(value)
}

fn code_with(trap: fn(u16) -> Trap, selector: u16, ext: u32) -> Trap {
    match trap(selector) {
        Trap::Exception(e) => Trap::with_code(e.vector, e.error_code | ext),
        Trap::Exit => Trap::Exit,
    }
}

impl<M: Memory> Interp<M> {
    /// JMP or CALL (`nested`) to a TSS selector.
    pub(super) fn switch_by_transfer(&mut self, selector: u16, nested: bool) -> Outcome {
        let way = if nested { Way::Call } else { Way::Jump };
        self.switch(selector, way, 0, self.state.rflags, Trap::gp)
    }

    /// An event through a task gate.
    pub(super) fn switch_by_gate(&mut self, selector: u16, ext: u32, flags: u64) -> Outcome {
        self.switch(selector, Way::Call, ext, flags, Trap::gp)
    }

    /// IRET with NT set.
    pub(super) fn return_from_task(&mut self) -> Outcome {
        let link = self.load_system::<u16>(self.state.tr.base & 0xffff_ffff)?;
        self.switch(link, Way::Return, 0, self.state.rflags, Trap::ts)?;
        Err(Trap::Exit)
    }

    fn switch(
        &mut self,
        selector: u16,
        way: Way,
        ext: u32,
        flags: u64,
        refused: fn(u16) -> Trap,
    ) -> Outcome {
        let bad = code_with(refused, selector, ext);
        if selector & 4 != 0 || is_null(selector) {
            return Err(bad);
        }
        let mut descriptor = self.descriptor(selector)?.ok_or(bad)?;
        let busy = way == Way::Return;
        let fits = match descriptor.kind() {
            kind::TSS | kind::TSS_16 => !busy,
            kind::TSS_BUSY | kind::TSS_16_BUSY => busy,
            _ => false,
        };
        if !descriptor.is_system() || !fits {
            return Err(bad);
        }
        if !descriptor.is_present() {
            return Err(code_with(Trap::np, selector, ext));
        }
        let segment = descriptor.segment();
        let new = layout(descriptor.kind());
        if (segment.limit as usize) < new.size - 1 {
            return Err(code_with(Trap::ts, selector, ext));
        }
        let mut image = [0; LAYOUT_32.size];
        self.read_system(segment.base, &mut image[..new.size])?;
        if way == Way::Call {
            self.probe(segment.base, 2, Privilege::Supervisor)?;
        }
        self.save_task(way, flags)?;

        let old = self.state.tr;
        if way != Way::Call {
            self.set_busy(old.selector, false)?;
        }
        if way == Way::Call {
            self.store_system(segment.base, old.selector)?;
        }
        if way != Way::Return {
            self.set_type_bit(&mut descriptor, 2)?;
        }
        // From here on exceptions are the new task's.
        self.task_switched = true;
        self.commit_task(&descriptor, new, &image, way)?;
        self.load_task_segments(new, &image, ext)?;
        if new.word == 4 && image[DEBUG_TRAP] & 1 != 0 {
            self.state.pending_debug |= DR6_BT;
        }
        self.task_switched = false;
        Ok(())
    }

    /// Writes the outgoing task's registers to its TSS.
    fn save_task(&mut self, way: Way, flags: u64) -> Outcome {
        let tr = self.state.tr;
        let old = layout(tr.access & 0xf);
        let mut image = [0; LAYOUT_32.size];
        let at = tr.base;
        self.read_system(at, &mut image[..old.size])?;
        let mut flags = flags;
        if way == Way::Return {
            flags &= !Rflags::NT.bits();
        }
        let mut set = |at: usize, bytes: usize, value: u64| {
            image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        set(old.ip, old.word, self.state.rip);
        set(old.flags, old.word, flags);
        for r in 0..8 {
            set(old.gpr + r * old.word, old.word, self.state.gpr[r]);
        }
        for s in 0..old.segs {
            set(old.seg + s * old.word, 2, u64::from(self.state.seg[s].selector));
        }
        // Only the dynamic fields are written: from IP to the last segment.
        let end = old.seg + old.segs * old.word;
        let from = at.wrapping_add(old.ip as u64);
        self.write_system(from, &image[old.ip..end])
    }

    /// Sets or clears the busy bit of a TSS descriptor in the GDT.
    fn set_busy(&mut self, selector: u16, busy: bool) -> Outcome {
        if let Some(mut descriptor) = self.descriptor(selector)? {
            if busy {
                return self.set_type_bit(&mut descriptor, 2);
            }
            let byte = (descriptor.raw >> 40) as u8 & !2;
            self.store_system(self.wrap(descriptor.la.wrapping_add(5)), byte)?;
        }
        Ok(())
    }

    /// Loads everything but the segments.
    fn commit_task(
        &mut self,
        descriptor: &Descriptor,
        new: &Layout,
        image: &[u8],
        way: Way,
    ) -> Outcome {
        let mut tr = descriptor.segment();
        tr.access |= 2;
        self.state.tr = tr;
        self.state.cr0 |= Cr0::TS.bits();
        self.state.dr[7] &= !DR7_LOCAL;
        let mut flags = field(image, new.flags, new.word) & Rflags::all().bits();
        if way == Way::Call {
            flags |= Rflags::NT.bits();
        }
        self.state.rflags = flags | Rflags::FIXED.bits();
        self.state.rip = field(image, new.ip, new.word);
        for r in 0..8 {
            let value = field(image, new.gpr + r * new.word, new.word);
            // A 16-bit TSS leaves the upper halves undefined; processors set them to ones.
            self.state.gpr[r] = if new.word == 2 { value | 0xffff_0000 } else { value };
        }
        if new.word == 4 && self.state.cr0(Cr0::PG) {
            self.switch_cr3(field(image, CR3, 4))?;
        }
        Ok(())
    }

    /// Loads LDTR and the segment registers of the new task.
    fn load_task_segments(&mut self, new: &Layout, image: &[u8], ext: u32) -> Outcome {
        // Selectors first: an exception shows them all.
        let selectors: [u16; 6] = std::array::from_fn(|s| {
            if s < new.segs { field(image, new.seg + s * new.word, 2) as u16 } else { 0 }
        });
        let v86 = self.state.flag(Rflags::VM);
        for (s, &selector) in selectors.iter().enumerate() {
            self.state.seg[s] =
                if v86 { Segment::real(selector, V86_ACCESS) } else { null_segment(selector) };
        }
        let ldt = field(image, new.ldt, 2) as u16;
        self.state.ldtr = null_segment(ldt);
        self.state.cpl = if v86 { 3 } else { (selectors[sreg::CS] & 3) as u8 };
        self.refresh();
        self.new_segments(&selectors, ldt, v86).map_err(|trap| match trap {
            Trap::Exception(e) if e.vector != Vector::PageFault => {
                Trap::with_code(e.vector, e.error_code | ext)
            }
            other => other,
        })
    }

    fn new_segments(&mut self, selectors: &[u16; 6], ldt: u16, v86: bool) -> Outcome {
        if !is_null(ldt) {
            self.state.ldtr = self.ldt_segment(ldt, Trap::ts, Trap::ts)?;
        }
        if v86 {
            return Ok(());
        }
        let cpl = self.state.cpl;
        let mut target = self.new_code_segment(selectors[sreg::CS], cpl)?;
        self.commit_target(&mut target, cpl)?;
        let ss = self.stack_segment(selectors[sreg::SS], cpl, Trap::ts)?;
        self.state.seg[sreg::SS] = ss;
        for register in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
            let selector = selectors[register];
            let segment = self.data_segment(selector).map_err(|trap| match trap {
                Trap::Exception(e) if e.vector == Vector::GeneralProtection => Trap::ts(selector),
                other => other,
            })?;
            self.state.seg[register] = segment;
        }
        self.refresh();
        let limit = u64::from(self.state.seg[sreg::CS].limit);
        if self.state.rip > limit { Err(Trap::gp0()) } else { Ok(()) }
    }

    /// Checks CS of the new task.
    fn new_code_segment(&mut self, selector: u16, cpl: u8) -> Outcome<Target> {
        let bad = Trap::ts(selector);
        if is_null(selector) {
            return Err(bad);
        }
        let descriptor = self.descriptor(selector)?.ok_or(bad)?;
        let segment = descriptor.segment();
        let level =
            if segment.is_conforming() { segment.dpl() <= cpl } else { segment.dpl() == cpl };
        if !segment.is_code() || !level {
            return Err(bad);
        }
        if !segment.is_present() {
            return Err(Trap::np(selector));
        }
        Ok(Target::new(descriptor))
    }
}
