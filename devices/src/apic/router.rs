//! The interrupt router: every interrupt controller of the machine, with one face to devices
//! ([`IrqSink`]) and one to vCPUs.
//!
//! Problem: device threads, the timer thread and vCPUs in parallel reach controllers that talk to each
//! other both ways. Scheme: messages go down, 8259A pair to I/O APIC to local APIC, under the locks in
//! that order; what goes up (EOI to the I/O APIC, INTA to the 8259A) or across (inter-processor
//! interrupts) starts after the local APIC's lock is released. Edges that fall together with one that is still pending,
//! because their processor's thread waits for one of the host, are owed: an INTA lets the next one in. Wiring: ISA lines 0-15 reach the
//! 8259A and the I/O APIC pin of the same number, but line 0 reaches pin 2; GSI 2 is that pin alone;
//! GSI 16-23 only the I/O APIC; the 8259A's INTR goes to LINT0 of processor 0 and to pin 0.
//! Invariants: never two local APICs' locks at once; LINT0 and pin 0 follow the 8259A under its lock.
//! Thread: any.
//! Source: MultiProcessor Specification 1.4, "Virtual Wire Mode"; SDM vol. 3, "Message Signalled
//! Interrupts", "Lowest Priority Delivery Mode".

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::io::IoApic;
use super::local::{BASE_ADDRESS, BASE_ENABLE, BASE_X2APIC, Local, View};
use super::{
    Delivery, Destination, Effect, IO_APIC_BASE, IO_APIC_PINS, LOCAL_APIC_BASE, Message, Refused,
};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::{Clock, TimerQueue, lock};
use crate::irq::{Acceptance, CpuSignals, IrqSink};
use crate::legacy::pic::Pic;

/// What the processors' CPUID says about their local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicFeatures {
    /// CPUID.1:ECX bit 21.
    pub x2apic: bool,
    /// CPUID.1:ECX bit 24.
    pub tsc_deadline: bool,
    /// MAXPHYADDR, CPUID.80000008H:EAX bits 0-7.
    pub physical_address_bits: u8,
}

impl Default for ApicFeatures {
    fn default() -> Self {
        Self { x2apic: true, tsc_deadline: true, physical_address_bits: 46 }
    }
}

impl ApicFeatures {
    pub(super) fn physical_mask(self) -> u64 {
        (1 << self.physical_address_bits.min(52)) - 1
    }
}

/// Edges of one line that are made up for at most; more than a few ticks would be a storm after a host's sleep.
const OWED_MAX: u8 = 16;

struct Cpu {
    local: Arc<Mutex<Local>>,
    view: Arc<View>,
}

/// The local APICs, as messages reach them.
struct Locals(Vec<Cpu>);

impl Locals {
    /// Delivers a message; what he who liked it best made of it.
    fn deliver(&self, message: &Message) -> Acceptance {
        if message.delivery == Delivery::LowestPriority {
            return self.deliver_lowest(message);
        }
        let mut best = Acceptance::Refused;
        self.for_each(message.destination, |index| {
            best = best.max(self.accept(index, message));
        });
        best
    }

    fn accept(&self, index: usize, message: &Message) -> Acceptance {
        lock(&self.0[index].local).accept(message.delivery, message.vector, message.level_triggered)
    }

    /// To the one processor, of those named, with the least urgent work; the first such.
    fn deliver_lowest(&self, message: &Message) -> Acceptance {
        let mut best: Option<(u16, usize)> = None;
        self.for_each(message.destination, |index| {
            if let Some(priority) = lock(&self.0[index].local).arbitration(message.vector)
                && best.is_none_or(|(least, _)| priority < least)
            {
                best = Some((priority, index));
            }
        });
        best.map_or(Acceptance::Refused, |(_, index)| self.accept(index, message))
    }

    fn for_each(&self, destination: Destination, mut act: impl FnMut(usize)) {
        match destination {
            Destination::One(index) => act(index),
            // The ID is the index.
            Destination::Physical(id) => {
                if let Some(index) = usize::try_from(id).ok().filter(|&id| id < self.0.len()) {
                    act(index);
                }
            }
            Destination::All => (0..self.0.len()).for_each(act),
            Destination::AllBut(me) => (0..self.0.len()).filter(|&n| n != me).for_each(act),
            Destination::Logical { mask, wide } => {
                for (index, cpu) in self.0.iter().enumerate() {
                    if cpu.view.matches(mask, wide) {
                        act(index);
                    }
                }
            }
        }
    }
}

/// The I/O APIC and the lines that lead to its shared pin 2.
struct Io {
    apic: IoApic,
    isa_0: bool,
    gsi_2: bool,
    /// Edges that each GSI is owed.
    owed: [u8; IO_APIC_PINS as usize],
}

impl Io {
    /// Line `gsi` has this level; the pin that it leads to.
    fn set(&mut self, gsi: u32, level: bool) -> usize {
        match gsi {
            0 => self.isa_0 = level,
            2 => self.gsi_2 = level,
            _ => return usize::try_from(gsi).unwrap_or(2),
        }
        2
    }
}

/// All interrupt controllers. Processor `n` has APIC ID `n`; processor 0 is the boot processor.
/// Methods that take a processor's index panic if there is no such processor.
pub struct InterruptRouter {
    pic: Mutex<Pic>,
    io: Mutex<Io>,
    locals: Locals,
    /// The GSIs that are owed edges, a bit each: changes with [`Io::owed`].
    owing: AtomicU32,
}

impl fmt::Debug for InterruptRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptRouter")
            .field("cpus", &self.locals.0.len())
            .finish_non_exhaustive()
    }
}

impl InterruptRouter {
    /// Controllers in reset state for as many processors as `signals`.
    #[must_use]
    pub fn new(
        signals: Vec<Arc<dyn CpuSignals>>,
        features: ApicFeatures,
        clock: &Arc<dyn Clock>,
        timers: &Arc<TimerQueue>,
    ) -> Arc<Self> {
        let cpus = (0u32..)
            .zip(signals)
            .map(|(id, signals)| {
                let wake = timers.timer();
                let local =
                    Local::new(id, id == 0, features, signals, Arc::clone(clock), wake.clone());
                let view = Arc::clone(local.view());
                let local = Arc::new(Mutex::new(local));
                wake.attach(&local);
                Cpu { local, view }
            })
            .collect();
        Arc::new(Self {
            pic: Mutex::new(Pic::new()),
            io: Mutex::new(Io {
                apic: IoApic::new(),
                isa_0: false,
                gsi_2: false,
                owed: [0; IO_APIC_PINS as usize],
            }),
            locals: Locals(cpus),
            owing: AtomicU32::new(0),
        })
    }

    /// Puts the 8259A pair, the I/O APIC and the MSI address range on the buses. Local APICs are
    /// reached through [`InterruptRouter::local_offset`], to be asked first, as each vCPU sees its
    /// own.
    ///
    /// # Errors
    /// [`Overlap`] if an address is taken.
    pub fn attach(self: &Arc<Self>, ports: &mut Bus, memory: &mut Bus) -> Result<(), Overlap> {
        let pic: Arc<Mutex<dyn BusDevice>> = Arc::new(Mutex::new(PicPorts(Arc::clone(self))));
        ports.insert(0x20, 2, Arc::clone(&pic))?;
        ports.insert_at(0xa0, 2, 2, Arc::clone(&pic))?;
        ports.insert_at(0x4d0, 2, 4, pic)?;
        memory.insert(IO_APIC_BASE, 0x1000, Arc::new(Mutex::new(IoApicMmio(Arc::clone(self)))))?;
        let window = Arc::new(Mutex::new(MessageWindow(Arc::clone(self))));
        memory.insert(LOCAL_APIC_BASE, MESSAGE_WINDOW_BYTES, window)
    }

    /// RESET of the whole machine.
    pub fn reset(&self) {
        self.with_pic(Pic::reset);
        lock(&self.io).apic.reset();
        (0..IO_APIC_PINS).for_each(|gsi| self.forget_edges(gsi));
        for cpu in &self.locals.0 {
            lock(&cpu.local).reset();
        }
    }

    /// The state that firmware leaves for a kernel that is started directly: the boot processor's
    /// APIC in virtual wire mode, the 8259A pair as SeaBIOS programs it.
    pub fn firmware_defaults(&self) {
        self.with_pic(Pic::firmware_defaults);
        if let Some(cpu) = self.locals.0.first() {
            lock(&cpu.local).firmware_defaults();
        }
    }

    /// Makes ISA lines level-sensitive at the 8259A pair, as firmware does for PCI interrupts.
    pub fn set_elcr(&self, lines: u16) {
        let [master, slave] = lines.to_le_bytes();
        self.with_pic(|pic| {
            pic.write(crate::legacy::pic::port::ELCR_MASTER, master);
            pic.write(crate::legacy::pic::port::ELCR_SLAVE, slave);
        });
    }

    /// The 8259A pair's registers, for people.
    #[must_use]
    pub fn describe_pic(&self) -> String {
        lock(&self.pic).describe()
    }

    /// The I/O APIC's registers, for people.
    #[must_use]
    pub fn describe_io_apic(&self) -> String {
        lock(&self.io).apic.describe()
    }

    /// The registers of processor `cpu`'s local APIC, for people.
    #[must_use]
    pub fn describe_local_apic(&self, cpu: usize) -> String {
        self.local(cpu).describe()
    }

    /// The NMI button: a pulse on every processor's LINT1.
    pub fn nmi(&self) {
        for cpu in &self.locals.0 {
            let mut local = lock(&cpu.local);
            local.set_lint(1, true);
            local.set_lint(1, false);
        }
    }

    fn local(&self, cpu: usize) -> std::sync::MutexGuard<'_, Local> {
        lock(&self.locals.0[cpu].local)
    }

    /// Acts on the 8259A pair, then brings what hangs on its INTR up to date.
    fn with_pic<R>(&self, act: impl FnOnce(&mut Pic) -> R) -> R {
        let mut pic = lock(&self.pic);
        let before = pic.intr();
        let result = act(&mut pic);
        let after = pic.intr();
        if before != after {
            self.pic_output(after);
        }
        result
    }

    /// INTR of the 8259A pair. Called with its lock held.
    fn pic_output(&self, level: bool) {
        if let Some(cpu) = self.locals.0.first() {
            lock(&cpu.local).set_lint(0, level);
        }
        let deliver = |message: &Message| self.locals.deliver(message);
        lock(&self.io).apic.set_pin(0, level, &deliver);
    }

    /// INTA to the 8259A pair. INTR falls with it, and rises anew if there is more.
    fn acknowledge_pic(&self) -> Option<u8> {
        let mut pic = lock(&self.pic);
        // A request that went away since the vCPU looked is not answered with a spurious vector:
        // the INTA cycle has not begun yet.
        if !pic.intr() {
            return None;
        }
        let vector = pic.acknowledge();
        self.pic_output(false);
        if pic.intr() {
            self.pic_output(true);
        }
        Some(vector)
    }

    /// INTA of vCPU `cpu`: the vector to deliver now, if there still is one.
    #[must_use]
    pub fn acknowledge(&self, cpu: usize) -> Option<u8> {
        let (from_local, from_pic) = {
            let mut local = self.local(cpu);
            let vector = local.acknowledge();
            (vector, vector.is_none() && local.take_extint())
        };
        let vector = if from_pic { self.acknowledge_pic() } else { from_local };
        if vector.is_some() {
            self.deliver_owed();
        }
        vector
    }

    /// A rising edge of line `gsi`, which is high afterwards.
    fn edge(&self, gsi: u32) -> Acceptance {
        let from_pic = match u8::try_from(gsi) {
            Ok(irq @ 0..16) => self.with_pic(|pic| pic.edge(irq)),
            _ => Acceptance::Refused,
        };
        if gsi >= IO_APIC_PINS {
            return from_pic;
        }
        let mut io = lock(&self.io);
        let pin = io.set(gsi, true);
        from_pic.max(io.apic.edge(pin, &|message: &Message| self.locals.deliver(message)))
    }

    /// An interrupt was taken: whoever is owed edges may have the next.
    fn deliver_owed(&self) {
        let mut owing = self.owing.load(Ordering::Relaxed);
        while owing != 0 {
            let gsi = owing.trailing_zeros();
            owing &= owing - 1;
            // Taken off first, so that two processors don't deliver the same one.
            if self.change_owed(gsi, |owed| owed.saturating_sub(1)) > 0 {
                self.edge_or_owe(gsi, 0);
            }
        }
    }

    /// An edge, or another one owed, and so `more`.
    fn edge_or_owe(&self, gsi: u32, more: u8) {
        let owed_more = match self.edge(gsi) {
            Acceptance::Refused => return self.forget_edges(gsi),
            Acceptance::Merged => more.saturating_add(1),
            Acceptance::Accepted => more,
        };
        self.change_owed(gsi, |owed| owed.saturating_add(owed_more).min(OWED_MAX));
    }

    /// Changes how many edges `gsi` is owed; returns what it was before.
    fn change_owed(&self, gsi: u32, change: impl FnOnce(u8) -> u8) -> u8 {
        let mut io = lock(&self.io);
        let Some(owed) = usize::try_from(gsi).ok().and_then(|gsi| io.owed.get_mut(gsi)) else {
            return 0;
        };
        let before = *owed;
        *owed = change(before);
        if *owed == 0 {
            self.owing.fetch_and(!(1 << gsi), Ordering::Relaxed);
        } else {
            self.owing.fetch_or(1 << gsi, Ordering::Relaxed);
        }
        before
    }

    /// Where in its local APIC's page vCPU `cpu` accesses physical address `address`, if it does.
    /// One load, for every MMIO access.
    #[must_use]
    pub fn local_offset(&self, cpu: usize, address: u64) -> Option<u64> {
        let base = self.locals.0[cpu].view.base();
        let offset = address.wrapping_sub(base & BASE_ADDRESS);
        (offset < 0x1000 && base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE).then_some(offset)
    }

    /// Reads `size` bytes at `offset` of vCPU `cpu`'s local APIC page.
    #[must_use]
    pub fn mmio_read(&self, cpu: usize, offset: u64, size: u8) -> u64 {
        let value = self.local(cpu).mmio_read(offset);
        match size {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Writes `size` bytes at `offset` of vCPU `cpu`'s local APIC page.
    pub fn mmio_write(&self, cpu: usize, offset: u64, size: u8, value: u64) {
        let effect = self.local(cpu).mmio_write(offset, size, value);
        self.perform(effect);
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// [`Refused`]: no such register, or not in this mode.
    pub fn msr_read(&self, cpu: usize, msr: u32) -> Result<u64, Refused> {
        self.local(cpu).msr_read(msr)
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register. `tsc_offset` is what the vCPU
    /// adds to the raw time stamp counter.
    ///
    /// # Errors
    /// [`Refused`]: no such register, reserved bits, or not in this mode.
    pub fn msr_write(
        &self,
        cpu: usize,
        msr: u32,
        value: u64,
        tsc_offset: u64,
    ) -> Result<(), Refused> {
        let effect = self.local(cpu).msr_write(msr, value, tsc_offset)?;
        self.perform(effect);
        Ok(())
    }

    /// CR8: bits 4-7 of vCPU `cpu`'s TPR.
    #[must_use]
    pub fn tpr(&self, cpu: usize) -> u8 {
        self.local(cpu).cr8()
    }

    /// Writes CR8.
    pub fn set_tpr(&self, cpu: usize, cr8: u8) {
        self.local(cpu).set_tpr(cr8 << 4);
    }

    /// Power-up state of vCPU `cpu`'s local APIC.
    pub fn reset_cpu(&self, cpu: usize) {
        self.local(cpu).reset();
    }

    /// State of vCPU `cpu`'s local APIC after INIT.
    pub fn init_cpu(&self, cpu: usize) {
        self.local(cpu).init();
    }

    fn perform(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Eoi(vector) => {
                let deliver = |message: &Message| self.locals.deliver(message);
                lock(&self.io).apic.eoi(vector, &deliver);
            }
            Effect::Send(message) => {
                self.locals.deliver(&message);
            }
        }
    }
}

impl IrqSink for InterruptRouter {
    fn set_level(&self, gsi: u32, level: bool) {
        if let Ok(irq @ 0..16) = u8::try_from(gsi) {
            self.with_pic(|pic| pic.set_pin(irq, level));
        }
        if gsi >= IO_APIC_PINS {
            return;
        }
        let mut io = lock(&self.io);
        let pin = io.set(gsi, level);
        let level = if pin == 2 { io.isa_0 || io.gsi_2 } else { level };
        io.apic.set_pin(pin, level, &|message: &Message| self.locals.deliver(message));
    }

    fn edges(&self, gsi: u32, count: u64) {
        if count == 0 {
            return;
        }
        self.edge_or_owe(gsi, u8::try_from(count - 1).unwrap_or(OWED_MAX));
    }

    fn forget_edges(&self, gsi: u32) {
        self.change_owed(gsi, |_| 0);
    }

    fn message(&self, address: u64, data: u32) {
        if address >> 20 != 0xfee {
            return;
        }
        let [_, low, high, ..] = address.to_le_bytes();
        // Destination ID in bits 12-19, destination mode in bit 2.
        let id = low >> 4 | high << 4;
        let [vector, control, ..] = data.to_le_bytes();
        let level_triggered = control & 0x80 != 0;
        if level_triggered && control & 0x40 == 0 {
            // De-assertion.
            return;
        }
        self.locals.deliver(&Message {
            destination: Destination::narrow(id, address & 4 != 0),
            delivery: Delivery::of(data),
            vector,
            level_triggered,
        });
    }
}

/// The 8259A pair on the port bus: 0x20-0x21 as offsets 0-1, 0xa0-0xa1 as 2-3, 0x4d0-0x4d1 as 4-5.
#[derive(Debug)]
pub struct PicPorts(pub Arc<InterruptRouter>);

impl BusDevice for PicPorts {
    fn name(&self, _: u64) -> String {
        "pic".to_owned()
    }
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        self.0.with_pic(|pic| pic.read(offset)).into()
    }
    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let [byte, ..] = value.to_le_bytes();
        self.0.with_pic(|pic| pic.write(offset, byte));
    }
}

/// The I/O APIC on the memory bus.
#[derive(Debug)]
pub struct IoApicMmio(pub Arc<InterruptRouter>);

impl BusDevice for IoApicMmio {
    fn name(&self, _: u64) -> String {
        "ioapic".to_owned()
    }
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        let value = lock(&self.0.io).apic.read(offset & !3);
        u64::from(value) >> (8 * (offset & 3))
    }
    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let [a, b, c, d, ..] = value.to_le_bytes();
        // The window takes whole registers; bytes will do to select one, or to end an interrupt.
        if offset & 3 != 0 || (offset == 0x10 && size != 4) {
            return;
        }
        let deliver = |message: &Message| self.0.locals.deliver(message);
        lock(&self.0.io).apic.write(offset, u32::from_le_bytes([a, b, c, d]), &deliver);
    }
    fn width(&self) -> u8 {
        4
    }
}

/// The MSI address range on the memory bus, for processors that write messages themselves.
struct MessageWindow(Arc<InterruptRouter>);

const MESSAGE_WINDOW_BYTES: u64 = 1 << 20;

impl BusDevice for MessageWindow {
    fn name(&self, _: u64) -> String {
        "apic and msi".to_owned()
    }
    fn read(&mut self, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn write(&mut self, offset: u64, size: u8, value: u64) {
        // What is left of the first page are registers of an APIC that is off.
        if size == 4 && offset & 3 == 0 && !(0x10..0x1000).contains(&offset) {
            let [a, b, c, d, ..] = value.to_le_bytes();
            self.0.message(LOCAL_APIC_BASE + offset, u32::from_le_bytes([a, b, c, d]));
        }
    }
    fn width(&self) -> u8 {
        4
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
