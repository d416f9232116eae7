//! Which handler does which instruction.
//!
//! Problem: some six hundred mnemonics map to handlers generic over width, form and condition. Scheme:
//! one match when an instruction is decoded; vector and x87 instructions were claimed before by
//! [`crate::vector`]. Invariant: what no arm names is #UD, as is everything the CPUID model lacks.

use iced_x86::{ConditionCode, Instruction, MemorySize, Mnemonic as N};

use super::alu::{self, binary, shift, unary};
use super::bits::{self, bit_count, bit_scan, bit_test};
use super::decode::{Handler, Insn};
use super::width::Width;
use super::{
    Interp, control, far, integer, interrupt, io, segment, stack, string, syscall, system,
};
use crate::cpuid::CpuidModel;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::Cr0;

/// #UD.
pub(super) fn undefined<M: Memory>(_: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    Err(Trap::ud())
}

/// More than 15 bytes: #GP(0).
pub(super) fn too_long<M: Memory>(_: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    Err(Trap::gp0())
}

fn nothing<M: Memory>(_: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    Ok(())
}

/// Low four bits of a Jcc, SETcc or CMOVcc opcode.
pub(super) fn condition_code(raw: &Instruction) -> u8 {
    use ConditionCode as C;
    match raw.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        _ => 15,
    }
}

/// JMP or CALL through a far pointer in memory.
pub(super) fn is_far_indirect(raw: &Instruction) -> bool {
    matches!(raw.memory_size(), MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64)
}

/// Picks the handler of a valid instruction.
pub(super) fn handler<M: Memory>(insn: &Insn<M>, cpuid: &CpuidModel) -> Handler<M> {
    find(insn, cpuid).unwrap_or(undefined)
}

/// The handler of a valid instruction, if it has one on this model.
pub(super) fn find<M: Memory>(insn: &Insn<M>, cpuid: &CpuidModel) -> Option<Handler<M>> {
    let raw = &insn.raw;
    match raw.mnemonic() {
        // Hints that are no-operations where the feature is missing.
        N::Endbr32 | N::Endbr64 | N::Rdsspd | N::Rdsspq | N::Nop | N::Fnop
            if insn.vector.is_none() =>
        {
            return Some(nothing);
        }
        N::Pause
        | N::Prefetch
        | N::Prefetchw
        | N::Prefetchwt1
        | N::Prefetchnta
        | N::Prefetcht0
        | N::Prefetcht1
        | N::Prefetcht2
        | N::Prefetchit0
        | N::Prefetchit1
        | N::Reservednop
        | N::Cldemote
        | N::Bndmk
        | N::Bndcl
        | N::Bndcu
        | N::Bndcn
        | N::Bndmov
        | N::Bndldx
        | N::Bndstx => return Some(nothing),
        // LZCNT and TZCNT are BSR and BSF with an ignored prefix where they are missing.
        N::Lzcnt if !allowed(raw, cpuid) => return Some(bit_scan::<M, false>(raw)),
        N::Tzcnt if !allowed(raw, cpuid) => return Some(bit_scan::<M, true>(raw)),
        _ => {}
    }
    if !allowed(raw, cpuid) {
        return None;
    }
    if insn.vector.is_some() {
        return Some(vector);
    }
    integer_handler(raw).or_else(|| system_handler(raw))
}

/// Whether the model has the instruction and somebody here does it.
pub(super) fn supports<M: Memory>(raw: &Instruction, cpuid: &CpuidModel) -> bool {
    allowed(raw, cpuid)
        && (crate::vector::is_vector(raw)
            || integer_handler::<M>(raw).is_some()
            || system_handler::<M>(raw).is_some())
}

fn allowed(raw: &Instruction, cpuid: &CpuidModel) -> bool {
    raw.cpuid_features().iter().all(|&feature| cpuid.allows(feature))
}

/// Integer, string and control-transfer instructions.
fn integer_handler<M: Memory>(raw: &Instruction) -> Option<Handler<M>> {
    let string = raw.is_string_instruction();
    Some(match raw.mnemonic() {
        _ if string => string::handler(raw),
        N::Mov => match () {
            () if names_special_register(raw) => system::mov_special(raw),
            () if names_segment_register(raw) => segment::mov(raw),
            () => integer::mov(raw),
        },
        N::Add => binary::<M, alu::Add>(raw),
        N::Or => binary::<M, alu::Or>(raw),
        N::Adc => binary::<M, alu::Adc>(raw),
        N::Sbb => binary::<M, alu::Sbb>(raw),
        N::And => binary::<M, alu::And>(raw),
        N::Sub => binary::<M, alu::Sub>(raw),
        N::Xor => binary::<M, alu::Xor>(raw),
        N::Cmp => binary::<M, alu::Cmp>(raw),
        N::Test => binary::<M, alu::Test>(raw),
        N::Inc => unary::<M, alu::Inc>(raw),
        N::Dec => unary::<M, alu::Dec>(raw),
        N::Neg => unary::<M, alu::Neg>(raw),
        N::Not => unary::<M, alu::Not>(raw),
        N::Rol => shift::<M, alu::Rol>(raw),
        N::Ror => shift::<M, alu::Ror>(raw),
        N::Rcl => shift::<M, alu::Rcl>(raw),
        N::Rcr => shift::<M, alu::Rcr>(raw),
        N::Shl | N::Sal => shift::<M, alu::Shl>(raw),
        N::Shr => shift::<M, alu::Shr>(raw),
        N::Sar => shift::<M, alu::Sar>(raw),
        N::Shld => alu::double_shift::<M, true>(raw),
        N::Shrd => alu::double_shift::<M, false>(raw),
        N::Mul => alu::multiply::<M, false>(raw),
        N::Imul => alu::imul(raw),
        N::Div => alu::divide::<M, false>(raw),
        N::Idiv => alu::divide::<M, true>(raw),
        N::Movzx => integer::extend::<M, false>(raw),
        N::Movsx | N::Movsxd => integer::extend::<M, true>(raw),
        N::Lea => integer::lea(raw),
        N::Xchg => integer::xchg(raw),
        N::Xadd => integer::xadd(raw),
        N::Cmpxchg => integer::cmpxchg(raw),
        N::Cmpxchg8b => integer::cmpxchg8b,
        N::Cmpxchg16b => integer::cmpxchg16b,
        N::Cbw => integer::widen_accumulator::<M, u8, u16>,
        N::Cwde => integer::widen_accumulator::<M, u16, u32>,
        N::Cdqe => integer::widen_accumulator::<M, u32, u64>,
        N::Cwd => integer::spread_sign::<M, u16>,
        N::Cdq => integer::spread_sign::<M, u32>,
        N::Cqo => integer::spread_sign::<M, u64>,
        N::Xlatb => integer::xlat,
        N::Bswap => integer::bswap(raw),
        N::Lahf => integer::lahf,
        N::Sahf => integer::sahf,
        N::Daa => integer::decimal_adjust::<M, false>,
        N::Das => integer::decimal_adjust::<M, true>,
        N::Aaa => integer::ascii_adjust::<M, false>,
        N::Aas => integer::ascii_adjust::<M, true>,
        N::Aam => integer::aam,
        N::Aad => integer::aad,
        N::Clc => flags::<M, Clc>,
        N::Stc => flags::<M, Stc>,
        N::Cmc => flags::<M, Cmc>,
        N::Cld => flags::<M, Cld>,
        N::Std => flags::<M, Std>,
        N::Salc => salc,
        N::Bt => bit_test::<M, bits::Bt>(raw),
        N::Bts => bit_test::<M, bits::Bts>(raw),
        N::Btr => bit_test::<M, bits::Btr>(raw),
        N::Btc => bit_test::<M, bits::Btc>(raw),
        N::Bsf => bit_scan::<M, true>(raw),
        N::Bsr => bit_scan::<M, false>(raw),
        N::Popcnt => bit_count::<M, bits::Popcnt>(raw),
        N::Lzcnt => bit_count::<M, bits::Lzcnt>(raw),
        N::Tzcnt => bit_count::<M, bits::Tzcnt>(raw),
        N::Movbe => bits::movbe(raw),
        N::Adcx => bits::adcx(raw),
        N::Adox => bits::adox(raw),
        N::Crc32 => bits::crc32(raw),
        N::Andn => bits::vex_andn(raw),
        N::Bextr => bits::vex_bextr(raw),
        N::Bzhi => bits::vex_bzhi(raw),
        N::Pdep => bits::vex_pdep(raw),
        N::Pext => bits::vex_pext(raw),
        N::Sarx => bits::vex_sarx(raw),
        N::Shlx => bits::vex_shlx(raw),
        N::Shrx => bits::vex_shrx(raw),
        N::Blsi => bits::vex_blsi(raw),
        N::Blsmsk => bits::vex_blsmsk(raw),
        N::Blsr => bits::vex_blsr(raw),
        N::Rorx => bits::rorx(raw),
        N::Mulx => bits::mulx(raw),
        N::Push => stack::push(raw),
        N::Pop => stack::pop(raw),
        N::Pusha
        | N::Pushad
        | N::Popa
        | N::Popad
        | N::Pushf
        | N::Pushfd
        | N::Pushfq
        | N::Popf
        | N::Popfd
        | N::Popfq
        | N::Enter
        | N::Leave => stack::by_mnemonic(raw),
        N::Jmp => control::jmp(raw),
        N::Call => control::call(raw),
        N::Ret => control::ret(raw),
        N::Loop | N::Loope | N::Loopne => control::loop_(raw),
        N::Jcxz | N::Jecxz | N::Jrcxz => control::jrcxz(raw),
        N::Bound => control::bound(raw),
        _ if raw.is_jcc_short_or_near() => control::jcc(raw),
        // What else has a condition code is SETcc (one operand) or CMOVcc.
        _ if raw.condition_code() == ConditionCode::None => return None,
        _ if raw.op_count() == 1 => integer::setcc(raw),
        _ => integer::cmov(raw),
    })
}

/// Whether this module's integer handlers do the instruction.
#[cfg(test)]
pub(super) fn is_integer<M: Memory>(insn: &Insn<M>) -> bool {
    integer_handler::<M>(&insn.raw).is_some()
}

/// Segment, far-transfer and system instructions.
fn system_handler<M: Memory>(raw: &Instruction) -> Option<Handler<M>> {
    Some(match raw.mnemonic() {
        N::Retf => far::ret,
        N::Iret | N::Iretd | N::Iretq => far::iret,
        N::Int => interrupt::int_n,
        N::Int3 => interrupt::int3,
        N::Into => interrupt::into,
        N::Int1 => interrupt::int1,
        N::Syscall => syscall::syscall,
        N::Sysret | N::Sysretq => syscall::sysret,
        N::Sysenter => syscall::sysenter,
        N::Sysexit | N::Sysexitq => syscall::sysexit,
        N::Lds | N::Les | N::Lfs | N::Lgs | N::Lss => segment::load_far_pointer(raw),
        N::Lar => segment::lar,
        N::Lsl => segment::lsl,
        N::Verr => segment::verify::<M, false>,
        N::Verw => segment::verify::<M, true>,
        N::Arpl => segment::arpl,
        N::Sldt => segment::store_selector::<M, false>,
        N::Str => segment::store_selector::<M, true>,
        N::Lldt => segment::lldt,
        N::Ltr => segment::ltr,
        N::In => io::in_(raw),
        N::Out => io::out(raw),
        N::Cli => system::cli,
        N::Sti => system::sti,
        N::Hlt => system::hlt,
        N::Cpuid => system::cpuid,
        N::Rdtsc => system::rdtsc::<M, false>,
        N::Rdtscp => system::rdtsc::<M, true>,
        N::Rdpmc => system::rdpmc,
        N::Rdpid => system::rdpid,
        N::Rdmsr => system::rdmsr,
        N::Wrmsr => system::wrmsr,
        N::Rdrand | N::Rdseed => system::random,
        N::Lgdt | N::Lidt | N::Sgdt | N::Sidt => system::table_register(raw),
        N::Smsw => system::smsw,
        N::Lmsw => system::lmsw,
        N::Clts => system::clts,
        N::Invlpg => system::invlpg,
        N::Invpcid => system::invpcid,
        N::Invd | N::Wbinvd | N::Wbnoinvd => system::flush_caches,
        N::Clflush | N::Clflushopt | N::Clwb => system::flush_line,
        N::Mfence | N::Lfence | N::Sfence | N::Serialize => system::fence,
        N::Stac => system::set_ac::<M, true>,
        N::Clac => system::set_ac::<M, false>,
        N::Rdfsbase | N::Rdgsbase | N::Wrfsbase | N::Wrgsbase => system::segment_base,
        N::Swapgs => system::swapgs,
        _ => return None,
    })
}

fn names_special_register(raw: &Instruction) -> bool {
    [raw.op0_register(), raw.op1_register()].iter().any(|r| r.is_cr() || r.is_dr() || r.is_tr())
}

fn names_segment_register(raw: &Instruction) -> bool {
    [raw.op0_register(), raw.op1_register()].iter().any(|r| r.is_segment_register())
}

/// An instruction that changes one flag.
trait FlagOp {
    fn apply(flags: u64) -> u64;
}

macro_rules! flag_ops {
    ($($name:ident = $apply:expr;)*) => { $(
        enum $name {}
        impl FlagOp for $name {
            fn apply(flags: u64) -> u64 {
                let apply: fn(u64) -> u64 = $apply;
                apply(flags)
            }
        }
    )* };
}
flag_ops! {
    Clc = |flags| flags & !1;
    Stc = |flags| flags | 1;
    Cmc = |flags| flags ^ 1;
    Cld = |flags| flags & !0x400;
    Std = |flags| flags | 0x400;
}

fn flags<M: Memory, O: FlagOp>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.state.rflags = O::apply(vm.state.rflags);
    Ok(())
}

/// SALC: AL becomes 0xff or 0, as CF says. Undocumented, in every processor.
fn salc<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let value = if vm.state.rflags & 1 != 0 { 0xff } else { 0 };
    u8::set(&mut vm.state, 0, value);
    Ok(())
}

/// Vector and x87 instructions.
fn vector<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let Some(op) = i.vector else { return Err(Trap::ud()) };
    let address = vm.address(i);
    let next = vm.state.rip;
    let (cpu, mut path, unit) = vm.split();
    // x87 remembers the instruction's own address.
    cpu.rip = next.wrapping_sub(u64::from(i.len));
    let done = unit.execute(&op, &i.raw, cpu, &mut path, address);
    cpu.rip = next;
    if done == Err(Trap::mf()) && !cpu.cr0(Cr0::NE) {
        // FERR#: the PC's interrupt 13 tells the guest, and the instruction waits for it.
        vm.state.rip = next.wrapping_sub(u64::from(i.len)) & vm.mode.ip_mask;
        vm.env.ferr();
        return Err(Trap::Exit);
    }
    done
}
