//! One processor, a megabyte of RAM, and everything that the processor itself needs in it.
//!
//! ```text
//! 0x0_0000 real-mode vectors   0x0_4000 TSS B       0x1_0000 CODE
//! 0x0_1000 GDT                 0x0_5000 LDT         0x2_0000 DATA
//! 0x0_2000 IDT                 0x0_6000 HANDLERS    0x3_0000 kernel stack's top
//! 0x0_3000 TSS A                                    0x3_4000, 0x3_8000, 0x3_c000 other stacks
//! ```
//!
//! Every vector's handler is HLT at `HANDLERS + 16 * vector`, at level 0, so that [`Bench::caught`] can tell
//! from RIP what was delivered, and from the stack with what.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

use crate::addr::{Gpa, Gva};
use crate::cpuid::CpuidModel;
use crate::env::{Access, Env, Memory, PageFault, Place, Privilege, Refused, attention};
use crate::exception::page_fault as pf;
use crate::interp::{Exit, Interp};
use crate::state::reg::RSP;
use crate::state::{CpuState, Cr0, Cr4, Efer, Rflags, Segment, TableRegister, sreg};
use crate::vector::tests::native::{TestCode, install_handlers};

pub const RAM_LEN: usize = 1 << 20;
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS_A: u64 = 0x3000;
pub const TSS_B: u64 = 0x4000;
pub const LDT: u64 = 0x5000;
pub const HANDLERS: u64 = 0x6000;
pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
pub const STACK: u64 = 0x3_0000;
pub const USER_STACK: u64 = 0x3_4000;
pub const INNER_STACK: u64 = 0x3_8000;
pub const IST_STACK: u64 = 0x3_c000;
/// Linear addresses from here to the 4 GiB limit are devices.
pub const DEVICE: u64 = 0xf000_0000;

/// Selectors.
pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_CODE: u16 = 0x1b;
pub const USER_DATA: u16 = 0x23;
pub const TASK_A: u16 = 0x28;
/// The first GDT entry that is free for tests.
pub const FREE: u16 = 0x40;

/// How a page is mapped when it isn't the identity with all rights.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    pub gpa: u64,
    pub write: bool,
    pub user: bool,
}

pub struct Ram {
    bytes: Box<[u8]>,
    versions: Vec<u32>,
    /// By page number; `None`: not present.
    pages: HashMap<u64, Option<Mapping>>,
}

impl Ram {
    fn new() -> Self {
        Self {
            bytes: vec![0; RAM_LEN].into(),
            versions: vec![0; RAM_LEN >> 12],
            pages: HashMap::new(),
        }
    }
    pub fn map(&mut self, la: u64, mapping: Option<Mapping>) {
        self.pages.insert(la >> 12, mapping);
    }
    pub fn slice(&mut self, at: u64, len: usize) -> &mut [u8] {
        let page = at >> 12;
        for version in &mut self.versions[page as usize..=(at as usize + len - 1) >> 12] {
            *version += u32::from(*version != 0);
        }
        &mut self.bytes[at as usize..at as usize + len]
    }
}

impl Memory for Ram {
    fn translate(
        &mut self,
        cpu: &CpuState,
        gva: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        assert!(crate::interp::is_canonical(gva.0), "{gva:?} must have been checked");
        let identity = (gva.0 < RAM_LEN as u64).then_some(Mapping {
            gpa: gva.page_base().0,
            write: true,
            user: true,
        });
        let mapping = self.pages.get(&(gva.0 >> 12)).copied().unwrap_or(identity);
        if mapping.is_none() && (DEVICE..1 << 32).contains(&gva.0) {
            return Ok(Place::Device { gpa: Gpa(gva.0) });
        }
        let user = privilege == Privilege::User;
        let smap =
            privilege == Privilege::Supervisor && access != Access::Fetch && cpu.cr4(Cr4::SMAP);
        let allowed = mapping.is_some_and(|m| {
            (m.write || access != Access::Write) && (m.user || !user) && !(m.user && smap)
        });
        if let Some(m) = mapping
            && allowed
        {
            let at = m.gpa + gva.page_offset();
            return Ok(Place::Ram { hva: self.bytes[at as usize..].as_mut_ptr(), gpa: Gpa(at) });
        }
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        let error_code = bit(mapping.is_some(), pf::PRESENT)
            | bit(access == Access::Write, pf::WRITE)
            | bit(user, pf::USER);
        Err(PageFault { gva, error_code })
    }
    fn ram(&self, _: Gpa, _: usize) -> Option<*mut u8> {
        None
    }
    fn stored(&mut self, gpa: Gpa, _: u64) -> bool {
        let version = &mut self.versions[gpa.gpn() as usize];
        *version += u32::from(*version != 0);
        *version != 0
    }
    fn watch_code(&mut self, gpa: Gpa) -> u32 {
        let version = &mut self.versions[gpa.gpn() as usize];
        *version = (*version).max(1);
        *version
    }
    fn code_version(&self, gpa: Gpa) -> u32 {
        self.versions.get(gpa.gpn() as usize).copied().unwrap_or(0)
    }
    fn pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        // A CR3 with this bit stands for a table with reserved bits.
        (cr3 & 0x800_0000 == 0).then_some([1; 4])
    }
    fn flush_all(&mut self) {}
    fn flush_context(&mut self, _: Option<u16>) {}
    fn set_context(&mut self, _: &CpuState, _: bool) {}
    fn flush_page(&mut self, _: Gva) {}
    fn flush_page_in(&mut self, _: u16, _: Gva) {}
}

/// What the machine around the processor has seen, and what it answers.
#[derive(Debug, Default)]
pub struct World {
    pub port_writes: Vec<(u16, u8, u32)>,
    pub port_reads: Vec<(u16, u8)>,
    /// Vectors for INTA cycles, last first.
    pub interrupts: Vec<u8>,
    pub tpr: u8,
    /// Bytes that a device read returns, low byte first.
    pub device: u64,
    pub device_writes: Vec<(u64, u8, u64)>,
    pub ferr: bool,
    /// What device MSRs were written, with the time stamp counter's offset.
    pub msr_writes: Vec<(u32, u64, u64)>,
    pub tsc_moves: Vec<u64>,
}

struct TestEnv {
    world: Arc<Mutex<World>>,
    attention: Arc<AtomicU32>,
}

impl TestEnv {
    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().expect("no test holds it")
    }
}

/// There is no local APIC here.
fn is_apic(msr: u32) -> bool {
    matches!(msr, 0x1b | 0x6e0 | 0x800..=0x8ff)
}

impl Env for TestEnv {
    fn pio_read(&mut self, port: u16, size: u8) -> u32 {
        self.world().port_reads.push((port, size));
        0x5a5a_5a5a
    }
    fn pio_write(&mut self, port: u16, size: u8, value: u32) {
        self.world().port_writes.push((port, size, value));
    }
    fn mmio_read(&mut self, _: Gpa, _: u8) -> u64 {
        self.world().device
    }
    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.world().device_writes.push((gpa.0, size, value));
    }
    fn tsc(&mut self) -> u64 {
        1_000_000
    }
    fn set_retired(&mut self, _: u64) {}
    fn random(&mut self) -> u64 {
        0x1234_5678_9abc_def0
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vector = self.world().interrupts.pop();
        if self.world().interrupts.is_empty() {
            self.attention.fetch_and(!attention::INTR, Ordering::SeqCst);
        }
        vector
    }
    fn device_msr_read(&mut self, msr: u32) -> Result<u64, Refused> {
        if is_apic(msr) { Err(Refused) } else { Ok(0x1234) }
    }
    fn device_msr_write(&mut self, msr: u32, value: u64, offset: u64) -> Result<(), Refused> {
        if is_apic(msr) {
            return Err(Refused);
        }
        self.world().msr_writes.push((msr, value, offset));
        Ok(())
    }
    fn tsc_moved(&mut self, offset: u64) {
        self.world().tsc_moves.push(offset);
    }
    fn task_priority(&mut self) -> u8 {
        self.world().tpr
    }
    fn set_task_priority(&mut self, tpr: u8) {
        self.world().tpr = tpr;
    }
    fn ferr(&mut self) {
        self.world().ferr = true;
    }
    fn attention(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.attention)
    }
}

/// A delivered event, from the handler's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    pub vector: u8,
    /// 0 where there is none.
    pub code: u32,
    pub rip: u64,
    pub cs: u16,
    pub flags: u64,
    /// The interrupted stack; 0 where the frame has none.
    pub rsp: u64,
    pub ss: u16,
}

pub struct Bench {
    pub vm: Interp<Ram>,
    pub world: Arc<Mutex<World>>,
    pub attention: Arc<AtomicU32>,
    bits: u32,
}

/// A code or data descriptor with base 0 and a 4 GiB limit. `access`: byte 5; `flags`: L and D/B as the
/// upper nibble of byte 6 has them.
pub fn flat(access: u8, flags: u8) -> u64 {
    descriptor(0, 0xf_ffff, access, flags | 8)
}

/// A descriptor of eight bytes.
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
        | (base >> 24) << 56
}

/// A gate of eight bytes (the low half of a long one).
pub fn gate(access: u8, selector: u16, offset: u32) -> u64 {
    let offset = u64::from(offset);
    offset & 0xffff | u64::from(selector) << 16 | u64::from(access) << 40 | (offset >> 16) << 48
}

pub const LONG: u8 = 2;
pub const BIG: u8 = 4;

/// The host's processor, if need be under Intel's name.
pub fn model() -> Arc<CpuidModel> {
    model_of("host,vendor=intel")
}

pub fn model_of(spec: &str) -> Arc<CpuidModel> {
    Arc::new(CpuidModel::parse(spec).expect("a model that always is"))
}

impl Bench {
    /// At CPL 0 with flat segments in 32- or 64-bit code, or in real mode (16). TR is loaded with task A.
    pub fn new(bits: u32) -> Self {
        Self::with_model(bits, model())
    }

    /// The same with an AMD processor.
    pub fn amd(bits: u32) -> Self {
        Self::with_model(bits, model_of("host,vendor=amd"))
    }

    pub fn with_model(bits: u32, model: Arc<CpuidModel>) -> Self {
        install_handlers();
        let world = Arc::new(Mutex::new(World::default()));
        let attention = Arc::new(AtomicU32::new(0));
        let env = TestEnv { world: Arc::clone(&world), attention: Arc::clone(&attention) };
        let code = Box::new(TestCode::new(1 << 16));
        let state = CpuState::reset(0);
        let vm = Interp::new(state, Ram::new(), Box::new(env), model, 0, code);
        let mut bench = Self { vm, world, attention, bits };
        bench.vm.state.rip = CODE;
        bench.vm.state.gpr[RSP] = STACK;
        bench.lay_out();
        bench
    }

    fn lay_out(&mut self) {
        for vector in 0..256u64 {
            let at = HANDLERS + 16 * vector;
            self.write(at, &[0xf4]);
            match self.bits {
                16 => self.write_u32(vector * 4, 0x0600_0000 | (16 * vector) as u32),
                _ => self.set_gate(vector as u8, 0x8e, KERNEL_CODE),
            }
        }
        if self.bits == 16 {
            self.vm.state.seg[sreg::CS] = Segment::real((CODE >> 4) as u16, 0x9b);
            self.vm.state.seg[sreg::SS] = Segment::real((STACK >> 4) as u16 - 0x1000, 0x93);
            self.vm.state.seg[sreg::DS] = Segment::real((DATA >> 4) as u16, 0x93);
            self.vm.state.seg[sreg::ES] = Segment::real((DATA >> 4) as u16, 0x93);
            self.vm.state.rip = 0;
            self.vm.state.gpr[RSP] = 0xfff0;
            self.vm.state.idtr = TableRegister { base: 0, limit: 0x3ff };
            return;
        }
        let code = if self.bits == 64 { LONG } else { BIG };
        self.set_descriptor(KERNEL_CODE, flat(0x9b, code));
        self.set_descriptor(KERNEL_DATA, flat(0x93, BIG));
        self.set_descriptor(USER_CODE, flat(0xfb, code));
        self.set_descriptor(USER_DATA, flat(0xf3, BIG));
        self.set_descriptor(TASK_A, descriptor(TSS_A as u32, 0x20ff, 0x8b, 0));
        let s = &mut self.vm.state;
        s.cr0 = (Cr0::PE | Cr0::NE | Cr0::MP | Cr0::ET | Cr0::WP).bits();
        s.gdtr = TableRegister { base: GDT, limit: 0xfff };
        s.idtr = TableRegister { base: IDT, limit: 0xfff };
        s.tr = Segment { base: TSS_A, limit: 0x20ff, access: 0x8b, selector: TASK_A };
        s.ldtr = Segment::NULL;
        if self.bits == 64 {
            s.cr0 |= Cr0::PG.bits();
            s.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits();
            s.efer = (Efer::LMA | Efer::LME | Efer::SCE | Efer::NXE).bits();
            self.write_u64(TSS_A + 4, INNER_STACK);
            self.write_u64(TSS_A + 0x24, IST_STACK);
        } else {
            self.write_u32(TSS_A + 4, INNER_STACK as u32);
            self.write_u32(TSS_A + 8, u32::from(KERNEL_DATA));
        }
        // No I/O permission bitmap within the limit.
        self.write(TSS_A + 0x66, &[0xff, 0xff]);
        self.set_level(0);
    }

    /// Loads flat CS, SS, DS and ES for level 0 or 3, without any ceremony.
    pub fn set_level(&mut self, cpl: u8) {
        let (code, data) =
            if cpl == 0 { (KERNEL_CODE, KERNEL_DATA) } else { (USER_CODE, USER_DATA) };
        let code = self.segment(code);
        let data = self.segment(data);
        let s = &mut self.vm.state;
        s.seg = [data, code, data, data, data, data];
        s.cpl = cpl;
        s.gpr[RSP] = if cpl == 0 { STACK } else { USER_STACK };
    }

    /// The same level in virtual-8086 mode (`bits` 32): CS = CODE, DS = ES = DATA, SS = 0x3000.
    pub fn set_v86(&mut self, iopl: u8) {
        let s = &mut self.vm.state;
        for (register, base) in [(sreg::CS, CODE), (sreg::DS, DATA), (sreg::ES, DATA)] {
            s.seg[register] = Segment::real((base >> 4) as u16, 0xf3);
        }
        s.seg[sreg::SS] = Segment::real(0x3000, 0xf3);
        s.seg[sreg::FS] = Segment::real(0x1111, 0xf3);
        s.seg[sreg::GS] = Segment::real(0x2222, 0xf3);
        s.cpl = 3;
        s.rflags = Rflags::FIXED.bits() | Rflags::VM.bits() | u64::from(iopl) << 12;
        s.rip = 0;
        s.gpr[RSP] = 0x4000;
        self.bits = 32;
    }

    /// A descriptor of the GDT as a segment register holds it.
    pub fn segment(&mut self, selector: u16) -> Segment {
        let raw = self.read_u64(GDT + u64::from(selector & 0xfff8));
        Segment::from_descriptor(selector, raw)
    }

    pub fn set_descriptor(&mut self, selector: u16, raw: u64) {
        self.write_u64(GDT + u64::from(selector & 0xfff8), raw);
    }

    /// An IDT entry to the vector's handler. `access`: byte 5.
    pub fn set_gate(&mut self, vector: u8, access: u8, selector: u16) {
        let raw = gate(access, selector, (HANDLERS + 16 * u64::from(vector)) as u32);
        self.set_raw_gate(vector, raw);
    }

    pub fn set_raw_gate(&mut self, vector: u8, raw: u64) {
        let size = if self.bits == 64 { 16 } else { 8 };
        self.write_u64(IDT + size * u64::from(vector), raw);
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.vm.mem.slice(at, bytes.len()).copy_from_slice(bytes);
    }
    pub fn write_u32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }
    pub fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
    pub fn read_u16(&mut self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        bytes.copy_from_slice(self.vm.mem.slice(at, 2));
        u16::from_le_bytes(bytes)
    }
    pub fn read_u32(&mut self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.vm.mem.slice(at, 4));
        u32::from_le_bytes(bytes)
    }
    pub fn read_u64(&mut self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.vm.mem.slice(at, 8));
        u64::from_le_bytes(bytes)
    }

    /// Puts bytes where RIP starts.
    pub fn bytes(&mut self, code: &[u8]) -> &mut Self {
        self.write(CODE, code);
        self
    }

    /// Puts a program where RIP starts.
    pub fn code(
        &mut self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> &mut Self {
        let bits = if self.vm.state.real_or_v86() { 16 } else { self.bits };
        let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
        program(&mut a).expect("operands fit");
        let at = if bits == 16 { 0 } else { CODE };
        let bytes = a.assemble(at).expect("encodes");
        self.bytes(&bytes)
    }

    /// Runs to the next HLT that nothing wakes.
    pub fn run(&mut self) -> Exit {
        let exit = self.vm.run(10_000);
        assert_ne!(exit, Exit::Budget, "{}", self.vm.dump());
        exit
    }

    /// Runs, and tells which handler was reached.
    pub fn caught(&mut self) -> Caught {
        assert_eq!(self.run(), Exit::Halted, "{}", self.vm.dump());
        self.frame()
    }

    /// The frame of the handler that the processor has halted in.
    pub fn frame(&mut self) -> Caught {
        let s = &self.vm.state;
        let base = if self.bits == 16 { s.seg[sreg::CS].base } else { 0 };
        let la = base + s.rip;
        assert!((HANDLERS..HANDLERS + 0x1000).contains(&la), "no handler\n{}", self.vm.dump());
        assert_eq!(s.cpl, 0);
        let vector = ((la - HANDLERS) >> 4) as u8;
        let slot = match self.bits {
            16 => 2,
            32 => 4,
            _ => 8,
        };
        let mut at = s.gpr[RSP];
        if self.bits == 16 {
            at = s.seg[sreg::SS].base + (at & 0xffff);
        }
        let mut pop = |bench: &mut Self| {
            let mut bytes = [0; 8];
            bytes[..slot].copy_from_slice(bench.vm.mem.slice(at, slot));
            at += slot as u64;
            u64::from_le_bytes(bytes)
        };
        let has_code = self.bits != 16 && matches!(vector, 8 | 10..=14 | 17);
        let code = if has_code { pop(self) as u32 } else { 0 };
        let (rip, cs, flags) = (pop(self), pop(self) as u16, pop(self));
        let outer = self.bits == 64 || self.bits == 32 && (cs & 3 != 0 || flags & 0x20000 != 0);
        let (rsp, ss) = if outer { (pop(self), pop(self) as u16) } else { (0, 0) };
        Caught { vector, code, rip, cs, flags, rsp, ss }
    }

    /// Asserts vector, error code and RIP (relative to CODE) of what comes.
    #[track_caller]
    pub fn expect(&mut self, vector: u8, code: u32, offset: u64) -> Caught {
        let caught = self.caught();
        let base = if self.vm.state.protected() && caught.flags & 0x20000 == 0 { CODE } else { 0 };
        assert_eq!(
            (caught.vector, caught.code, caught.rip.wrapping_sub(base)),
            (vector, code, offset),
            "{caught:x?}\n{}",
            self.vm.dump()
        );
        caught
    }

    /// Asserts that the program reached its own HLT, `offset` bytes in (after it).
    #[track_caller]
    pub fn expect_halt(&mut self) {
        assert_eq!(self.run(), Exit::Halted, "{}", self.vm.dump());
        let s = &self.vm.state;
        let la = s.seg[sreg::CS].base.wrapping_add(s.rip);
        assert!((CODE..CODE + 0x1000).contains(&la), "{}", self.vm.dump());
    }

    /// Raises an external interrupt.
    pub fn interrupt(&mut self, vector: u8) {
        self.world.lock().expect("single-threaded").interrupts.push(vector);
        self.attention.fetch_or(attention::INTR, Ordering::SeqCst);
    }
    pub fn nmi(&mut self) {
        self.attention.fetch_or(attention::NMI, Ordering::SeqCst);
    }
}
