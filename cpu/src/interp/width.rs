//! Operand widths: loads, stores and arithmetic of 8, 16, 32 and 64 bits, done by the host's own
//! instructions.
//!
//! Problem: every flag, also those that the SDM calls undefined, should come out as on the host, and
//! guest memory is shared with other vCPUs, so accesses need x86's memory ordering and no data race in
//! Rust's sense. Scheme: the trait [`Width`] holds one method for each host instruction; each method
//! is a short piece of inline assembly. Invariants: flag words passed in and out are RFLAGS images of
//! which only the six status flags change; memory methods touch exactly `BYTES` bytes, in one access.
//! Any thread.

use std::arch::asm;

use crate::state::{CpuState, Rflags};

const STATUS: u64 = Rflags::STATUS.bits();

/// Puts what `LAHF; SETO AL` left in AX into an RFLAGS image.
#[inline(always)]
fn merge(flags: &mut u64, ax: u64) {
    *flags = (*flags & !STATUS) | ((ax >> 8) & 0xd5) | ((ax & 1) << 11);
}

/// What to put in AX so that `ADD AL, 127; SAHF` restores the status flags.
#[inline(always)]
fn split(flags: u64) -> u64 {
    ((flags & 0xff) << 8) | ((flags >> 11) & 1)
}

/// An unsigned integer of an operand's size.
pub trait Width: Copy + Eq + Default + std::fmt::Debug + 'static {
    const BYTES: u64;
    const BITS: u32;
    /// Truncates.
    fn from_u64(value: u64) -> Self;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Sign-extends.
    fn to_i64(self) -> i64;

    /// Reads general register `r`; 16 to 19 are AH, CH, DH and BH (8 bits only).
    fn get(cpu: &CpuState, r: u8) -> Self;
    /// Writes a general register, as an instruction of this operand size does: 32 bits clear the
    /// upper half, 8 and 16 bits keep it.
    fn set(cpu: &mut CpuState, r: u8, value: Self);

    /// # Safety
    /// `p` must be valid for reads of `BYTES` bytes.
    unsafe fn load(p: *const u8) -> Self;
    /// # Safety
    /// `p` must be valid for writes of `BYTES` bytes.
    unsafe fn store(p: *mut u8, value: Self);
    /// `LOCK CMPXCHG`: stores `new` if memory holds `old`; returns what it held.
    ///
    /// # Safety
    /// `p` must be valid for reads and writes of `BYTES` bytes.
    unsafe fn compare_exchange(p: *mut u8, old: Self, new: Self) -> Self;
    /// `REP MOVS` upwards.
    ///
    /// # Safety
    /// `from` must be valid for reads, and `to` for writes, of `count` elements.
    unsafe fn rep_movs(to: *mut u8, from: *const u8, count: u64);
    /// `REP STOS` upwards.
    ///
    /// # Safety
    /// `to` must be valid for writes of `count` elements.
    unsafe fn rep_stos(to: *mut u8, value: Self, count: u64);

    fn add(a: Self, b: Self, flags: &mut u64) -> Self;
    fn adc(a: Self, b: Self, flags: &mut u64) -> Self;
    fn sub(a: Self, b: Self, flags: &mut u64) -> Self;
    fn sbb(a: Self, b: Self, flags: &mut u64) -> Self;
    fn and(a: Self, b: Self, flags: &mut u64) -> Self;
    fn or(a: Self, b: Self, flags: &mut u64) -> Self;
    fn xor(a: Self, b: Self, flags: &mut u64) -> Self;
    fn inc(a: Self, flags: &mut u64) -> Self;
    fn dec(a: Self, flags: &mut u64) -> Self;
    fn neg(a: Self, flags: &mut u64) -> Self;
    fn not(a: Self) -> Self;

    fn rol(a: Self, count: u8, flags: &mut u64) -> Self;
    fn ror(a: Self, count: u8, flags: &mut u64) -> Self;
    fn rcl(a: Self, count: u8, flags: &mut u64) -> Self;
    fn rcr(a: Self, count: u8, flags: &mut u64) -> Self;
    fn shl(a: Self, count: u8, flags: &mut u64) -> Self;
    fn shr(a: Self, count: u8, flags: &mut u64) -> Self;
    fn sar(a: Self, count: u8, flags: &mut u64) -> Self;

    /// `MUL`: low and high half of the product.
    fn mul(a: Self, b: Self, flags: &mut u64) -> (Self, Self);
    /// One-operand `IMUL`: low and high half of the signed product.
    fn imul(a: Self, b: Self, flags: &mut u64) -> (Self, Self);
    /// `DIV` of high:low: quotient and remainder, or `None` for #DE.
    fn div(low: Self, high: Self, divisor: Self, flags: &mut u64) -> Option<(Self, Self)>;
    /// `IDIV`.
    fn idiv(low: Self, high: Self, divisor: Self, flags: &mut u64) -> Option<(Self, Self)>;
}

/// Operations that exist for 16, 32 and 64 bits only.
pub trait WideWidth: Width {
    fn imul2(a: Self, b: Self, flags: &mut u64) -> Self;
    fn shld(a: Self, b: Self, count: u8, flags: &mut u64) -> Self;
    fn shrd(a: Self, b: Self, count: u8, flags: &mut u64) -> Self;
    fn bt(a: Self, bit: Self, flags: &mut u64) -> Self;
    fn bts(a: Self, bit: Self, flags: &mut u64) -> Self;
    fn btr(a: Self, bit: Self, flags: &mut u64) -> Self;
    fn btc(a: Self, bit: Self, flags: &mut u64) -> Self;
    /// `BSF`; the destination keeps `old` when the source is zero.
    fn bsf(old: Self, a: Self, flags: &mut u64) -> Self;
    fn bsr(old: Self, a: Self, flags: &mut u64) -> Self;
    /// `TZCNT`, on a host with BMI1. `old` counts for nothing.
    fn tzcnt(old: Self, a: Self, flags: &mut u64) -> Self;
    /// `LZCNT`, on a host with LZCNT. `old` counts for nothing.
    fn lzcnt(old: Self, a: Self, flags: &mut u64) -> Self;
    fn popcnt(a: Self, flags: &mut u64) -> Self;
    fn swap_bytes(a: Self) -> Self;
}

/// `op r, b`, flags out only.
macro_rules! binary {
    ($t:ty, $class:ident, $m:literal; $($name:ident)*) => { $(
        #[inline(always)]
        fn $name(a: Self, b: Self, flags: &mut u64) -> Self {
            let mut r = a;
            let ax: u64;
            // SAFETY: register arithmetic; reads and writes no memory.
            unsafe {
                asm!(
                    concat!(stringify!($name), " {r", $m, "}, {b", $m, "}"),
                    "lahf", "seto al",
                    r = inout($class) r, b = in($class) b, out("rax") ax,
                    options(pure, nomem, nostack),
                );
            }
            merge(flags, ax);
            r
        }
    )* };
}

/// `op r, b` or `op r`, flags in and out.
macro_rules! with_flags {
    ($t:ty, $class:ident; $($name:ident($($arg:ident: $reg:tt),*) $text:expr;)*) => { $(
        #[inline(always)]
        fn $name(a: Self, $($arg: with_flags!(@type $reg),)* flags: &mut u64) -> Self {
            let mut r = a;
            let mut ax = split(*flags);
            // SAFETY: register arithmetic; reads and writes no memory.
            unsafe {
                asm!(
                    "add al, 127", "sahf",
                    $text,
                    "lahf", "seto al",
                    r = inout($class) r, $($arg = in($reg) $arg,)* inout("rax") ax,
                    options(pure, nomem, nostack),
                );
            }
            merge(flags, ax);
            r
        }
    )* };
    (@type reg) => { Self };
    (@type reg_byte) => { Self };
}

/// Shifts and rotates by CL, flags in and out.
macro_rules! shifts {
    ($class:ident, $m:literal; $($name:ident)*) => { $(
        #[inline(always)]
        fn $name(a: Self, count: u8, flags: &mut u64) -> Self {
            let mut r = a;
            let mut ax = split(*flags);
            // SAFETY: register arithmetic; reads and writes no memory.
            unsafe {
                asm!(
                    "add al, 127", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, cl"),
                    "lahf", "seto al",
                    r = inout($class) r, in("cl") count, inout("rax") ax,
                    options(pure, nomem, nostack),
                );
            }
            merge(flags, ax);
            r
        }
    )* };
}

macro_rules! width {
    ($t:ty, $i:ty, $bytes:literal, $class:ident, $m:literal, $suffix:literal, $a:tt, $kind:ident) => {
        impl Width for $t {
            const BYTES: u64 = $bytes;
            const BITS: u32 = $bytes * 8;
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                i64::from(self as $i)
            }
            #[inline(always)]
            fn get(cpu: &CpuState, r: u8) -> Self {
                if $bytes == 1 && r >= 16 {
                    (cpu.gpr[usize::from(r & 3)] >> 8) as Self
                } else {
                    cpu.gpr[usize::from(r & 15)] as Self
                }
            }
            #[inline(always)]
            fn set(cpu: &mut CpuState, r: u8, value: Self) {
                let slot = &mut cpu.gpr[usize::from(if $bytes == 1 && r >= 16 { r & 3 } else { r & 15 })];
                *slot = match $bytes {
                    1 if r >= 16 => (*slot & !0xff00) | (u64::from(value) << 8),
                    1 => (*slot & !0xff) | u64::from(value),
                    2 => (*slot & !0xffff) | u64::from(value),
                    _ => u64::from(value),
                };
            }
            #[inline(always)]
            unsafe fn load(p: *const u8) -> Self {
                let value: Self;
                // SAFETY: the caller vouches for `p`.
                unsafe {
                    asm!(concat!("mov {v", $m, "}, [{p}]"), v = out($class) value, p = in(reg) p,
                        options(readonly, nostack, preserves_flags));
                }
                value
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, value: Self) {
                // SAFETY: the caller vouches for `p`.
                unsafe {
                    asm!(concat!("mov [{p}], {v", $m, "}"), v = in($class) value, p = in(reg) p,
                        options(nostack, preserves_flags));
                }
            }
            #[inline(always)]
            unsafe fn compare_exchange(p: *mut u8, old: Self, new: Self) -> Self {
                let held: Self;
                // SAFETY: the caller vouches for `p`.
                unsafe {
                    asm!(concat!("lock cmpxchg [{p}], {v", $m, "}"), v = in($class) new, p = in(reg) p,
                        inout($a) old => held, options(nostack));
                }
                held
            }
            unsafe fn rep_movs(to: *mut u8, from: *const u8, count: u64) {
                // SAFETY: the caller vouches for both ends; the ABI keeps DF clear.
                unsafe {
                    asm!(concat!("rep movs", $suffix), inout("rcx") count => _,
                        inout("rsi") from => _, inout("rdi") to => _,
                        options(nostack, preserves_flags));
                }
            }
            unsafe fn rep_stos(to: *mut u8, value: Self, count: u64) {
                // SAFETY: the caller vouches for `to`; the ABI keeps DF clear.
                unsafe {
                    asm!(concat!("rep stos", $suffix), inout("rcx") count => _,
                        in("rax") u64::from(value), inout("rdi") to => _,
                        options(nostack, preserves_flags));
                }
            }
            binary!($t, $class, $m; add sub and or xor);
            with_flags! { $t, $class;
                adc(b: $class) concat!("adc {r", $m, "}, {b", $m, "}");
                sbb(b: $class) concat!("sbb {r", $m, "}, {b", $m, "}");
                inc() concat!("inc {r", $m, "}");
                dec() concat!("dec {r", $m, "}");
                neg() concat!("neg {r", $m, "}");
            }
            #[inline(always)]
            fn not(a: Self) -> Self {
                !a
            }
            shifts!($class, $m; rol ror rcl rcr shl shr sar);
            multiply!($kind, $t, $i, $class, $m);
        }
    };
}

/// One-operand multiplication or division: RDX:RAX (AX for bytes) and `b` in, RDX:RAX and the flags
/// (as [`merge`] wants them) out.
macro_rules! wide_op {
    ($class:ident, $m:literal, $op:literal, $low:expr, $high:expr, $b:expr, $flags:expr) => {{
        let mut low = u64::from($low);
        let mut high = u64::from($high);
        let mut fl = split($flags);
        // SAFETY: register arithmetic; reads and writes no memory. The caller has ruled out #DE.
        unsafe {
            asm!(
                "xchg rax, {f}", "add al, 127", "sahf", "xchg rax, {f}",
                concat!($op, " {b", $m, "}"),
                "xchg rax, {f}", "lahf", "seto al", "xchg rax, {f}",
                f = inout(reg) fl, b = in($class) $b, inout("rax") low, inout("rdx") high,
                options(pure, nomem, nostack),
            );
        }
        (low, high, fl)
    }};
}

/// MUL, IMUL, DIV and IDIV: bytes work in AX, the others in rDX:rAX.
macro_rules! multiply {
    (byte, $t:ty, $i:ty, $class:ident, $m:literal) => {
        multiply!(@mul mul "mul" $class $m);
        multiply!(@mul imul "imul" $class $m);
        fn div(low: Self, high: Self, divisor: Self, flags: &mut u64) -> Option<(Self, Self)> {
            if high >= divisor {
                return None;
            }
            let ax = u16::from(low) | (u16::from(high) << 8);
            let (ax, _, fl) = wide_op!($class, $m, "div", ax, 0u8, divisor, *flags);
            merge(flags, fl);
            Some((ax as u8, (ax >> 8) as u8))
        }
        fn idiv(low: Self, high: Self, divisor: Self, flags: &mut u64) -> Option<(Self, Self)> {
            let ax = u16::from(low) | (u16::from(high) << 8);
            let quotient = i32::from(ax as i16).checked_div(i32::from(divisor as i8))?;
            i8::try_from(quotient).ok()?;
            let (ax, _, fl) = wide_op!($class, $m, "idiv", ax, 0u8, divisor, *flags);
            merge(flags, fl);
            Some((ax as u8, (ax >> 8) as u8))
        }
    };
    (@mul $name:ident $op:literal $class:ident $m:literal) => {
        fn $name(a: Self, b: Self, flags: &mut u64) -> (Self, Self) {
            let (ax, _, fl) = wide_op!($class, $m, $op, a, 0u8, b, *flags);
            merge(flags, fl);
            (ax as u8, (ax >> 8) as u8)
        }
    };
    (wide, $t:ty, $i:ty, $class:ident, $m:literal) => {
        fn mul(a: Self, b: Self, flags: &mut u64) -> (Self, Self) {
            let (low, high, fl) = wide_op!($class, $m, "mul", a, 0u8, b, *flags);
            merge(flags, fl);
            (low as $t, high as $t)
        }
        fn imul(a: Self, b: Self, flags: &mut u64) -> (Self, Self) {
            let (low, high, fl) = wide_op!($class, $m, "imul", a, 0u8, b, *flags);
            merge(flags, fl);
            (low as $t, high as $t)
        }
        fn div(low: Self, high: Self, divisor: Self, flags: &mut u64) -> Option<(Self, Self)> {
            if high >= divisor {
                return None;
            }
            let (low, high, fl) = wide_op!($class, $m, "div", low, high, divisor, *flags);
            merge(flags, fl);
            Some((low as $t, high as $t))
        }
        fn idiv(low: Self, high: Self, divisor: Self, flags: &mut u64) -> Option<(Self, Self)> {
            let dividend = (i128::from(high as $i) << Self::BITS) | i128::from(low);
            let quotient = dividend.checked_div(i128::from(divisor as $i))?;
            <$i>::try_from(quotient).ok()?;
            let (low, high, fl) = wide_op!($class, $m, "idiv", low, high, divisor, *flags);
            merge(flags, fl);
            Some((low as $t, high as $t))
        }
    };
}

macro_rules! wide_width {
    ($t:ty, $m:literal) => {
        impl WideWidth for $t {
            with_flags! { $t, reg;
                imul2(b: reg) concat!("imul {r", $m, "}, {b", $m, "}");
                bt(bit: reg) concat!("bt {r", $m, "}, {bit", $m, "}");
                bts(bit: reg) concat!("bts {r", $m, "}, {bit", $m, "}");
                btr(bit: reg) concat!("btr {r", $m, "}, {bit", $m, "}");
                btc(bit: reg) concat!("btc {r", $m, "}, {bit", $m, "}");
                bsf(b: reg) concat!("bsf {r", $m, "}, {b", $m, "}");
                bsr(b: reg) concat!("bsr {r", $m, "}, {b", $m, "}");
                tzcnt(b: reg) concat!("tzcnt {r", $m, "}, {b", $m, "}");
                lzcnt(b: reg) concat!("lzcnt {r", $m, "}, {b", $m, "}");
            }
            fn popcnt(a: Self, flags: &mut u64) -> Self {
                *flags &= !STATUS;
                if a == 0 {
                    *flags |= Rflags::ZF.bits();
                }
                a.count_ones() as $t
            }
            fn swap_bytes(a: Self) -> Self {
                <$t>::swap_bytes(a)
            }
            double_shift!($m; shld shrd);
        }
    };
}

/// SHLD and SHRD by CL.
macro_rules! double_shift {
    ($m:literal; $($name:ident)*) => { $(
        fn $name(a: Self, b: Self, count: u8, flags: &mut u64) -> Self {
            let mut r = a;
            let mut ax = split(*flags);
            // SAFETY: register arithmetic; reads and writes no memory.
            unsafe {
                asm!(
                    "add al, 127", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, {b", $m, "}, cl"),
                    "lahf", "seto al",
                    r = inout(reg) r, b = in(reg) b, in("cl") count, inout("rax") ax,
                    options(pure, nomem, nostack),
                );
            }
            merge(flags, ax);
            r
        }
    )* };
}

width!(u8, i8, 1, reg_byte, "", "b", "al", byte);
width!(u16, i16, 2, reg, ":x", "w", "ax", wide);
width!(u32, i32, 4, reg, ":e", "d", "eax", wide);
width!(u64, i64, 8, reg, ":r", "q", "rax", wide);
wide_width!(u16, ":x");
wide_width!(u32, ":e");
wide_width!(u64, ":r");
