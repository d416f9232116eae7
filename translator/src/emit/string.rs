//! String instructions.
//!
//! Problem: a repeated one touches any number of pages, may fault in each iteration, and must then show how
//! far it has come. Scheme: if all that it touches lies in one page each of source and destination, and
//! the inline TLB has them, the host's own instruction does it, or a loop if there are few elements, on host
//! addresses: it can't fault, and takes no longer than a page does. SCASB does so to the end of its page. Anything else
//! is the interpreter's, which goes page by page. These accesses look into the inline TLB also where shadow windows are
//! used, so that index registers hold host addresses only while nothing can happen. In segmented code all that is
//! touched must also be within the segment, and below the end of a 16-bit address. The direction flag is clear in all modes that blocks are made for.
//! Invariants: count and index registers are changed by the host's instruction or the loop only; with a count of zero
//! nothing is looked at. Source: SDM vol. 2, "REP/REPE/REPZ/REPNE/REPNZ".

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic as N, OpKind, Register};
use xenolith_cpu::PAGE_SIZE;

use super::memory::{Borrowed, Check};
use super::place::Spot;
use super::{Emitter, R10, R11, RCX, Site, mask};
use crate::area::offset;
use crate::plan::Step;

const REPE: u8 = 0xf3;
const REPNE: u8 = 0xf2;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// The spill slot of the source's addend, or of the first value.
const KEPT: usize = 4;
/// Those of registers whose upper bits stay, and of the number of elements.
const OLD_RSI: usize = 1;
const OLD_RDI: usize = 2;
const COUNT: i32 = offset::spill(5);

/// The segment that an index register is used with.
fn segment_of(insn: &Instruction, index: u8) -> u8 {
    let segment = if index == RSI { insn.memory_segment() } else { Register::ES };
    segment.number() as u8
}

/// The index and count registers have 16 bits.
fn is_narrow(insn: &Instruction) -> bool {
    let kinds = [OpKind::MemorySegSI, OpKind::MemoryESDI];
    (0..insn.op_count()).any(|n| kinds.contains(&insn.op_kind(n)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    Load,
    Scan,
    Compare,
}

impl Operation {
    /// The operation, and the bytes of an element.
    fn of(insn: &Instruction) -> (Self, u8) {
        match insn.mnemonic() {
            N::Movsb => (Self::Move, 1),
            N::Movsw => (Self::Move, 2),
            N::Movsd => (Self::Move, 4),
            N::Movsq => (Self::Move, 8),
            N::Stosb => (Self::Store, 1),
            N::Stosw => (Self::Store, 2),
            N::Stosd => (Self::Store, 4),
            N::Stosq => (Self::Store, 8),
            N::Lodsb => (Self::Load, 1),
            N::Lodsw => (Self::Load, 2),
            N::Lodsd => (Self::Load, 4),
            N::Lodsq => (Self::Load, 8),
            N::Scasb => (Self::Scan, 1),
            N::Scasw => (Self::Scan, 2),
            N::Scasd => (Self::Scan, 4),
            N::Scasq => (Self::Scan, 8),
            N::Cmpsb => (Self::Compare, 1),
            N::Cmpsw => (Self::Compare, 2),
            N::Cmpsd => (Self::Compare, 4),
            _ => (Self::Compare, 8),
        }
    }

    fn has_source(self) -> bool {
        matches!(self, Self::Move | Self::Load | Self::Compare)
    }

    fn has_destination(self) -> bool {
        self != Self::Load
    }

    fn writes(self) -> bool {
        matches!(self, Self::Move | Self::Store)
    }

    /// The opcode for elements of more than a byte; that for bytes is one less.
    fn opcode(self) -> u8 {
        match self {
            Self::Move => 0xa5,
            Self::Compare => 0xa7,
            Self::Store => 0xab,
            Self::Load => 0xad,
            Self::Scan => 0xaf,
        }
    }
}

impl Emitter<'_> {
    pub(super) fn string(&mut self, step: &Step) {
        let (operation, size) = Operation::of(&step.insn);
        if step.insn.has_rep_prefix() || step.insn.has_repne_prefix() {
            self.repeated(step, operation, size);
        } else {
            self.single(step, operation, size);
        }
    }

    /// Looks up one element at an index register: after it `[r10 + r11]` is the host's.
    fn element(&mut self, step: &Step, index: u8, write: bool, size: u8, start: usize) {
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let spot = if self.segmented() {
            let segment = segment_of(&step.insn, index);
            Spot::Offset { segment, narrow: is_narrow(&step.insn) }
        } else {
            Spot::Linear
        };
        if is_narrow(&step.insn) {
            dynasm!(self.asm ; .arch x64 ; movzx Rd(R10), Rw(index));
        } else {
            dynasm!(self.asm ; .arch x64 ; mov Rq(R10), Rq(index));
        }
        self.check(Borrowed::SCRATCH, Check::one(step, rip, write, size, start, spot));
    }

    /// Adds to an index register.
    fn advance(&mut self, index: u8, by: u8, narrow: bool) {
        let by = i32::from(by);
        if narrow {
            // The bits above stay.
            dynasm!(self.asm ; .arch x64 ; lea r11d, [Rq(index) + by] ; mov Rw(index), r11w);
        } else if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea Rq(index), [Rq(index) + by]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea Rd(index), [Rq(index) + by]);
        }
    }

    fn single(&mut self, step: &Step, operation: Operation, size: u8) {
        let start = self.offset();
        // The first of two elements is loaded, and kept while the other is looked up.
        let first = match operation {
            Operation::Move => Some(RSI),
            Operation::Compare => Some(RDI),
            _ => None,
        };
        if let Some(index) = first {
            self.element(step, index, false, size, start);
            match size {
                1 => dynasm!(self.asm ; .arch x64 ; movzx r11d, BYTE [r10 + r11]),
                2 => dynasm!(self.asm ; .arch x64 ; movzx r11d, WORD [r10 + r11]),
                4 => dynasm!(self.asm ; .arch x64 ; mov r11d, [r10 + r11]),
                _ => dynasm!(self.asm ; .arch x64 ; mov r11, [r10 + r11]),
            }
            dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(KEPT)], r11);
        }
        let last = match operation {
            Operation::Load | Operation::Compare => RSI,
            _ => RDI,
        };
        self.element(step, last, operation.writes(), size, start);
        if first.is_some() {
            dynasm!(self.asm ; .arch x64
                ; lea r10, [r10 + r11]
                ; gs mov r11, [offset::spill(KEPT)]
            );
        }
        match (operation, size) {
            (Operation::Move, 1) => dynasm!(self.asm ; .arch x64 ; mov [r10], r11b),
            (Operation::Move, 2) => dynasm!(self.asm ; .arch x64 ; mov [r10], r11w),
            (Operation::Move, 4) => dynasm!(self.asm ; .arch x64 ; mov [r10], r11d),
            (Operation::Move, _) => dynasm!(self.asm ; .arch x64 ; mov [r10], r11),
            (Operation::Store, 1) => dynasm!(self.asm ; .arch x64 ; mov [r10 + r11], al),
            (Operation::Store, 2) => dynasm!(self.asm ; .arch x64 ; mov [r10 + r11], ax),
            (Operation::Store, 4) => dynasm!(self.asm ; .arch x64 ; mov [r10 + r11], eax),
            (Operation::Store, _) => dynasm!(self.asm ; .arch x64 ; mov [r10 + r11], rax),
            (Operation::Load, 1) => dynasm!(self.asm ; .arch x64 ; mov al, [r10 + r11]),
            (Operation::Load, 2) => dynasm!(self.asm ; .arch x64 ; mov ax, [r10 + r11]),
            (Operation::Load, 4) => dynasm!(self.asm ; .arch x64 ; mov eax, [r10 + r11]),
            (Operation::Load, _) => dynasm!(self.asm ; .arch x64 ; mov rax, [r10 + r11]),
            (Operation::Scan, 1) => dynasm!(self.asm ; .arch x64 ; cmp al, [r10 + r11]),
            (Operation::Scan, 2) => dynasm!(self.asm ; .arch x64 ; cmp ax, [r10 + r11]),
            (Operation::Scan, 4) => dynasm!(self.asm ; .arch x64 ; cmp eax, [r10 + r11]),
            (Operation::Scan, _) => dynasm!(self.asm ; .arch x64 ; cmp rax, [r10 + r11]),
            (Operation::Compare, 1) => dynasm!(self.asm ; .arch x64 ; cmp [r10], r11b),
            (Operation::Compare, 2) => dynasm!(self.asm ; .arch x64 ; cmp [r10], r11w),
            (Operation::Compare, 4) => dynasm!(self.asm ; .arch x64 ; cmp [r10], r11d),
            (Operation::Compare, _) => dynasm!(self.asm ; .arch x64 ; cmp [r10], r11),
        }
        let narrow = is_narrow(&step.insn);
        if operation.has_source() {
            self.advance(RSI, size, narrow);
        }
        if operation.has_destination() {
            self.advance(RDI, size, narrow);
        }
    }

    /// Looks up all RCX elements at an index register, of which the first spill slot has a copy: r11 is then what
    /// is to be added. Goes to `slow`, without RCX, unless they lie in one page that the inline TLB has.
    fn range(&mut self, index: u8, write: bool, size: u8, slow: DynamicLabel) {
        let privilege = usize::from(self.frame.mode.privilege);
        let tag = offset::tlb_tag(privilege, write);
        self.tlb_index(R11, index);
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [r11 * 8 + tag]
            ; lea r10, [r10 + Rq(index) - 1]
        );
        match size {
            1 => dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + rcx]),
            2 => dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + rcx * 2]),
            4 => dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + rcx * 4]),
            _ => dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + rcx * 8]),
        }
        // Nothing above the offset of the last byte, and a count that didn't overflow in it.
        self.pick_page(R10, offset::PAGE);
        self.pick_page(RCX, offset::PAGE);
        dynasm!(self.asm ; .arch x64
            ; lea rcx, [rcx + r10]
            ; jrcxz >hit
            ; jmp =>slow
            ; hit:
            ; gs mov rcx, [offset::spill(0)]
            ; gs mov r11, [r11 * 8 + offset::tlb_addend(privilege)]
        );
    }

    /// The same in segmented code: the number of elements is in the count's spill slot, and what is to be added is
    /// added to the whole register.
    fn range_in_segment(
        &mut self,
        insn: &Instruction,
        index: u8,
        write: bool,
        size: u8,
        slow: DynamicLabel,
    ) {
        const BEYOND: i32 = offset::spill(6);
        const LINEAR: i32 = offset::spill(7);
        let privilege = usize::from(self.frame.mode.privilege);
        let tag = offset::tlb_tag(privilege, write);
        let segment = usize::from(segment_of(insn, index));
        let narrow = is_narrow(insn);
        let above = offset::above(segment, write, narrow);
        if narrow {
            dynasm!(self.asm ; .arch x64 ; movzx r10d, Rw(index));
        } else {
            dynasm!(self.asm ; .arch x64 ; mov r10d, Rd(index));
        }
        // From the count on, RCX is the bytes.
        dynasm!(self.asm ; .arch x64 ; gs mov rcx, [COUNT]);
        match size {
            1 => {}
            2 => dynasm!(self.asm ; .arch x64 ; lea rcx, [rcx + rcx]),
            _ => dynasm!(self.asm ; .arch x64 ; lea rcx, [rcx * 4]),
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [above]
            ; lea r11, [r11 + r10 - 1]
            ; lea r11, [r11 + rcx]
        );
        self.gather_sign(R11);
        dynasm!(self.asm ; .arch x64
            ; gs mov [BEYOND], r11
            ; gs mov r11, [offset::seg_base(segment)]
            ; lea r10d, [r10 + r11]
            ; gs mov [LINEAR], r10
            ; lea rcx, [rcx + r10 - 1]
        );
        self.tlb_index(R11, R10);
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [r11 * 8 + tag]
            ; lea r10, [r10 + rcx]
        );
        // Nothing above the offset of the last byte.
        self.pick_page(R10, offset::PAGE);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [BEYOND]
            ; lea rcx, [rcx + r10]
            ; jrcxz >hit
            ; jmp =>slow
            ; hit:
            ; gs mov r10, [LINEAR]
            ; gs mov r11, [r11 * 8 + offset::tlb_addend(privilege)]
            ; lea r11, [r11 + r10]
            ; mov r10, Rq(index)
            ; not r10
            ; lea r11, [r11 + r10 + 1]
        );
    }

    /// Takes r10 or r11, which it destroys, from an index register.
    fn give_back_index(&mut self, index: u8, addend: u8) {
        dynasm!(self.asm ; .arch x64 ; not Rq(addend));
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea Rq(index), [Rq(index) + Rq(addend) + 1]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea Rd(index), [Rq(index) + Rq(addend) + 1]);
        }
    }

    /// The same for an index register of 16 bits, whose bits above are in a spill slot.
    fn give_back_narrow(&mut self, index: u8, addend: u8, slot: usize) {
        dynasm!(self.asm ; .arch x64
            ; not Rq(addend)
            ; lea Rq(addend), [Rq(index) + Rq(addend) + 1]
            ; gs mov Rq(index), [offset::spill(slot)]
            ; mov Rw(index), Rw(addend)
        );
    }

    /// MOVS or STOS of fewer than 16 elements one by one, on host addresses, and goes to `behind`; r10 is free. The
    /// host's own instruction takes 25 to 65 cycles to begin (Intel Sapphire Rapids, by words), a loop about one for
    /// each element and, where counts keep changing, some 20 for one that is mispredicted, as it is at the end of any
    /// longer loop. They meet at 16 to 24 elements. Bytes, where the processor says so, begin in 7.
    fn few(&mut self, operation: Operation, size: u8, behind: DynamicLabel) {
        let step = i32::from(size);
        dynasm!(self.asm ; .arch x64 ; mov r10, rcx);
        self.sixteenth(RCX);
        dynasm!(self.asm ; .arch x64
            ; jrcxz >few
            ; mov rcx, r10
            ; jmp >many
            ; few:
            ; mov rcx, r10
            ; jrcxz =>behind
            ; next:
        );
        match (operation, size) {
            (Operation::Move, 1) => {
                dynasm!(self.asm ; .arch x64 ; movzx r10d, BYTE [rsi] ; mov [rdi], r10b);
            }
            (Operation::Move, 2) => {
                dynasm!(self.asm ; .arch x64 ; movzx r10d, WORD [rsi] ; mov [rdi], r10w);
            }
            (Operation::Move, 4) => {
                dynasm!(self.asm ; .arch x64 ; mov r10d, [rsi] ; mov [rdi], r10d);
            }
            (Operation::Move, _) => {
                dynasm!(self.asm ; .arch x64 ; mov r10, [rsi] ; mov [rdi], r10);
            }
            (_, 1) => dynasm!(self.asm ; .arch x64 ; mov [rdi], al),
            (_, 2) => dynasm!(self.asm ; .arch x64 ; mov [rdi], ax),
            (_, 4) => dynasm!(self.asm ; .arch x64 ; mov [rdi], eax),
            (_, _) => dynasm!(self.asm ; .arch x64 ; mov [rdi], rax),
        }
        if operation.has_source() {
            dynasm!(self.asm ; .arch x64 ; lea rsi, [rsi + step]);
        }
        dynasm!(self.asm ; .arch x64
            ; lea rdi, [rdi + step]
            ; lea rcx, [rcx - 1]
            ; jrcxz =>behind
            ; jmp <next
            ; many:
        );
    }

    /// SCASB over the rest of the page whose first byte is at r10 + r11, in the inline TLB: a search for the end of a
    /// string has a count that goes far beyond. Goes to `done` if that ends it; else nothing has changed, as what comes
    /// next may fault, and processors differ in the flags that are seen then.
    fn scan_page(&mut self, insn: &Instruction, done: DynamicLabel) {
        const OLD_RAX: i32 = offset::spill(3);
        const FLAGS: i32 = offset::spill(KEPT);
        const REST: i32 = offset::spill(6);
        let found = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64
            ; gs mov [OLD_RAX], rax
            ; lahf
            ; seto al
            ; gs mov [FLAGS], rax
            ; gs mov rax, [OLD_RAX]
            ; gs mov [COUNT], rcx
            ; gs mov [offset::spill(OLD_RDI)], rdi
            ; lea r10, [r10 + r11]
            ; mov r11d, edi
            ; or r11d, !(PAGE_SIZE as i32 - 1)
            ; neg r11d
            ; cmp rcx, r11
            ; cmova rcx, r11
            ; gs mov [REST], rcx
            ; mov rdi, r10
        );
        self.asm.push(if insn.has_repne_prefix() { REPNE } else { REPE });
        self.asm.push(Operation::Scan.opcode() - 1);
        // What is left of the rest gives the bytes that were compared, and what is left of the count.
        dynasm!(self.asm ; .arch x64
            ; gs mov rdi, [offset::spill(OLD_RDI)]
            ; gs mov r11, [REST]
            ; not rcx
            ; lea r11, [r11 + rcx + 1]
            ; gs mov rcx, [COUNT]
            ; not r11
            ; lea r10, [rcx + r11 + 1]
            ; not r11
        );
        if insn.has_repne_prefix() {
            dynasm!(self.asm ; .arch x64 ; jz =>found);
        } else {
            dynasm!(self.asm ; .arch x64 ; jnz =>found);
        }
        dynasm!(self.asm ; .arch x64
            ; mov rcx, r10
            ; jrcxz =>found
            ; gs mov rax, [FLAGS]
            ; add al, 0x7f
            ; sahf
            ; gs mov rax, [OLD_RAX]
            ; gs mov rcx, [COUNT]
            ; jmp >on
            ; =>found
        );
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea rdi, [rdi + r11] ; mov rcx, r10);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea edi, [rdi + r11] ; mov ecx, r10d);
        }
        dynasm!(self.asm ; .arch x64 ; jmp =>done ; on:);
    }

    fn repeated(&mut self, step: &Step, operation: Operation, size: u8) {
        const OPERAND_SIZE: u8 = 0x66;
        const REX_W: u8 = 0x48;
        let insn = &step.insn;
        let bits = self.frame.mode.bits;
        let start = self.offset();
        let slow = self.asm.new_dynamic_label();
        let done = self.asm.new_dynamic_label();
        let source = operation.has_source();
        let narrow = is_narrow(insn);
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        if self.segmented() {
            if narrow {
                dynasm!(self.asm ; .arch x64
                    ; gs mov [offset::spill(OLD_RSI)], rsi
                    ; gs mov [offset::spill(OLD_RDI)], rdi
                    ; movzx ecx, cx
                );
            }
            dynasm!(self.asm ; .arch x64 ; gs mov [COUNT], rcx);
            if source {
                self.range_in_segment(insn, RSI, false, size, slow);
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(KEPT)], r11);
            }
            self.range_in_segment(insn, RDI, operation.writes(), size, slow);
            dynasm!(self.asm ; .arch x64 ; gs mov rcx, [COUNT]);
        } else {
            if source {
                self.range(RSI, false, size, slow);
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(KEPT)], r11);
            }
            self.range(RDI, operation.writes(), size, slow);
        }
        if source {
            dynasm!(self.asm ; .arch x64
                ; gs mov r10, [offset::spill(KEPT)]
                ; lea rsi, [rsi + r10]
            );
        }
        dynasm!(self.asm ; .arch x64 ; lea rdi, [rdi + r11]);
        let is_slow = match operation {
            Operation::Move => size > 1 || !self.frame.host.fsrm,
            Operation::Store => size > 1 || !self.frame.host.fsrs,
            _ => false,
        };
        let behind = self.asm.new_dynamic_label();
        if is_slow {
            self.few(operation, size, behind);
        }
        if size == 2 {
            self.asm.push(OPERAND_SIZE);
        }
        self.asm.push(if insn.has_repne_prefix() { REPNE } else { REPE });
        if size == 8 {
            self.asm.push(REX_W);
        }
        self.asm.push(operation.opcode() - u8::from(size == 1));
        dynasm!(self.asm ; .arch x64 ; =>behind);
        if is_slow && source {
            dynasm!(self.asm ; .arch x64 ; gs mov r10, [offset::spill(KEPT)]);
        }
        if narrow {
            if source {
                self.give_back_narrow(RSI, R10, OLD_RSI);
            }
            self.give_back_narrow(RDI, R11, OLD_RDI);
            dynasm!(self.asm ; .arch x64
                ; mov r10d, ecx
                ; gs mov rcx, [offset::spill(0)]
                ; mov cx, r10w
            );
        } else {
            if source {
                self.give_back_index(RSI, R10);
            }
            self.give_back_index(RDI, R11);
        }
        dynasm!(self.asm ; .arch x64
            ; jmp =>done
            ; =>slow
            ; gs mov rcx, [offset::spill(0)]
        );
        if narrow {
            dynasm!(self.asm ; .arch x64 ; movzx ecx, cx);
        }
        dynasm!(self.asm ; .arch x64
            ; jrcxz >none
            ; jmp >some
            ; none:
            ; gs mov rcx, [offset::spill(0)]
            ; jmp =>done
            ; some:
            ; gs mov rcx, [offset::spill(0)]
        );
        // The first elements may only be missing from the inline TLB.
        if source {
            self.element(step, RSI, false, size, start);
        }
        self.element(step, RDI, operation.writes(), size, start);
        if operation == Operation::Scan && size == 1 && !self.segmented() {
            self.scan_page(insn, done);
        }
        let site = Site::HandOver {
            rip: mask(insn.ip(), bits),
            next: mask(insn.next_ip(), bits),
            resume: 0,
            live: self.vector_live,
            mnemonic: insn.mnemonic(),
            done: self.uncounted,
            again: self.uncounted + 1,
        };
        let number = self.site(site);
        self.leave_by(number);
        dynasm!(self.asm ; .arch x64 ; =>done);
        let after = self.offset() as u32;
        if let Site::HandOver { resume, .. } = &mut self.sites[number] {
            *resume = after;
        }
    }
}
