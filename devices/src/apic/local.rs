//! One processor's local APIC, in xAPIC and x2APIC mode.
//!
//! Problem: decide which interrupt this processor takes next, and give the guest the registers that
//! say so. Scheme: a state machine without references to other APICs: a register write returns an
//! [`Effect`] for the router. Invariants: the INTR signal given to [`CpuSignals`] is that of the
//! present state whenever the lock is released; while software-disabled all LVT entries are masked;
//! what other threads need for addressing is in [`View`] and matches. A vector whose priority TPR
//! has raced past simply stays pending, so the spurious vector is never needed.
//! Thread: any, under this APIC's lock; timers call from the timer thread.
//! Source: SDM vol. 3, "Local APIC", "Extended XAPIC (x2APIC)", "APIC Timer".

mod describe;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bits::Bits;
use super::router::ApicFeatures;
use super::timer::{LvtTimer, Mode};
use super::{Delivery, Destination, Effect, LOCAL_APIC_BASE, Message, Refused};
use crate::clock::{Clock, Timed, Timer, WAKE_NS_MIN};
use crate::irq::{Acceptance, CpuSignals};

pub(super) const MSR_APIC_BASE: u32 = 0x1b;
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;
pub(super) const MSR_X2APIC: u32 = 0x800;
pub(super) const MSR_X2APIC_END: u32 = 0x900;

pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_X2APIC: u64 = 1 << 10;
pub(super) const BASE_ENABLE: u64 = 1 << 11;
pub(super) const BASE_ADDRESS: u64 = !0xfff;

/// Register numbers: the MMIO offset divided by 16, or the MSR less 0x800.
pub(super) mod reg {
    pub const ID: u8 = 0x02;
    pub const VERSION: u8 = 0x03;
    pub const TPR: u8 = 0x08;
    pub const APR: u8 = 0x09;
    pub const PPR: u8 = 0x0a;
    pub const EOI: u8 = 0x0b;
    pub const RRD: u8 = 0x0c;
    pub const LDR: u8 = 0x0d;
    pub const DFR: u8 = 0x0e;
    pub const SVR: u8 = 0x0f;
    pub const ISR: u8 = 0x10;
    pub const TMR: u8 = 0x18;
    pub const IRR: u8 = 0x20;
    pub const ESR: u8 = 0x28;
    pub const ICR_LOW: u8 = 0x30;
    pub const ICR_HIGH: u8 = 0x31;
    // Between timer and error: thermal, performance counters, LINT0, LINT1.
    pub const LVT_TIMER: u8 = 0x32;
    pub const LVT_ERROR: u8 = 0x37;
    pub const TIMER_INITIAL: u8 = 0x38;
    pub const TIMER_CURRENT: u8 = 0x39;
    pub const TIMER_DIVIDE: u8 = 0x3e;
    pub const SELF_IPI: u8 = 0x3f;
}

/// Version 0x14, six LVT entries, EOI broadcast can be suppressed.
pub const VERSION: u32 = 0x0105_0014;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_FOCUS_OFF: u32 = 1 << 9;
const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
const SVR_BITS: u32 = 0x13ff;

const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const LVT_DELIVERY_STATUS: u32 = 1 << 12;
/// Bits that a guest sets, from LVT timer to LVT error.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
const LVT_READ_ONLY: [u32; 6] = [
    LVT_DELIVERY_STATUS,
    LVT_DELIVERY_STATUS,
    LVT_DELIVERY_STATUS,
    LVT_DELIVERY_STATUS | LVT_REMOTE_IRR,
    LVT_DELIVERY_STATUS | LVT_REMOTE_IRR,
    LVT_DELIVERY_STATUS,
];
const TIMER: usize = 0;
const LINT0: usize = 3;
const ERROR: usize = 5;

const ESR_SEND_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_VECTOR: u32 = 1 << 6;
const ESR_REGISTER: u32 = 1 << 7;

const ICR_LOGICAL: u64 = 1 << 11;
const ICR_ASSERT: u64 = 1 << 14;
const ICR_LEVEL: u64 = 1 << 15;
/// Vector, delivery and destination mode, level, trigger, shorthand.
const ICR_BITS: u64 = 0x000c_cfff;
const X2APIC_ICR_RESERVED: u64 = 0xfff3_2000;

/// What the router reads without this APIC's lock.
#[derive(Debug, Default)]
pub(super) struct View {
    /// IA32_APIC_BASE.
    base: AtomicU64,
    /// Logical ID in bits 0-31, and the `VIEW_` bits.
    logical: AtomicU64,
}

const VIEW_ENABLED: u64 = 1 << 32;
const VIEW_X2APIC: u64 = 1 << 33;
const VIEW_CLUSTER: u64 = 1 << 34;

impl View {
    pub(super) fn base(&self) -> u64 {
        self.base.load(Ordering::Acquire)
    }

    /// Whether a logical destination names this APIC.
    pub(super) fn matches(&self, mask: u32, wide: bool) -> bool {
        let view = self.logical.load(Ordering::Acquire);
        let id = view & 0xffff_ffff;
        let mask64 = u64::from(mask);
        if view & VIEW_ENABLED == 0 {
            false
        } else if view & VIEW_X2APIC != 0 {
            mask64 >> 16 == id >> 16 && mask64 & id & 0xffff != 0
        } else if wide && mask > 0xff {
            false
        } else if view & VIEW_CLUSTER != 0 {
            (mask64 >> 4 == 0xf || mask64 >> 4 == id >> 4) && mask64 & id & 0xf != 0
        } else {
            mask64 & id != 0
        }
    }
}

/// The APIC of one processor.
pub(super) struct Local {
    /// APIC ID; also the processor's index.
    id: u32,
    bsp: bool,
    features: ApicFeatures,
    signals: Arc<dyn CpuSignals>,
    clock: Arc<dyn Clock>,
    wake: Timer,
    armed_ns: Option<u64>,
    woken_ns: Option<u64>,
    view: Arc<View>,
    base: u64,
    irr: Bits,
    isr: Bits,
    tmr: Bits,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    /// As read, and errors since the last write to it.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    timer: LvtTimer,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    /// An ExtINT message arrived and waits for its INTA.
    extint: bool,
    intr: bool,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("id", &self.id)
            .field("base", &self.base)
            .field("irr", &self.irr)
            .field("isr", &self.isr)
            .field("intr", &self.intr)
            .finish_non_exhaustive()
    }
}

impl Local {
    pub(super) fn new(
        id: u32,
        bsp: bool,
        features: ApicFeatures,
        signals: Arc<dyn CpuSignals>,
        clock: Arc<dyn Clock>,
        wake: Timer,
    ) -> Self {
        let mut local = Self {
            id,
            bsp,
            features,
            signals,
            clock,
            wake,
            armed_ns: None,
            woken_ns: None,
            view: Arc::default(),
            base: 0,
            irr: Bits::default(),
            isr: Bits::default(),
            tmr: Bits::default(),
            tpr: 0,
            svr: 0,
            ldr: 0,
            dfr: 0,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; 6],
            timer: LvtTimer::new(),
            lint: [false; 2],
            extint: false,
            intr: false,
        };
        local.reset();
        local
    }

    pub(super) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Power-up and RESET state.
    pub(super) fn reset(&mut self) {
        let bsp = if self.bsp { BASE_BSP } else { 0 };
        self.base = LOCAL_APIC_BASE | BASE_ENABLE | bsp;
        self.init();
    }

    /// State after INIT: as after power-up, but for IA32_APIC_BASE.
    pub(super) fn init(&mut self) {
        self.clear();
        self.publish();
        self.arm();
        self.intr = self.extint_level();
        self.signals.intr(self.intr);
    }

    /// What firmware leaves on the boot processor for the operating system: virtual wire mode.
    pub(super) fn firmware_defaults(&mut self) {
        self.svr = SVR_ENABLE | 0xff;
        if self.bsp {
            self.lvt[LINT0] = 0x8700;
            self.lvt[LINT0 + 1] = 0x8400;
        }
        self.update();
    }

    fn clear(&mut self) {
        self.irr = Bits::default();
        self.isr = Bits::default();
        self.tmr = Bits::default();
        self.tpr = 0;
        self.svr = 0xff;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.esr = 0;
        self.errors = 0;
        self.icr = 0;
        self.lvt = [LVT_MASKED; 6];
        self.timer = LvtTimer::new();
        self.extint = false;
    }

    fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    fn publish(&self) {
        let mut view = if self.x2apic() {
            VIEW_X2APIC | u64::from(self.logical_id())
        } else {
            u64::from(self.ldr >> 24)
        };
        if self.enabled() {
            view |= VIEW_ENABLED;
        }
        if self.dfr >> 28 != 0xf {
            view |= VIEW_CLUSTER;
        }
        self.view.logical.store(view, Ordering::Release);
        self.view.base.store(self.base, Ordering::Release);
    }

    /// LDR as read.
    fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 15) } else { self.ldr }
    }

    fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= serving >> 4 { self.tpr } else { serving & 0xf0 }
    }

    /// The vector to deliver, if there is one above PPR.
    fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// The 8259A's INTR comes through LINT0, or straight in with the APIC off.
    fn lint0_extint(&self) -> bool {
        self.lint[0]
            && (!self.enabled()
                || self.lvt[LINT0] & LVT_MASKED == 0
                    && Delivery::of(self.lvt[LINT0]) == Delivery::ExtInt)
    }

    fn extint_level(&self) -> bool {
        self.extint || self.lint0_extint()
    }

    /// Tells the processor if INTR has changed.
    fn update(&mut self) {
        let intr = self.pending().is_some() || self.extint_level();
        if intr != self.intr {
            self.intr = intr;
            self.signals.intr(intr);
        }
    }

    /// INTA: the vector, now in service.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        self.update();
        Some(vector)
    }

    /// INTA with nothing above PPR: whether it is for the 8259A.
    pub(super) fn take_extint(&mut self) -> bool {
        let level = self.extint_level();
        self.extint = false;
        self.update();
        level
    }

    pub(super) fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    pub(super) fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update();
    }

    /// How urgent this processor's present work is, for lowest-priority delivery; `None` if it
    /// doesn't take part. 0 is for the focus processor, which has this very interrupt already.
    pub(super) fn arbitration(&self, vector: u8) -> Option<u16> {
        if !self.enabled() || self.svr & SVR_ENABLE == 0 {
            return None;
        }
        let focus = self.irr.get(vector) || self.isr.get(vector);
        if focus && self.svr & SVR_FOCUS_OFF == 0 {
            return Some(0);
        }
        Some(u16::from(self.ppr().max(self.irr.highest().unwrap_or(0) & 0xf0)) + 1)
    }

    /// Takes a message, if it does.
    pub(super) fn accept(
        &mut self,
        delivery: Delivery,
        vector: u8,
        level_triggered: bool,
    ) -> Acceptance {
        if !self.enabled() {
            return Acceptance::Refused;
        }
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                let accepted = self.accept_vector(vector, level_triggered);
                self.update();
                return accepted;
            }
            Delivery::Nmi => self.signals.nmi(),
            Delivery::Init => self.signals.init(),
            Delivery::StartUp => self.signals.sipi(vector),
            Delivery::ExtInt => {
                self.extint = true;
                self.update();
            }
            // There is no system-management mode.
            Delivery::Smi | Delivery::Reserved => return Acceptance::Refused,
        }
        Acceptance::Accepted
    }

    fn accept_vector(&mut self, vector: u8, level_triggered: bool) -> Acceptance {
        if self.svr & SVR_ENABLE == 0 {
            return Acceptance::Refused;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_VECTOR);
            return Acceptance::Refused;
        }
        let is_pending = self.irr.get(vector);
        self.irr.set(vector, true);
        self.tmr.set(vector, level_triggered);
        if is_pending { Acceptance::Merged } else { Acceptance::Accepted }
    }

    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[ERROR];
        let [vector, ..] = lvt.to_le_bytes();
        // An error vector that is an error itself raises no further one.
        if lvt & LVT_MASKED == 0 && vector >= 16 {
            self.accept_vector(vector, false);
        }
    }

    /// LINT0 (0) or LINT1 (1) has this level.
    pub(super) fn set_lint(&mut self, pin: usize, level: bool) {
        if self.lint[pin] == level {
            return;
        }
        self.lint[pin] = level;
        if level {
            self.lint_rises(pin);
        }
        self.update();
    }

    fn lint_rises(&mut self, pin: usize) {
        if !self.enabled() {
            if pin == 1 {
                self.signals.nmi();
            }
            return;
        }
        let lvt = self.lvt[LINT0 + pin];
        if lvt & LVT_MASKED != 0 {
            return;
        }
        match Delivery::of(lvt) {
            Delivery::Fixed if lvt & LVT_LEVEL == 0 => {
                self.accept_vector(lvt.to_le_bytes()[0], false);
            }
            Delivery::Fixed => self.lint_level(pin),
            Delivery::Nmi => self.signals.nmi(),
            Delivery::Init => self.signals.init(),
            // ExtINT is a level, see `lint0_extint`.
            _ => {}
        }
    }

    /// Delivers a level-triggered fixed interrupt of a LINT pin, if it is due.
    fn lint_level(&mut self, pin: usize) {
        let lvt = self.lvt[LINT0 + pin];
        let fixed = Delivery::of(lvt) == Delivery::Fixed && lvt & LVT_LEVEL != 0;
        let due = fixed && self.lint[pin] && lvt & (LVT_MASKED | LVT_REMOTE_IRR) == 0;
        if due && self.accept_vector(lvt.to_le_bytes()[0], true) != Acceptance::Refused {
            self.lvt[LINT0 + pin] |= LVT_REMOTE_IRR;
        }
    }

    pub(super) fn eoi(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.set(vector, false);
        let mut effect = Effect::None;
        if self.tmr.get(vector) {
            for pin in 0..2 {
                let lvt = &mut self.lvt[LINT0 + pin];
                if *lvt & LVT_REMOTE_IRR != 0 && lvt.to_le_bytes()[0] == vector {
                    *lvt &= !LVT_REMOTE_IRR;
                    self.lint_level(pin);
                }
            }
            if self.svr & SVR_NO_EOI_BROADCAST == 0 {
                effect = Effect::Eoi(vector);
            }
        }
        self.update();
        effect
    }

    /// A command in ICR format, destination in the bits of this mode.
    fn send(&mut self, icr: u64) -> Effect {
        let [vector, control, ..] = icr.to_le_bytes();
        let delivery = Delivery::of(u32::from(control) << 8);
        // Inter-processor interrupts are edges, but for INIT, whose de-assertion does nothing.
        if delivery == Delivery::Init && icr & (ICR_LEVEL | ICR_ASSERT) == ICR_LEVEL {
            return Effect::None;
        }
        let fixed = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if fixed && vector < 16 {
            self.error(ESR_SEND_VECTOR);
            self.update();
            return Effect::None;
        }
        if matches!(delivery, Delivery::ExtInt | Delivery::Reserved) {
            return Effect::None;
        }
        let logical = icr & ICR_LOGICAL != 0;
        // The ID is the processor's index, and there are at most as many as fit.
        let me = usize::try_from(self.id).unwrap_or(usize::MAX);
        let [.., d0, d1, d2, d3] = icr.to_le_bytes();
        let destination = match (icr >> 18) & 3 {
            1 => Destination::One(me),
            2 => Destination::All,
            3 => Destination::AllBut(me),
            _ if self.x2apic() => Destination::wide(u32::from_le_bytes([d0, d1, d2, d3]), logical),
            _ => Destination::narrow(d3, logical),
        };
        Effect::Send(Message { destination, delivery, vector, level_triggered: false })
    }

    /// Reads register `number`; `None` if there is none.
    fn read(&mut self, number: u8) -> Option<u32> {
        Some(match number {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::APR | reg::RRD => 0,
            reg::PPR => self.ppr().into(),
            reg::EOI => 0,
            reg::LDR => self.logical_id(),
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.word(number - reg::ISR),
            reg::TMR..reg::IRR => self.tmr.word(number - reg::TMR),
            reg::IRR..reg::ESR => self.irr.word(number - reg::IRR),
            reg::ESR => self.esr,
            reg::ICR_LOW => low(self.icr),
            reg::ICR_HIGH => low(self.icr >> 32),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[usize::from(number - reg::LVT_TIMER)],
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => {
                // A guest that sees the count restart must also see the interrupt.
                self.run_timer();
                self.timer.current(self.clock.now_ns())
            }
            reg::TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes register `number`; `None` if there is none.
    fn write(&mut self, number: u8, value: u32) -> Option<Effect> {
        let mut effect = Effect::None;
        match number {
            reg::ID | reg::VERSION | reg::APR | reg::PPR | reg::RRD | reg::TIMER_CURRENT => {}
            reg::ISR..reg::ESR => {}
            reg::TPR => self.tpr = value.to_le_bytes()[0],
            reg::EOI => return Some(self.eoi()),
            reg::LDR => {
                self.ldr = value & 0xff00_0000;
                self.publish();
            }
            reg::DFR => {
                self.dfr = value | 0x0fff_ffff;
                self.publish();
            }
            reg::SVR => self.write_svr(value),
            reg::ESR => {
                self.esr = self.errors;
                self.errors = 0;
            }
            reg::ICR_LOW => {
                self.icr = (self.icr & !0xffff_ffff) | (u64::from(value) & ICR_BITS);
                effect = self.send(self.icr);
            }
            reg::ICR_HIGH => {
                self.icr = (self.icr & 0xffff_ffff) | u64::from(value & 0xff00_0000) << 32;
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                self.write_lvt(usize::from(number - reg::LVT_TIMER), value);
            }
            reg::TIMER_INITIAL => {
                let mode = Mode::of(self.lvt[TIMER]);
                self.timer.set_initial(mode, value, self.clock.now_ns());
                self.arm();
            }
            reg::TIMER_DIVIDE => {
                self.run_timer();
                self.timer.set_divide(value, self.clock.now_ns());
                self.arm();
            }
            _ => return None,
        }
        self.update();
        Some(effect)
    }

    fn write_svr(&mut self, value: u32) {
        self.svr = value & SVR_BITS;
        if self.svr & SVR_ENABLE == 0 {
            for lvt in &mut self.lvt {
                *lvt |= LVT_MASKED;
            }
            self.arm();
        }
    }

    fn write_lvt(&mut self, n: usize, value: u32) {
        let masked = if self.svr & SVR_ENABLE == 0 { LVT_MASKED } else { 0 };
        if n == TIMER {
            // What expired while masked is lost, not late.
            self.run_timer();
        }
        let before = self.lvt[n];
        let mut writable = LVT_WRITABLE[n];
        if n == TIMER && !self.features.tsc_deadline {
            writable &= !(1 << 18);
        }
        self.lvt[n] = (value & writable) | (before & LVT_READ_ONLY[n]) | masked;
        match n {
            TIMER => {
                self.timer.change_mode(Mode::of(before), Mode::of(self.lvt[n]));
                self.arm();
            }
            LINT0 | 4 => {
                if self.lvt[n] & LVT_LEVEL == 0 {
                    self.lvt[n] &= !LVT_REMOTE_IRR;
                }
                self.lint_level(n - LINT0);
            }
            _ => {}
        }
    }

    /// Looks whether the timer has expired.
    fn run_timer(&mut self) {
        let lvt = self.lvt[TIMER];
        if self.timer.expired(Mode::of(lvt), &*self.clock) && lvt & LVT_MASKED == 0 {
            self.accept_vector(lvt.to_le_bytes()[0], false);
        }
    }

    /// Asks the timer queue for the next expiry. A masked timer needs none.
    fn arm(&mut self) {
        let masked = self.lvt[TIMER] & LVT_MASKED != 0;
        let wake_ns = if masked { None } else { self.timer.wake_ns(&*self.clock) };
        let earliest = match Mode::of(self.lvt[TIMER]) {
            Mode::Periodic => self.woken_ns.map_or(0, |ns| ns.saturating_add(WAKE_NS_MIN)),
            _ => 0,
        };
        let wake_ns = wake_ns.map(|ns| ns.max(earliest));
        if wake_ns != self.armed_ns {
            self.armed_ns = wake_ns;
            self.wake.arm(wake_ns);
        }
    }

    /// Reads at `offset` of the xAPIC page. Upper bytes are for the caller to cut.
    pub(super) fn mmio_read(&mut self, offset: u64) -> u64 {
        if !self.enabled() || self.x2apic() {
            return u64::MAX;
        }
        let (number, within) = split(offset);
        if within > 3 {
            return 0;
        }
        let value = self.read(number);
        if value.is_none() {
            self.error(ESR_REGISTER);
        }
        self.update();
        u64::from(value.unwrap_or(0)) >> (8 * within)
    }

    /// Writes at `offset` of the xAPIC page. Only whole registers can be written.
    pub(super) fn mmio_write(&mut self, offset: u64, size: u8, value: u64) -> Effect {
        let (number, within) = split(offset);
        if !self.enabled() || self.x2apic() || within != 0 || size < 4 {
            return Effect::None;
        }
        self.write(number, low(value)).unwrap_or_else(|| {
            self.error(ESR_REGISTER);
            self.update();
            Effect::None
        })
    }

    pub(super) fn msr_read(&mut self, msr: u32) -> Result<u64, Refused> {
        match msr {
            MSR_APIC_BASE => Ok(self.base),
            MSR_TSC_DEADLINE if self.features.tsc_deadline => {
                self.run_timer();
                self.update();
                Ok(self.timer.tsc_deadline())
            }
            MSR_X2APIC..MSR_X2APIC_END if self.x2apic() => {
                let number = u8::try_from(msr - MSR_X2APIC).map_err(|_| Refused)?;
                match number {
                    reg::ICR_LOW => Ok(self.icr),
                    reg::APR | reg::RRD | reg::DFR | reg::EOI | reg::ICR_HIGH => Err(Refused),
                    _ => {
                        let value = self.read(number).map(u64::from).ok_or(Refused);
                        self.update();
                        value
                    }
                }
            }
            _ => Err(Refused),
        }
    }

    pub(super) fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        tsc_offset: u64,
    ) -> Result<Effect, Refused> {
        match msr {
            MSR_APIC_BASE => self.write_base(value).map(|()| Effect::None),
            MSR_TSC_DEADLINE if self.features.tsc_deadline => {
                let mode = Mode::of(self.lvt[TIMER]);
                self.timer.set_tsc_deadline(mode, value, tsc_offset);
                // One that has passed already needs no timer thread.
                self.run_timer();
                self.arm();
                self.update();
                Ok(Effect::None)
            }
            MSR_X2APIC..MSR_X2APIC_END if self.x2apic() => {
                let number = u8::try_from(msr - MSR_X2APIC).map_err(|_| Refused)?;
                self.write_x2apic(number, value)
            }
            _ => Err(Refused),
        }
    }

    /// x2APIC registers: reserved bits and what isn't writable refuse.
    fn write_x2apic(&mut self, number: u8, value: u64) -> Result<Effect, Refused> {
        let lvt = |n: usize| u64::from(LVT_WRITABLE[n] | LVT_READ_ONLY[n]);
        let allowed = match number {
            reg::EOI | reg::ESR => 0,
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::SVR => u64::from(SVR_BITS),
            reg::ICR_LOW => !X2APIC_ICR_RESERVED,
            reg::LVT_TIMER if !self.features.tsc_deadline => lvt(TIMER) & !(1 << 18),
            reg::LVT_TIMER..=reg::LVT_ERROR => lvt(usize::from(number - reg::LVT_TIMER)),
            reg::TIMER_INITIAL => 0xffff_ffff,
            reg::TIMER_DIVIDE => 0xb,
            _ => return Err(Refused),
        };
        if value & !allowed != 0 {
            return Err(Refused);
        }
        match number {
            reg::ICR_LOW => {
                self.icr = value & (ICR_BITS | 0xffff_ffff_0000_0000);
                let effect = self.send(self.icr);
                self.update();
                Ok(effect)
            }
            // Fixed, to self, as an edge.
            reg::SELF_IPI => Ok(self.send(1 << 18 | value)),
            _ => self.write(number, low(value)).ok_or(Refused),
        }
    }

    /// IA32_APIC_BASE: of the transitions only off to xAPIC, xAPIC to x2APIC, and any to off exist.
    fn write_base(&mut self, value: u64) -> Result<(), Refused> {
        let known = BASE_BSP | BASE_ENABLE | if self.features.x2apic { BASE_X2APIC } else { 0 };
        let address = BASE_ADDRESS & self.features.physical_mask();
        if value & !(known | address) != 0 {
            return Err(Refused);
        }
        let mode = |base: u64| (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0);
        match (mode(self.base), mode(value)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true)) => {
                return Err(Refused);
            }
            _ => {}
        }
        let was_enabled = self.enabled();
        let was_x2apic = self.x2apic();
        self.base = value;
        if was_enabled != self.enabled() {
            // "Must be brought back to its power-up state": the registers are lost.
            self.clear();
            self.arm();
        } else if self.x2apic() && !was_x2apic {
            // The ICR's destination is that of the other format now.
            self.icr &= 0xffff_ffff;
        }
        self.publish();
        self.update();
        Ok(())
    }
}

impl Timed for Local {
    fn run(&mut self, now_ns: u64) {
        self.armed_ns = None;
        self.woken_ns = Some(now_ns);
        self.run_timer();
        self.arm();
        self.update();
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Register number and byte within it of an offset in the page.
fn split(offset: u64) -> (u8, u64) {
    let [number, ..] = (offset >> 4).to_le_bytes();
    (number, offset & 15)
}
