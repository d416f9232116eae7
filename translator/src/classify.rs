//! What happens to each guest instruction: the one table.
//!
//! Problem: an instruction that can be encoded is not thereby safe to run on the host. Scheme: an allow
//! list; what it does not name is handed to the interpreter. Invariants: nothing that reads or changes
//! privileged state, segment registers, the interrupt flag, the direction flag or the host's own state
//! is ever copied. What faults on the host by its data (division) changes nothing then, and the
//! interpreter does it. Any thread.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic as N, OpKind, Register};

use xenolith_cpu::env::Privilege;
use xenolith_cpu::vector::{Plain, Unit};

use crate::mode::{Loads, Mode};

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// The same instruction runs on the host, its memory operand (if any) redirected.
    Same,
    Push,
    Pop,
    Leave,
    /// Direct near JMP.
    Jump,
    /// Jcc.
    Branch,
    /// Direct near CALL.
    Call,
    /// Near RET.
    Return,
    /// JMP through register or memory.
    JumpIndirect,
    /// CALL through register or memory.
    CallIndirect,
    /// LOOP or JRCXZ.
    Count,
    /// BT, BTS, BTR or BTC of memory with the bit's number in a register, which may lead far from the operand.
    BitString,
    /// MOVS, STOS, LODS, SCAS or CMPS upwards, perhaps repeated.
    String,
    /// A vector, x87 or MMX instruction, on the host's registers.
    Vector(Plain),
    /// MOV from a segment register; in segmented code also to memory, and PUSH of one.
    StoreSegment,
    PushSegment,
    /// Where a segment's base is made of its selector: POP of a segment register, MOV to one, LES and its like.
    PopSegment,
    LoadSegment,
    LoadPointer,
    /// PUSHA and POPA, of 16 and 32 bits.
    PushAll,
    PopAll,
    /// LDMXCSR and FLDCW, once the value is known to mask every exception.
    LoadMxcsr,
    LoadControlWord,
    /// RDTSC and RDTSCP.
    ReadTime,
    /// MOV from CR0, CR2, CR3 or CR4 at CPL 0.
    ReadControl,
    /// SWAPGS at CPL 0.
    SwapGs,
    /// SYSCALL from 64-bit code at CPL 3, and SYSRET back; in 32-bit code SYSENTER and SYSEXIT.
    EnterKernel,
    LeaveKernel,
    /// IRET in 64-bit code at CPL 0, and in 32-bit code there, to the same level.
    ReturnFar,
    /// STAC and CLAC at CPL 0, if they change AC.
    ToggleAc,
    /// In modes in which a segment's base is made of its selector: far JMP, CALL and RET with an offset of 16
    /// bits, and in real mode INT and IRET.
    JumpSegment,
    CallSegment,
    ReturnSegment,
    EnterVector,
    LeaveVector,
    /// PUSHF, POPF, CLI and STI at CPL 0.
    PushFlags,
    PopFlags,
    ClearInterrupts,
    SetInterrupts,
    /// The interpreter does it.
    #[default]
    HandOver,
}

impl Class {
    /// A transfer to a target that the instruction names.
    #[must_use]
    pub fn is_relative(self) -> bool {
        matches!(self, Self::Jump | Self::Branch | Self::Call | Self::Count)
    }

    /// It loads CS in a mode in which its base is made of the selector.
    #[must_use]
    pub fn changes_segment(self) -> bool {
        matches!(
            self,
            Self::JumpSegment
                | Self::CallSegment
                | Self::ReturnSegment
                | Self::EnterVector
                | Self::LeaveVector
        )
    }

    /// Nothing of the block can follow.
    #[must_use]
    pub fn ends_block(self, insn: &Instruction) -> bool {
        match self {
            Self::Jump | Self::Call | Self::Return | Self::JumpIndirect | Self::CallIndirect => {
                true
            }
            Self::EnterKernel | Self::LeaveKernel | Self::ReturnFar | Self::ToggleAc => true,
            _ if self.changes_segment() => true,
            Self::HandOver => insn.flow_control() != FlowControl::Next,
            _ => false,
        }
    }
}

/// Classifies an instruction decoded for a mode.
#[must_use]
pub fn classify(insn: &Instruction, mode: Mode) -> Class {
    if let Some(plain) = xenolith_cpu::vector::plain(insn) {
        let enabled = match plain.unit {
            Unit::Sse => mode.vector >= 1,
            Unit::Avx => mode.vector >= 2,
            Unit::X87 | Unit::Mmx => mode.x87,
            Unit::SseMmx => mode.x87 && mode.vector >= 1,
        };
        let segment_fits = mode.bits == 64 || mode.fits(insn.memory_segment());
        // High bytes can't be named beside the registers that addresses are put into.
        let fits = enabled && segment_fits && memory_fits(insn, mode.bits);
        return match insn.mnemonic() {
            _ if !fits => Class::HandOver,
            N::Ldmxcsr | N::Vldmxcsr => Class::LoadMxcsr,
            N::Fldcw => Class::LoadControlWord,
            _ => Class::Vector(plain),
        };
    }
    if let Some(class) = of_system(insn, mode) {
        return class;
    }
    if let Some(class) = of_transfers(insn, mode).or_else(|| of_segments(insn, mode)) {
        return if memory_fits(insn, mode.bits) { class } else { Class::HandOver };
    }
    if is_string(insn) {
        return if string_fits(insn, mode) { Class::String } else { Class::HandOver };
    }
    let class = by_mnemonic(insn);
    let system = matches!(class, Class::PushFlags | Class::ClearInterrupts | Class::SetInterrupts);
    let pops = class == Class::PopFlags;
    if (system || pops) && !mode.ring0 || pops && mode.has_ac() {
        return Class::HandOver;
    }
    if class == Class::BitString && !bit_string_fits(insn, mode) {
        return Class::HandOver;
    }
    let segment_fits = mode.bits == 64 || mode.fits(insn.memory_segment());
    if class == Class::HandOver || !segment_fits || !operands_fit(insn, mode.bits, class) {
        return Class::HandOver;
    }
    class
}

/// Instructions that ask only for what the area has a copy of.
fn of_system(insn: &Instruction, mode: Mode) -> Option<Class> {
    match insn.code() {
        Code::Rdtsc | Code::Rdtscp if mode.time => Some(Class::ReadTime),
        Code::Mov_r32_cr | Code::Mov_r64_cr
            if mode.ring0
                && !insn.has_lock_prefix()
                && matches!(
                    insn.op1_register(),
                    Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4
                ) =>
        {
            Some(Class::ReadControl)
        }
        Code::Swapgs if mode.ring0 => Some(Class::SwapGs),
        Code::Syscall | Code::Sysenter
            if mode.may_cross()
                && mode.privilege == Privilege::User as u8
                && (mode.bits == 64) == (insn.code() == Code::Syscall) =>
        {
            Some(Class::EnterKernel)
        }
        Code::Sysretq | Code::Sysexitd
            if mode.may_cross()
                && mode.ring0
                && !mode.has_ac()
                && (mode.bits == 64) == (insn.code() == Code::Sysretq) =>
        {
            Some(Class::LeaveKernel)
        }
        Code::Iretq | Code::Iretd
            if mode.may_cross()
                && mode.ring0
                && !mode.has_ac()
                && (mode.bits == 64) == (insn.code() == Code::Iretq) =>
        {
            Some(Class::ReturnFar)
        }
        Code::Stac | Code::Clac if mode.may_cross() && mode.ring0 => {
            let changes = mode.has_ac() != (insn.code() == Code::Stac);
            Some(if changes { Class::ToggleAc } else { Class::Same })
        }
        _ => None,
    }
}

/// Far transfers that don't read descriptors. What privilege has to say is said in real mode only.
fn of_transfers(insn: &Instruction, mode: Mode) -> Option<Class> {
    if mode.loads != Loads::Base {
        return None;
    }
    let real = mode.ring0 && !mode.has_ac();
    match insn.code() {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 => Some(Class::JumpSegment),
        Code::Call_ptr1616 | Code::Call_m1616 => Some(Class::CallSegment),
        Code::Retfw | Code::Retfw_imm16 => Some(Class::ReturnSegment),
        Code::Int_imm8 if real => Some(Class::EnterVector),
        Code::Iretw if real => Some(Class::LeaveVector),
        _ => None,
    }
}

/// Instructions about segment registers that segmented code has inline, and those that only 16- and 32-bit
/// code has.
fn of_segments(insn: &Instruction, mode: Mode) -> Option<Class> {
    let is_segment =
        |n: u32| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_segment_register();
    // CS is loaded by no such instruction. SS holds interrupts off: the plan sees to that.
    let loads = |register: Register| mode.loads == Loads::Base && register != Register::CS;
    Some(match insn.mnemonic() {
        N::Pusha | N::Pushad => Class::PushAll,
        N::Popa | N::Popad => Class::PopAll,
        N::Mov if is_segment(1) && insn.op0_kind() == OpKind::Register => Class::StoreSegment,
        _ if mode.bits == 64 => return None,
        // Of a slot of four bytes two are written, but all must be in the segment.
        N::Push if is_segment(0) && (slot_bytes(insn) == 2 || !mode.segmented) => {
            Class::PushSegment
        }
        N::Pop if is_segment(0) && slot_bytes(insn) == 2 && loads(insn.op0_register()) => {
            Class::PopSegment
        }
        N::Mov if is_segment(1) && mode.fits(insn.memory_segment()) => Class::StoreSegment,
        N::Mov if is_segment(0) && loads(insn.op0_register()) => Class::LoadSegment,
        N::Les | N::Lds | N::Lfs | N::Lgs | N::Lss
            if mode.loads == Loads::Base && insn.op0_register().size() == 2 =>
        {
            Class::LoadPointer
        }
        _ => return None,
    })
}

fn by_mnemonic(insn: &Instruction) -> Class {
    match insn.mnemonic() {
        N::Mov
        | N::Movzx
        | N::Movsx
        | N::Movsxd
        | N::Lea
        | N::Add
        | N::Or
        | N::Adc
        | N::Sbb
        | N::And
        | N::Sub
        | N::Xor
        | N::Cmp
        | N::Test
        | N::Inc
        | N::Dec
        | N::Neg
        | N::Not
        | N::Rol
        | N::Ror
        | N::Rcl
        | N::Rcr
        | N::Shl
        | N::Sal
        | N::Shr
        | N::Sar
        | N::Shld
        | N::Shrd
        | N::Mul
        | N::Imul
        | N::Xadd
        | N::Cmpxchg
        | N::Xchg
        | N::Cbw
        | N::Cwde
        | N::Cdqe
        | N::Cwd
        | N::Cdq
        | N::Cqo
        | N::Bswap
        | N::Bsf
        | N::Bsr
        | N::Popcnt
        | N::Lzcnt
        | N::Tzcnt
        | N::Movbe
        | N::Adcx
        | N::Adox
        | N::Andn
        | N::Bextr
        | N::Bzhi
        | N::Pdep
        | N::Pext
        | N::Sarx
        | N::Shlx
        | N::Shrx
        | N::Rorx
        | N::Mulx
        | N::Blsi
        | N::Blsmsk
        | N::Blsr
        | N::Crc32
        | N::Clc
        | N::Stc
        | N::Cmc
        | N::Lahf
        | N::Sahf => Class::Same,
        N::Bt | N::Bts | N::Btr | N::Btc
            if insn.op0_kind() == OpKind::Register || insn.op1_kind() != OpKind::Register =>
        {
            Class::Same
        }
        N::Bt | N::Bts | N::Btr | N::Btc => Class::BitString,
        N::Div | N::Idiv | N::Cmpxchg8b | N::Cmpxchg16b | N::Movnti => Class::Same,
        N::Lfence | N::Mfence | N::Sfence => Class::Same,
        // With a REX.B it is XCHG on some processors; the interpreter knows.
        N::Pause if insn.len() == 2 => Class::Same,
        // In every mode that blocks are made for, the direction flag is clear.
        N::Cld
        | N::Nop
        | N::Endbr32
        | N::Endbr64
        | N::Prefetchnta
        | N::Prefetcht0
        | N::Prefetcht1
        | N::Prefetcht2
        | N::Prefetchw => Class::Same,
        N::Pushf | N::Pushfd | N::Pushfq => Class::PushFlags,
        N::Popf | N::Popfd | N::Popfq => Class::PopFlags,
        N::Cli => Class::ClearInterrupts,
        N::Sti => Class::SetInterrupts,
        N::Push => Class::Push,
        N::Pop => Class::Pop,
        N::Leave => Class::Leave,
        N::Jmp => match insn.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Class::Jump,
            OpKind::Register => Class::JumpIndirect,
            OpKind::Memory if !insn.is_jmp_far_indirect() => Class::JumpIndirect,
            _ => Class::HandOver,
        },
        N::Call => match insn.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Class::Call,
            OpKind::Register => Class::CallIndirect,
            OpKind::Memory if !insn.is_call_far_indirect() => Class::CallIndirect,
            _ => Class::HandOver,
        },
        N::Ret => Class::Return,
        N::Loop | N::Loope | N::Loopne | N::Jcxz | N::Jecxz | N::Jrcxz => Class::Count,
        _ if insn.is_jcc_short_or_near() => Class::Branch,
        _ if is_cmov_or_setcc(insn) => Class::Same,
        _ => Class::HandOver,
    }
}

fn is_string(insn: &Instruction) -> bool {
    // MOVSD and CMPSD are vector instructions, too.
    insn.is_string_instruction()
        && matches!(
            insn.mnemonic(),
            N::Movsb
                | N::Movsw
                | N::Movsd
                | N::Movsq
                | N::Stosb
                | N::Stosw
                | N::Stosd
                | N::Stosq
                | N::Lodsb
                | N::Lodsw
                | N::Lodsd
                | N::Lodsq
                | N::Scasb
                | N::Scasw
                | N::Scasd
                | N::Scasq
                | N::Cmpsb
                | N::Cmpsw
                | N::Cmpsd
                | N::Cmpsq
        )
}

/// Index registers of the mode's own width, and no segment's base; in segmented code any, but no segment that
/// expands down.
fn string_fits(insn: &Instruction, mode: Mode) -> bool {
    let narrow = [OpKind::MemorySegSI, OpKind::MemoryESDI];
    let own = match mode.bits {
        64 => [OpKind::MemorySegRSI, OpKind::MemoryESRDI],
        _ if mode.segmented && (0..insn.op_count()).any(|n| narrow.contains(&insn.op_kind(n))) => {
            narrow
        }
        _ => [OpKind::MemorySegESI, OpKind::MemoryESEDI],
    };
    let indexed = |n: u32| own.contains(&insn.op_kind(n));
    let is_register = |n: u32| insn.op_kind(n) == OpKind::Register;
    let kinds = (0..insn.op_count()).all(|n| indexed(n) || is_register(n));
    let source = (0..insn.op_count()).any(|n| insn.op_kind(n) == own[0]);
    let segment = if source { insn.memory_segment() } else { Register::ES };
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    let loads = matches!(insn.mnemonic(), N::Lodsb | N::Lodsw | N::Lodsd | N::Lodsq);
    let direct = !matches!(segment, Register::FS | Register::GS);
    kinds
        && (!repeated || !loads)
        && (direct || mode.segmented)
        && !mode.expands_down
        && (mode.bits == 64 || mode.fits(segment))
}

/// The bit's word is found from the whole linear address.
fn bit_string_fits(insn: &Instruction, mode: Mode) -> bool {
    let registers = [insn.memory_base(), insn.memory_index()];
    let whole = |r: &Register| !r.is_gpr() || r.size() * 8 == usize::from(mode.bits);
    let extra = matches!(insn.memory_segment(), Register::FS | Register::GS);
    let linear = !mode.segmented && (mode.bits == 64 || !extra);
    linear && insn.op1_register().size() >= 4 && registers.iter().all(whole)
}

/// SETcc and CMOVcc of general registers.
fn is_cmov_or_setcc(insn: &Instruction) -> bool {
    insn.condition_code() != iced_x86::ConditionCode::None
        && !insn.is_jcc_short_or_near()
        && !matches!(
            insn.mnemonic(),
            N::Loop | N::Loope | N::Loopne | N::Jcxz | N::Jecxz | N::Jrcxz
        )
        && (0..insn.op_count()).all(|n| {
            insn.op_kind(n) == OpKind::Memory
                || insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_gpr()
        })
}

fn operands_fit(insn: &Instruction, bits: u8, class: Class) -> bool {
    if !general_registers_only(insn) {
        return false;
    }
    // In 64-bit code stack operations and transfers of 64 bits only; elsewhere of 16 and 32.
    let own_width = bits < 64
        || match class {
            Class::Push
            | Class::Pop
            | Class::Call
            | Class::CallIndirect
            | Class::PushFlags
            | Class::PopFlags
            | Class::Return
            | Class::Leave => slot_bytes(insn) == 8,
            Class::Count => insn.op0_kind() == OpKind::NearBranch64,
            Class::JumpIndirect => insn.code() == Code::Jmp_rm64,
            Class::Jump | Class::Branch => insn.op0_kind() == OpKind::NearBranch64,
            _ => true,
        };
    if !own_width {
        return false;
    }
    if class == Class::Pop && insn.op0_kind() == OpKind::Memory {
        return false;
    }
    memory_fits(insn, bits)
}

/// Bytes of the stack slot that an instruction pushes or pops.
#[must_use]
pub fn slot_bytes(insn: &Instruction) -> u8 {
    match insn.code() {
        Code::Retnw | Code::Retnw_imm16 | Code::Leavew => 2,
        Code::Retnd | Code::Retnd_imm16 | Code::Leaved => 4,
        Code::Retnq | Code::Retnq_imm16 | Code::Leaveq => 8,
        // Of PUSHA and POPA all slots together.
        _ => insn.stack_pointer_increment().unsigned_abs() as u8,
    }
}

/// No segment, control or debug registers among the operands.
fn general_registers_only(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .all(|n| insn.op_kind(n) != OpKind::Register || insn.op_register(n).is_gpr())
}

/// In 64-bit code addresses of 64 or 32 bits, elsewhere of 32 or 16; not those that vary by segment.
fn memory_fits(insn: &Instruction, bits: u8) -> bool {
    if !(0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory) {
        return true;
    }
    let sizes: &[usize] = if bits == 64 { &[8, 4] } else { &[4, 2] };
    let registers = [insn.memory_base(), insn.memory_index()];
    let fits = |r: Register| {
        r == Register::None || r == Register::RIP || r.is_gpr() && sizes.contains(&r.size())
    };
    let address = registers.iter().all(|&r| fits(r));
    // In 64-bit code no absolute address of another size than the mode's.
    let absolute = bits == 64 && registers == [Register::None; 2];
    address && (!absolute || insn.memory_displ_size() == 8)
}
