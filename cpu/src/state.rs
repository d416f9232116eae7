//! Architectural state of one vCPU.
//!
//! Problem: two engines, a debugger and snapshots look at the same registers. Scheme: one plain
//! `repr(C)` record with manual names, so translated code can address its fields by fixed offset.
//! Invariants: `cpl` equals SS.DPL (0 in real mode, 3 in virtual-8086 mode); bit 1 of `rflags` is
//! set and bits 3, 5, 15 and 22-63 are clear; `Segment::limit` is in bytes, already scaled. Owned by
//! the vCPU's thread. Source: SDM vol. 1, "Basic Execution Environment"; vol. 3, "System
//! Architecture Overview".

use bitflags::bitflags;

bitflags! {
    /// RFLAGS (SDM vol. 1, "EFLAGS Register").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rflags: u64 {
        const CF = 1 << 0;
        const FIXED = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
        /// The six flags that arithmetic sets.
        const STATUS = 0x8d5;
    }

    /// CR0 (SDM vol. 3, "Control Registers").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
    }

    /// CR4 (SDM vol. 3, "Control Registers").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const LA57 = 1 << 12;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
        const PKE = 1 << 22;
    }

    /// IA32_EFER (SDM vol. 3, "Extended Feature Enable Register").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
        /// Automatic IBRS (AMD).
        const AIBRSE = 1 << 21;
    }
}

/// General register numbers, as encoded.
pub mod reg {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Segment register numbers, as encoded.
pub mod sreg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// A segment register with its descriptor cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    pub base: u64,
    /// Last valid offset in bytes (granularity applied). For expand-down: the highest invalid one.
    pub limit: u32,
    /// Access rights as in a descriptor's bytes 5 and 6: type 0-3, S 4, DPL 5-6, P 7, AVL 12,
    /// L 13, D/B 14, G 15. Bit 16 set: unusable (null selector).
    pub access: u32,
    pub selector: u16,
}

impl Segment {
    pub const UNUSABLE: u32 = 1 << 16;
    pub const PRESENT: u32 = 1 << 7;
    /// Code or data, not system.
    pub const S: u32 = 1 << 4;
    pub const LONG: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const GRANULARITY: u32 = 1 << 15;

    /// The null segment: unusable.
    pub const NULL: Self = Self { base: 0, limit: 0, access: Self::UNUSABLE, selector: 0 };

    /// A real-mode or virtual-8086 data segment: base from the selector, 64 KiB limit.
    #[must_use]
    pub fn real(selector: u16, access: u32) -> Self {
        Self { base: u64::from(selector) << 4, limit: 0xffff, access, selector }
    }

    /// Decodes the eight bytes of a code, data or short system descriptor.
    #[must_use]
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let access = ((descriptor >> 40) & 0xf0ff) as u32;
        let raw_limit = ((descriptor & 0xffff) | ((descriptor >> 32) & 0xf_0000)) as u32;
        let limit =
            if access & Self::GRANULARITY != 0 { (raw_limit << 12) | 0xfff } else { raw_limit };
        let base = ((descriptor >> 16) & 0xff_ffff) | ((descriptor >> 32) & 0xff00_0000);
        Self { base, limit, access, selector }
    }

    #[must_use]
    pub fn dpl(&self) -> u8 {
        ((self.access >> 5) & 3) as u8
    }
    #[must_use]
    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.access & Self::PRESENT != 0
    }
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.access & Self::UNUSABLE == 0
    }
    /// D/B: default operand size 32 bits (code), or stack and upper bound 32 bits (data).
    #[must_use]
    pub fn is_big(&self) -> bool {
        self.access & Self::DB != 0
    }
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.access & 0x18 == 0x18
    }
    #[must_use]
    pub fn is_data(&self) -> bool {
        self.access & 0x18 == 0x10
    }
    /// Code: readable. Data: always.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.is_data() || self.access & 0x1a == 0x1a
    }
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.access & 0x1a == 0x12
    }
    #[must_use]
    pub fn is_conforming(&self) -> bool {
        self.access & 0x1c == 0x1c
    }
    #[must_use]
    pub fn is_expand_down(&self) -> bool {
        self.access & 0x1c == 0x14
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// Size of [`VectorState`] in bytes: legacy region, XSAVE header, AVX component.
pub const XSAVE_AREA_SIZE: usize = 512 + 64 + 256;

/// x87, SSE and AVX state in the standard (non-compacted) XSAVE format, so that one XRSTOR loads it.
///
/// Source: SDM vol. 1, "XSAVE-Managed Features". Layout: FCW 0, FSW 2, FTW (abridged) 4, FOP 6, FIP 8,
/// FDP 16, MXCSR 24, ST0-7 at 32 + 16n, XMM0-15 at 160 + 16n, XSTATE_BV 512, upper halves of
/// YMM0-15 at 576 + 16n. XSTATE_BV in here is always 7: the state is complete. In the bytes that
/// processors leave alone are the selectors of x87 pointers, where a model keeps them: FCS 464, FDS 466.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct VectorState {
    pub bytes: [u8; XSAVE_AREA_SIZE],
}

impl VectorState {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FCS: usize = 464;
    pub const FDS: usize = 466;
    pub const MXCSR: usize = 24;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const XSTATE_BV: usize = 512;
    pub const YMMH: usize = 576;

    #[must_use]
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }
    pub fn set_u16_at(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.bytes[24..28].try_into().expect("four bytes"))
    }
    pub fn set_mxcsr(&mut self, value: u32) {
        self.bytes[24..28].copy_from_slice(&value.to_le_bytes());
    }
    /// The 32 bytes of YMMn.
    #[must_use]
    pub fn ymm(&self, n: usize) -> [u8; 32] {
        let mut out = [0; 32];
        out[..16].copy_from_slice(&self.bytes[Self::XMM + 16 * n..][..16]);
        out[16..].copy_from_slice(&self.bytes[Self::YMMH + 16 * n..][..16]);
        out
    }
    pub fn set_ymm(&mut self, n: usize, value: &[u8; 32]) {
        self.bytes[Self::XMM + 16 * n..][..16].copy_from_slice(&value[..16]);
        self.bytes[Self::YMMH + 16 * n..][..16].copy_from_slice(&value[16..]);
    }
}

impl Default for VectorState {
    /// The state after RESET and FNINIT as software sees it: FCW 0x37f is FNINIT's; RESET's 0x40 is
    /// set by [`CpuState::reset`].
    fn default() -> Self {
        let mut state = Self { bytes: [0; XSAVE_AREA_SIZE] };
        state.set_u16_at(Self::FCW, 0x37f);
        state.set_mxcsr(0x1f80);
        state.bytes[Self::XSTATE_BV] = 7;
        state
    }
}

/// Model-specific registers that are plain storage. (The local APIC's live with the device.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// Added to the host clock's ticks to give the guest's time stamp counter.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub spec_ctrl: u64,
    pub mcg_status: u64,
    pub microcode: u64,
    pub xss: u64,
}

/// What the vCPU is doing (SDM vol. 3, VMCS "Guest Non-Register State" uses the same four).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    Running,
    /// After HLT: woken by an interrupt.
    Halted,
    /// An application processor before its start-up IPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// What is held off for one instruction (SDM vol. 3, "Masking Exceptions and Interrupts When Switching
/// Stacks"; vol. 2, "STI").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shadow {
    None,
    /// After an STI that set IF: maskable interrupts are held off.
    Sti,
    /// After a load of SS: interrupts and debug exceptions are held off.
    MovSs,
}

/// Everything one vCPU remembers between instructions.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct CpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: see [`sreg`].
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    /// DR0-3, DR6, DR7; 4 and 5 unused.
    pub dr: [u64; 8],
    /// PDPTE registers, loaded with CR3 under PAE paging outside long mode (SDM vol. 3, "PDPTE
    /// Registers").
    pub pdpte: [u64; 4],
    pub cpl: u8,
    pub activity: Activity,
    pub shadow: Shadow,
    /// An NMI is being handled; IRET ends it.
    pub nmi_blocked: bool,
    /// DR6 bits of debug traps that wait for the end of a `MovSs` shadow.
    pub pending_debug: u32,
    pub msr: Msrs,
    /// Instructions retired since start: the base of counted time.
    pub retired: u64,
    pub vector: VectorState,
}

impl CpuState {
    /// State after power-up or RESET (SDM vol. 3, "Processor State After Reset"). `signature` is
    /// CPUID.1:EAX, found in EDX.
    #[must_use]
    pub fn reset(signature: u32) -> Self {
        let mut state = Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: Rflags::FIXED.bits(),
            seg: [Segment::real(0, 0x93); 6],
            ldtr: Segment { base: 0, limit: 0xffff, access: 0x82, selector: 0 },
            tr: Segment { base: 0, limit: 0xffff, access: 0x8b, selector: 0 },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            pdpte: [0; 4],
            cpl: 0,
            activity: Activity::Running,
            shadow: Shadow::None,
            pending_debug: 0,
            nmi_blocked: false,
            msr: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            retired: 0,
            vector: VectorState::default(),
        };
        state.gpr[reg::RDX] = u64::from(signature);
        state.seg[sreg::CS] =
            Segment { base: 0xffff_0000, limit: 0xffff, access: 0x9b, selector: 0xf000 };
        state.vector.set_u16_at(VectorState::FCW, 0x40);
        state
    }

    #[must_use]
    #[inline(always)]
    pub fn flag(&self, flag: Rflags) -> bool {
        self.rflags & flag.bits() != 0
    }
    #[must_use]
    #[inline(always)]
    pub fn cr0(&self, bit: Cr0) -> bool {
        self.cr0 & bit.bits() != 0
    }
    #[must_use]
    #[inline(always)]
    pub fn cr4(&self, bit: Cr4) -> bool {
        self.cr4 & bit.bits() != 0
    }
    /// CR0.PE is set (also in virtual-8086 mode).
    #[must_use]
    pub fn protected(&self) -> bool {
        self.cr0(Cr0::PE)
    }
    /// EFER.LMA: 64-bit or compatibility mode.
    #[must_use]
    #[inline(always)]
    pub fn long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }
    /// Virtual-8086 mode.
    #[must_use]
    pub fn v86(&self) -> bool {
        self.flag(Rflags::VM) && self.protected()
    }
    /// Real mode or virtual-8086 mode: segments are selector * 16.
    #[must_use]
    pub fn real_or_v86(&self) -> bool {
        !self.protected() || self.flag(Rflags::VM)
    }
    /// Default code size in bits: 16, 32 or 64.
    #[must_use]
    #[inline(always)]
    pub fn code_bits(&self) -> u32 {
        let cs = &self.seg[sreg::CS];
        if self.long_mode() && cs.access & Segment::LONG != 0 {
            64
        } else if cs.is_big() {
            32
        } else {
            16
        }
    }
    #[must_use]
    #[inline(always)]
    pub fn is_64bit(&self) -> bool {
        self.code_bits() == 64
    }
    #[must_use]
    pub fn iopl(&self) -> u8 {
        ((self.rflags >> 12) & 3) as u8
    }
}
