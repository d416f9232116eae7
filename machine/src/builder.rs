//! From a configuration to a wired board.
//!
//! Problem: the parts know each other through traits only, so somebody must hold the wiring diagram.
//! Scheme: [`Board::build`] is that diagram, read from top to bottom: RAM and what is in it, time,
//! interrupt controllers, devices on the two buses, processors. Where a kernel is started without firmware,
//! what a guest expects that to have set up (BARs, 8259 vectors, virtual wire mode, MTRRs, ACPI tables) is
//! set here; firmware finds a board as power-on leaves it, and is told of the rest by [`firmware`].
//! Invariants: a board is used for one run; dropping it ends every thread that its devices have. Thread:
//! the machine's.
//! Source: Intel 440FX and PIIX3 datasheets for what sits where; ACPI Specification, "System Address Map
//! Interfaces"; SDM vol. 3, "MTRR".

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use xenolith_cpu::cpuid::{CpuidModel, Feature, Vendor};
use xenolith_cpu::env::{Env, attention};
use xenolith_cpu::host_code::HostCode;
use xenolith_cpu::interp::Interp;
use xenolith_cpu::state::Activity;
use xenolith_cpu::{CpuState, Gpa};
use xenolith_devices::acpi::pm::{self, PmBlock};
use xenolith_devices::acpi::tables::{self, AcpiConfig, AcpiError, Tables};
use xenolith_devices::apic::{ApicFeatures, InterruptRouter};
use xenolith_devices::bus::{Bus, Overlap};
use xenolith_devices::clock::{Clock, Timed, TimerQueue, lock};
use xenolith_devices::floppy;
use xenolith_devices::fw_cfg::{self, FwCfg};
use xenolith_devices::hpet::{Hpet, LegacyGate};
use xenolith_devices::ide;
use xenolith_devices::irq::{IrqLine, IrqSink};
use xenolith_devices::kvmclock::KvmClock;
use xenolith_devices::legacy::debug_exit::{self, DebugExit};
use xenolith_devices::legacy::debugcon::{self, DebugConsole};
use xenolith_devices::legacy::dma::{Dma, DmaChannels};
use xenolith_devices::legacy::i8042::{self, I8042};
use xenolith_devices::legacy::pit::Pit;
use xenolith_devices::legacy::reset::{self, A20Gate};
use xenolith_devices::legacy::rtc::Rtc;
use xenolith_devices::legacy::serial_io::SerialOutput;
use xenolith_devices::legacy::testdev;
use xenolith_devices::legacy::uart::{self, SerialInput, Uart};
use xenolith_devices::mp::{self, MpConfig};
use xenolith_devices::net::{NetBackend, e1000};
use xenolith_devices::pci::{PciError, PciRoot};
use xenolith_devices::power::PowerEvents;
use xenolith_devices::smbios;
use xenolith_devices::vga::{self, Vga};
use xenolith_devices::virtio::{self, BalloonHandle, BalloonMemory, ConsoleHandle, Interfaces};
use xenolith_mmu::{GuestRam, SoftMmu};
use xenolith_net::Network;

use crate::boot::{Start, option_rom};
use crate::bt::{Bt, Options, SharedSlot};
use crate::clock::{CountedClock, HostClock};
use crate::config::{self, Config, ConfigError, NetConfig, NetModel};
use crate::console::{Port, Sink, is_on_virtio};
use crate::control::{Cause, Control};
use crate::drives::{self, Disk, ForFirmware, Sockets};
use crate::engine::{Engine, Stubs};
use crate::env::{Buses, Ferr, VcpuEnv, World};
use crate::firmware;
use crate::inspect;
use crate::memory_map::{self, EBDA_START, MP_POINTER, MemoryMap};
use crate::random::Random;
use crate::run::{self, Time, Vcpu};
use crate::screen::Parts;
use crate::signal;
use crate::switch::{self, Remapper, Shadowed, Video};
use crate::vcpu::Pins;
use crate::video;

/// Where BARs go: the top of the hole, right below the I/O APIC, with room for a display's memory.
const PCI_HOLE: std::ops::Range<u64> = 0xfd00_0000..0xfec0_0000;
const PCI_PORTS: std::ops::Range<u16> = 0xc000..0xf000;

/// Starts the network, which stays over resets.
///
/// # Errors
/// A port is taken, or a file can't be used.
pub fn open_network(config: &Config) -> Result<Option<Network>, ConfigError> {
    let start = |net: &NetConfig| Network::start(&net.settings);
    let network = config.net.as_ref().map(start).transpose();
    network.map_err(|error| ConfigError::Net { reason: error.to_string() })
}

/// What an engine is made of: a vCPU in its first state, its memory and its world.
pub struct EngineParts {
    pub state: CpuState,
    pub mmu: SoftMmu,
    pub env: Box<dyn Env>,
    pub model: Arc<CpuidModel>,
    pub index: u32,
    pub code: Box<dyn HostCode>,
    /// What the machine's translating engines share.
    pub translations: Arc<SharedSlot>,
}

/// Makes a vCPU's engine.
pub type MakeEngine<'a> = dyn FnMut(EngineParts) -> Result<Box<dyn Engine>, ConfigError> + 'a;

impl EngineParts {
    /// # Errors
    /// The host refuses memory for code.
    pub fn engine(self, kind: config::Engine) -> Result<Box<dyn Engine>, ConfigError> {
        let Self { state, mmu, env, model, index, code, translations } = self;
        match kind {
            config::Engine::Interp => {
                Ok(Box::new(Interp::new(state, mmu, env, model, index, code)))
            }
            config::Engine::Bt => {
                let shared = translations
                    .get(mmu.guest_ram())
                    .map_err(|error| host("provide memory for code")(error.into()))?;
                let engine = Bt::new(state, mmu, env, model, index, code, shared)
                    .map_err(|error| host("provide memory for code")(error.into()))?;
                Ok(Box::new(engine))
            }
        }
    }
}

impl fmt::Debug for EngineParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineParts").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A board for whoever drives its one vCPU himself, with counted time.
#[derive(Debug)]
pub struct Clockwork {
    pub clock: Arc<CountedClock>,
    pub timers: Arc<TimerQueue>,
    pub pins: Arc<Pins>,
    pub power: PowerEvents,
}

/// Where a system jumps that leaves its restart to firmware, and what is there without: a reset by port 0xcf9.
const RESET_VECTOR: u64 = 0xf_fff0;
/// mov dx, 0xcf9; mov al, 6; out dx, al; hlt; jmp to the hlt.
const RESET_CODE: &[u8] = &[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd];

/// A machine from power-on to power-off or reset.
pub struct Board {
    vcpus: Vec<Vcpu>,
    time: Time,
    timers: Arc<TimerQueue>,
    power: PowerEvents,
    outputs: [SerialOutput; 3],
    serial: SerialInput,
    console: ConsoleHandle,
    console_is_virtio: bool,
    has_kernel: bool,
    screen: Parts,
    rtc: Arc<Mutex<Rtc>>,
    inspected: Arc<inspect::Parts>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

/// Wraps what the host refuses.
fn host(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error>) -> ConfigError {
    move |error| ConfigError::Host { what, reason: error.to_string() }
}

impl Board {
    /// Wires a machine and puts its kernel, or its firmware, into memory.
    ///
    /// # Errors
    /// The CPU model is unknown, or the host refuses something.
    pub fn build(
        config: &Config,
        map: &MemoryMap,
        start: &Start,
        disks: &[Disk],
        network: Option<&Network>,
        sink: &Sink,
    ) -> Result<Self, ConfigError> {
        Self::build_with(config, map, start, disks, network, sink, &mut |parts| {
            parts.engine(config.engine)
        })
    }

    /// [`Board::build`] with engines from `make`.
    ///
    /// # Errors
    /// The same.
    pub fn build_with(
        config: &Config,
        map: &MemoryMap,
        start: &Start,
        disks: &[Disk],
        network: Option<&Network>,
        sink: &Sink,
        make: &mut MakeEngine<'_>,
    ) -> Result<Self, ConfigError> {
        signal::install().map_err(|error| host("handle SIGFPE")(error.into()))?;
        let rom = match start {
            Start::Kernel(_) => &[][..],
            Start::Firmware(rom) => rom,
        };
        let video_bytes = if config.vga_rom.is_some() { vga::BYTES as u64 } else { 0 };
        let ram = GuestRam::with_video(config.memory_bytes, rom, video_bytes)
            .map_err(|error| host("provide the guest's memory")(error.into()))?;
        let acpi = AcpiConfig { vcpus: config.vcpus, ..AcpiConfig::default() };
        let in_acpi = |error: AcpiError| host("describe the machine in ACPI tables")(error.into());
        let timers = TimerQueue::new();
        let time = if config.icount {
            Time::Counted(Arc::new(CountedClock::new()))
        } else {
            Time::Host(Arc::new(HostClock::new()))
        };
        let clock = time.clock();

        let mut model = CpuidModel::parse(&config.cpu).map_err(|error| ConfigError::Cpu {
            model: config.cpu.clone(),
            reason: error.to_string(),
        })?;
        model.set_vcpus(config.vcpus);
        model.set_tsc_hz(clock.tsc_hz());
        let model = Arc::new(model);

        let pins: Vec<_> = (0..config.vcpus).map(|_| Pins::new()).collect();
        if config.icount {
            let first = Arc::clone(&pins[0]);
            timers.on_earlier(Box::new(move || first.raise(attention::TIMER)));
        }
        let signals = pins.iter().map(|pins| Arc::clone(pins) as _).collect();
        let features = ApicFeatures {
            x2apic: model.has(Feature::X2apic),
            tsc_deadline: model.has(Feature::TscDeadline),
            physical_address_bits: model.physical_bits(),
        };
        let router = InterruptRouter::new(signals, features, &clock, &timers);
        let mut wiring = Wiring {
            ports: Bus::new(),
            memory: Bus::new(),
            sink: Arc::clone(&router) as _,
            clock,
            timers: Arc::clone(&timers),
            power: PowerEvents::new(),
            remapper: Remapper::new(Arc::clone(&ram), pins.clone()),
            as_after_firmware: matches!(start, Start::Kernel(_)),
        };
        let overlap = |error: Overlap| host("wire the board")(error.into());
        router.attach(&mut wiring.ports, &mut wiring.memory).map_err(overlap)?;
        if wiring.as_after_firmware {
            router.firmware_defaults();
        }
        wiring.memory(&ram).map_err(overlap)?;
        let legacy = wiring.legacy(map, &ram).map_err(overlap)?;
        let mut display = match &config.vga_rom {
            Some(path) => Some(wiring.display(path)?),
            None => None,
        };
        if let Some(path) = &config.debug_output {
            wiring.debug_ports(path)?;
        }
        let output = |to: Box<dyn Write + Send>| {
            SerialOutput::new(to).map_err(|error| host("start the console's thread")(error.into()))
        };
        let shown = |shown: bool| -> Box<dyn Write + Send> {
            if shown { Box::new(sink.clone()) } else { Box::new(io::sink()) }
        };
        let second: Box<dyn Write + Send> = match &config.second_serial {
            Some(path) => Box::new(append_to(path, "--serial2")?),
            None => shown(false),
        };
        // COM1's, virtio-console's and COM2's. A system that doesn't have its console on the latter still puts
        // things there, such as a second question for a login.
        let console_is_virtio = config.console_is_virtio.unwrap_or_else(|| {
            matches!(start, Start::Kernel(_)) && is_on_virtio(&config.command_line)
        });
        let outputs = [output(shown(true))?, output(shown(console_is_virtio))?, output(second)?];
        let serial = wiring.serial(0, &outputs[0]).map_err(overlap)?;
        wiring.serial(1, &outputs[2]).map_err(overlap)?;
        let random = if config.icount { Random::fixed(u64::MAX) } else { Random::host() };
        let card = match (&config.net, network) {
            (Some(net), Some(network)) => Some(Card::new(net, network)?),
            _ => None,
        };
        let Fitted { console, balloon, drives } = wiring.pci(
            config,
            &ram,
            &router,
            &legacy,
            display.as_mut(),
            card,
            disks,
            &outputs[1],
            random,
        )?;
        // Small guests without firmware ask it for the number of processors, too.
        let items = firmware::items(map, config.vcpus, &acpi, &drives).map_err(in_acpi)?;
        let device = Arc::new(Mutex::new(FwCfg::new(items, ram.memory_arc())));
        wiring.ports.insert(fw_cfg::PORT, fw_cfg::PORTS, device).map_err(overlap)?;

        let translations = Arc::new(SharedSlot::new(Options {
            vcpus: config.vcpus,
            cache_bytes: config.code_cache_bytes,
            counts: config.icount || config.report.is_some(),
            making: config.making,
            report: config.report.clone(),
            listing: config.listing.clone(),
        }));
        let buses = Arc::new(Buses { ports: wiring.ports, memory: wiring.memory });
        if let Start::Kernel(loaded) = start {
            let filled = |error: GuestMemoryError| host("fill the guest's memory")(error.into());
            let tables = tables::build(&acpi).map_err(in_acpi)?;
            let [signature, _, _, features] = model.query(1, 0, &CpuState::reset(0), 0);
            let vcpus = config.vcpus as u8;
            let mp = MpConfig { vcpus, signature, features, io_apic_id: acpi.io_apic_id };
            fill_tables(&ram, &tables, &mp).map_err(filled)?;
            ram.load(Gpa(RESET_VECTOR), RESET_CODE)
                .map_err(|error| host("fill the guest's memory")(error.into()))?;
            if let Some(display) = &display {
                display.start(&ram, &buses, &model)?;
            }
            for piece in &loaded.pieces {
                let filled = host("fill the guest's memory");
                ram.load(Gpa(piece.gpa), &piece.bytes).map_err(|error| filled(error.into()))?;
            }
            if let (Some(_), Some(params)) = (&display, loaded.linux_params) {
                video::describe(&ram, params).map_err(filled)?;
            }
        }
        let inspected = Arc::new(inspect::Parts {
            ram: Arc::clone(&ram),
            buses: Arc::clone(&buses),
            router: Arc::clone(&router),
            pm: legacy.pm,
            power: wiring.power.clone(),
            balloon,
            model: Arc::clone(&model),
        });
        let kvmclock = KvmClock::new(time.clock(), ram.memory_arc(), config.vcpus as usize);
        let kvmclock = Arc::new(Mutex::new(kvmclock));
        let vcpus = (0..config.vcpus)
            .zip(pins)
            .map(|(index, pins)| {
                let world = World {
                    index: index as usize,
                    buses: Arc::clone(&buses),
                    router: Arc::clone(&router),
                    time: time.clone(),
                    pins: Arc::clone(&pins),
                    ferr: Arc::clone(&legacy.ferr),
                    kvmclock: Arc::clone(&kvmclock),
                };
                vcpu(world, pins, start, &ram, &model, &translations, make)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            vcpus,
            time,
            timers,
            power: wiring.power,
            outputs,
            serial,
            console,
            rtc: legacy.rtc,
            screen: Parts::new(display.map(|display| display.vga), legacy.i8042),
            inspected,
            console_is_virtio,
            has_kernel: matches!(start, Start::Kernel(_)),
        })
    }

    /// The parts that drive the first vCPU; `None` under host time. Console output is not waited for.
    #[must_use]
    pub fn into_clockwork(self) -> Option<Clockwork> {
        let Time::Counted(clock) = self.time else { return None };
        let pins = self.vcpus.into_iter().next()?.pins;
        Some(Clockwork { clock, timers: self.timers, pins, power: self.power })
    }

    /// The console, for the host side.
    #[must_use]
    pub fn port(&self) -> Box<dyn Port> {
        Box::new(Console {
            serial: self.serial.clone(),
            virtio: self.console.clone(),
            is_virtio: self.console_is_virtio,
            has_kernel: self.has_kernel,
        })
    }

    /// What a person looks at and types on.
    #[must_use]
    pub fn screen(&self) -> Parts {
        self.screen.clone()
    }

    /// The clock, whose memory and time outlive the board.
    #[must_use]
    pub fn rtc(&self) -> Arc<Mutex<Rtc>> {
        Arc::clone(&self.rtc)
    }

    /// What a monitor looks at.
    #[must_use]
    pub fn inspected(&self) -> Arc<inspect::Parts> {
        Arc::clone(&self.inspected)
    }

    /// Runs the board to its end, for `guest_time` at most. `drain_limit` says how long its output may take to
    /// leave. Returns how much guest time has passed as well.
    pub fn run(
        self,
        control: &Arc<Control>,
        deadline: Option<Instant>,
        guest_time: Option<Duration>,
        drain_limit: impl Fn(&Cause) -> Duration,
    ) -> (Cause, Duration) {
        let limit = Arc::new(Mutex::new(TimeLimit(Arc::clone(control))));
        if let Some(after) = guest_time {
            let timer = self.timers.timer();
            timer.attach(&limit);
            timer.arm(Some(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)));
        }
        let to = Arc::clone(control);
        self.power.on_event(Box::new(move |event| to.end(Cause::Power(event))));
        let outputs = self.outputs;
        let cause = run::run(self.vcpus, &self.time, &self.timers, control, deadline, |cause| {
            for output in &outputs {
                // A vCPU may wait for the console's reader: after the limit it is let go.
                if !output.flush(drain_limit(cause)) {
                    output.finish(Duration::ZERO);
                }
            }
        });
        // What was written between the cause and the vCPUs' stop.
        for output in &outputs {
            output.finish(drain_limit(&cause));
        }
        (cause, Duration::from_nanos(self.time.clock().now_ns()))
    }
}

/// Ends the run when guest time is up.
struct TimeLimit(Arc<Control>);

impl Timed for TimeLimit {
    fn run(&mut self, _: u64) {
        self.0.end(Cause::Timeout);
    }
}

/// Puts what firmware has in memory into fresh RAM.
fn fill_tables(ram: &GuestRam, acpi: &Tables, mp: &MpConfig) -> Result<(), GuestMemoryError> {
    let memory = ram.memory();
    memory.write_slice(&acpi.bytes, GuestAddress(acpi.load_gpa))?;
    memory.write_slice(&smbios::build(), GuestAddress(smbios::LOAD_GPA))?;
    memory.write_slice(&mp::build(mp), GuestAddress(mp::TABLE_GPA.into()))?;
    memory.write_slice(&mp::pointer(), GuestAddress(MP_POINTER))?;
    // BIOS data area: where the extended one is, and conventional memory in KiB.
    memory.write_obj((EBDA_START >> 4) as u16, GuestAddress(0x40e))?;
    memory.write_obj((EBDA_START >> 10) as u16, GuestAddress(0x413))?;
    memory.write_obj(1u8, GuestAddress(EBDA_START))
}

/// The buses as they grow, and what devices are wired to.
struct Wiring {
    ports: Bus,
    memory: Bus,
    sink: Arc<dyn IrqSink>,
    clock: Arc<dyn Clock>,
    timers: Arc<TimerQueue>,
    power: PowerEvents,
    remapper: Remapper,
    /// There is no firmware that would set things up.
    as_after_firmware: bool,
}

/// Old parts that others are wired to.
struct Legacy {
    ferr: Arc<Mutex<Ferr>>,
    /// PCI puts it on the ports.
    pm: Arc<Mutex<PmBlock>>,
    i8042: Arc<Mutex<I8042>>,
    rtc: Arc<Mutex<Rtc>>,
    dma: Arc<Mutex<dyn DmaChannels>>,
}

/// A network card to fit.
struct Card<'a> {
    config: &'a NetConfig,
    backend: Arc<dyn NetBackend>,
    rom: Vec<u8>,
}

impl<'a> Card<'a> {
    fn new(config: &'a NetConfig, network: &Network) -> Result<Self, ConfigError> {
        let rom = match &config.rom {
            None => Vec::new(),
            Some(path) => option_rom(path, e1000::ROM_BYTES_MAX).map_err(|error| {
                let (path, reason) = (path.display(), config::describe(&error));
                ConfigError::Net { reason: format!("romfile={path}: {reason}") }
            })?,
        };
        Ok(Self { config, backend: network.port(), rom })
    }

    fn fit(
        self,
        root: &mut PciRoot,
        ram: &GuestRam,
        interfaces: Interfaces,
    ) -> Result<(), PciError> {
        let Self { config, backend, rom } = self;
        match config.model {
            NetModel::Virtio => {
                let device = virtio::Net::new(backend, config.mac);
                virtio::add_with_rom(root, device, ram.memory_arc(), interfaces, rom)?;
            }
            NetModel::E1000 => {
                e1000::add(root, ram.memory_arc(), backend, config.mac, rom)?;
            }
        }
        Ok(())
    }
}

/// A display and its option ROM.
struct Display {
    vga: Arc<Mutex<Vga>>,
    rom: Vec<u8>,
    rom_path: PathBuf,
    /// On the PCI bus.
    slot: u8,
}

impl Display {
    fn wrong_rom(path: &Path, source: io::Error) -> ConfigError {
        ConfigError::File { option: "--vga-rom", path: path.to_owned(), source }
    }

    /// Has the ROM do what it does when firmware starts it.
    fn start(
        &self,
        ram: &Arc<GuestRam>,
        buses: &Arc<Buses>,
        model: &Arc<CpuidModel>,
    ) -> Result<(), ConfigError> {
        let stubs = Stubs::new().map_err(|error| host("provide memory for code")(error.into()))?;
        video::start(&self.rom, u16::from(self.slot) << 3, ram, buses, model, stubs)
            .map_err(|error| Self::wrong_rom(&self.rom_path, io::Error::other(error)))
    }
}

impl Wiring {
    fn line(&self, gsi: u32) -> IrqLine {
        IrqLine::new(Arc::clone(&self.sink), gsi)
    }

    /// What is not plain memory where there is memory.
    fn memory(&mut self, ram: &Arc<GuestRam>) -> Result<(), Overlap> {
        let rom_bytes = ram.layout().rom_bytes;
        let rom = memory_map::HIGH_START - rom_bytes..memory_map::HIGH_START;
        for range in [switch::ATTRIBUTED, rom] {
            if !range.is_empty() {
                let device = Arc::new(Mutex::new(Shadowed::new(Arc::clone(ram), range.start)));
                self.memory.insert(range.start, range.end - range.start, device)?;
            }
        }
        Ok(())
    }

    /// The debug ports, with a file for what is written to them.
    fn debug_ports(&mut self, path: &Path) -> Result<(), ConfigError> {
        let file = append_to(path, "--debugcon")?;
        let console = Arc::new(Mutex::new(DebugConsole::new(Box::new(file))));
        let ports =
            if self.as_after_firmware { &[debugcon::SEABIOS][..] } else { &debugcon::PORTS };
        for &port in ports {
            let device = Arc::clone(&console) as _;
            let taken = |error: Overlap| host("wire the board")(error.into());
            self.ports.insert(port, 1, device).map_err(taken)?;
        }
        Ok(())
    }

    /// Everything that was there before PCI, but for serial ports.
    fn legacy(&mut self, map: &MemoryMap, ram: &Arc<GuestRam>) -> Result<Legacy, Overlap> {
        // Legacy replacement takes lines 0 and 8 from the 8254 and the RTC.
        let gate = LegacyGate::new(Arc::clone(&self.sink));
        let gated = |gsi| IrqLine::new(Arc::clone(&gate) as _, gsi);
        let pit = Pit::new(Arc::clone(&self.clock), &self.timers, gated(0));
        if self.as_after_firmware {
            lock(&pit).firmware_defaults();
        }
        Pit::attach(&pit, &mut self.ports)?;

        let rtc = Rtc::new(Arc::clone(&self.clock), &self.timers, gated(8));
        lock(&rtc).set_memory(map.low_end(), map.high_end() - memory_map::HIGH_START);
        Rtc::attach(&rtc, &mut self.ports)?;

        let sink = Arc::clone(&self.sink);
        let hpet = Hpet::new(Arc::clone(&self.clock), &self.timers, sink, Arc::clone(&gate));
        Hpet::attach(&hpet, &mut self.memory)?;

        let remapper = self.remapper.clone();
        let a20 = A20Gate::new(move |open| remapper.set_a20(open));
        let fast = reset::SystemControlA::new(a20.clone(), self.power.clone());
        self.ports.insert(reset::SYSTEM_CONTROL_A_PORT, 1, Arc::new(Mutex::new(fast)))?;
        let (keyboard, mouse) = (self.line(i8042::KEYBOARD_IRQ), self.line(i8042::MOUSE_IRQ));
        let i8042 = Arc::new(Mutex::new(I8042::new(keyboard, mouse, a20, self.power.clone())));
        I8042::attach(&i8042, &mut self.ports)?;
        let control = reset::ResetControl::new(self.power.clone());
        self.ports.insert(reset::RESET_CONTROL_PORT, 1, Arc::new(Mutex::new(control)))?;

        let debug_exit = DebugExit::new(self.power.clone());
        self.ports.insert(debug_exit::PORT, debug_exit::PORTS, Arc::new(Mutex::new(debug_exit)))?;
        if self.as_after_firmware {
            // For kernels that are tests. Its scratch register is where others have a debug port.
            testdev::attach(&mut self.ports, &mut self.memory, &self.sink)?;
        }

        let sci = self.line(u32::from(pm::SCI_IRQ));
        let pm = PmBlock::new(sci, self.power.clone(), Arc::clone(&self.clock), &self.timers);
        PmBlock::attach(&pm, &mut self.ports)?;
        let told = Arc::clone(&pm);
        lock(&rtc).set_alarm_event(move || lock(&told).alarm());

        let ferr = Arc::new(Mutex::new(Ferr::new(self.line(13))));
        self.ports.insert(Ferr::PORT, 2, Arc::clone(&ferr) as _)?;
        let dma = Arc::new(Mutex::new(Dma::new(ram.memory_arc())));
        Dma::attach(&dma, &mut self.ports)?;
        Ok(Legacy { ferr, pm, i8042, rtc, dma })
    }

    /// The display adapter.
    fn display(&mut self, rom: &Path) -> Result<Display, ConfigError> {
        let bytes = option_rom(rom, vga::ROM_BYTES_MAX)
            .map_err(|source| Display::wrong_rom(rom, source))?;
        let host_side = Box::new(Video::new(self.remapper.clone()));
        let vga = Arc::new(Mutex::new(Vga::new(host_side, Arc::clone(&self.clock))));
        Vga::attach(&vga, &mut self.ports, &mut self.memory)
            .map_err(|error| host("wire the board")(error.into()))?;
        Ok(Display { vga, rom: bytes, rom_path: rom.to_owned(), slot: 0 })
    }

    /// A serial port: COM1 is number 0.
    fn serial(&mut self, number: usize, output: &SerialOutput) -> Result<SerialInput, Overlap> {
        let (port, irq) = uart::COM[number];
        let line = self.line(irq);
        let uart = Uart::new(line, Arc::clone(&self.clock), &self.timers, output.clone());
        self.ports.insert(u64::from(port), uart::PORTS, Arc::clone(&uart) as _)?;
        Ok(Uart::input(&uart))
    }

    /// The PCI bus with the drives and virtio devices, set up as firmware would if there is none.
    #[allow(clippy::too_many_arguments, reason = "all that is on the bus")]
    fn pci(
        &mut self,
        config: &Config,
        ram: &Arc<GuestRam>,
        router: &InterruptRouter,
        legacy: &Legacy,
        display: Option<&mut Display>,
        card: Option<Card<'_>>,
        disks: &[Disk],
        output: &SerialOutput,
        mut random: Random,
    ) -> Result<Fitted, ConfigError> {
        let bad = |error: PciError| host("wire the PCI bus")(error.into());
        let sink = Arc::clone(&self.sink);
        let switch = Box::new(self.remapper.clone());
        let root = PciRoot::new(&self.memory, &mut self.ports, sink, switch)
            .map_err(|error| host("wire the PCI bus")(error.into()))?;
        let mut root = lock(&root);
        root.add_power_management(&legacy.pm);
        if let Some(display) = display {
            display.slot = vga::add(&mut root, &display.vga, display.rom.clone()).map_err(bad)?;
        }
        // Behind the display, where QEMU has it too: systems name the card by its slot.
        if let Some(card) = card {
            card.fit(&mut root, ram, config.virtio).map_err(bad)?;
        }
        let (console, handle) = virtio::Console::new(Box::new(output.clone()));
        virtio::add(&mut root, console, ram.memory_arc(), config.virtio).map_err(bad)?;
        let entropy = virtio::Entropy::new(Box::new(move |bytes| random.fill(bytes)));
        virtio::add(&mut root, entropy, ram.memory_arc(), config.virtio).map_err(bad)?;
        let mut balloon = None;
        if config.balloon {
            let (device, handle) = virtio::Balloon::new(Arc::new(Pages(Arc::clone(ram))));
            virtio::add(&mut root, device, ram.memory_arc(), config.virtio).map_err(bad)?;
            balloon = Some(handle);
        }
        let sockets = Sockets {
            ide_lines: ide::IRQS.map(|irq| self.line(irq)),
            floppy_line: self.line(floppy::IRQ),
            dma: &legacy.dma,
            rtc: &legacy.rtc,
            root: &mut root,
            ports: &mut self.ports,
            ram,
            virtio: config.virtio,
            // Counted time would run ahead of a thread's.
            threads: !config.icount,
            always_ide: !self.as_after_firmware,
        };
        let drives = drives::fit(sockets, &config.disks, disks)?;
        if self.as_after_firmware {
            root.assign_resources(PCI_HOLE, PCI_PORTS).map_err(bad)?;
            // PCI interrupts are level-triggered at the 8259A pair.
            router.set_elcr(1 << 10 | 1 << 11);
        }
        Ok(Fitted { console: handle, balloon, drives })
    }
}

/// What is left of the bus for others to know.
struct Fitted {
    console: ConsoleHandle,
    balloon: Option<BalloonHandle>,
    drives: ForFirmware,
}

/// The balloon's way to the memory.
struct Pages(Arc<GuestRam>);

impl BalloonMemory for Pages {
    fn give_back(&self, start: u64, bytes: u64) {
        self.0.give_back(Gpa(start), bytes);
    }
}

/// A vCPU in the state that a guest starts with.
fn vcpu(
    world: World,
    pins: Arc<Pins>,
    start: &Start,
    ram: &Arc<GuestRam>,
    model: &Arc<CpuidModel>,
    translations: &Arc<SharedSlot>,
    make: &mut MakeEngine<'_>,
) -> Result<Vcpu, ConfigError> {
    let index = world.index;
    let mut state = CpuState::reset(model.signature());
    if let Start::Kernel(loaded) = start {
        firmware_msrs(&mut state, model.physical_bits());
        if index == 0 {
            loaded.enter(&mut state);
        }
    }
    if index > 0 {
        state.activity = Activity::WaitForSipi;
    }
    let mut mmu = SoftMmu::new(Arc::clone(ram), model.physical_bits());
    mmu.set_gigabyte_pages(model.has(Feature::Pdpe1gb));
    mmu.set_amd(model.vendor() == Vendor::Amd);
    let code = Stubs::new().map_err(|error| host("provide memory for code")(error.into()))?;
    let (router, kvmclock) = (Arc::clone(&world.router), Arc::clone(&world.kvmclock));
    let env = Box::new(VcpuEnv::new(world));
    let parts = EngineParts {
        state,
        mmu,
        env,
        model: Arc::clone(model),
        index: index as u32,
        code: Box::new(code),
        translations: Arc::clone(translations),
    };
    Ok(Vcpu {
        index: index as u32,
        signature: model.signature(),
        engine: make(parts)?,
        pins,
        devices_init: Box::new(move || {
            router.init_cpu(index);
            lock(&kvmclock).init_cpu(index);
        }),
    })
}

/// Memory types as firmware sets them: write-back, the legacy video and ROM areas and the PCI hole
/// uncached (SDM vol. 3, "MTRR").
fn firmware_msrs(state: &mut CpuState, physical_bits: u8) {
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    const WRITE_PROTECTED: u64 = 0x0505_0505_0505_0505;
    let physical_mask = u64::MAX >> (64 - u32::from(physical_bits.clamp(32, 52)));
    let hole_mask = physical_mask & !(memory_map::HIGH_START - memory_map::HOLE_START - 1);
    let msr = &mut state.msr;
    // Enabled, with fixed ranges; write-back where no range says otherwise.
    msr.mtrr_def_type = 0xc06;
    msr.mtrr_fixed = [WRITE_PROTECTED; 11];
    // 0-0x7ffff, 0x80000-0x9ffff; 0xa0000-0xbffff is the video memory.
    msr.mtrr_fixed[..3].copy_from_slice(&[WRITE_BACK, WRITE_BACK, 0]);
    msr.mtrr_variable[..2].copy_from_slice(&[memory_map::HOLE_START, hole_mask | 1 << 11]);
}

/// Opens a file for what a port of the guest's says: at its end, as a reset makes another board.
fn append_to(path: &Path, option: &'static str) -> Result<File, ConfigError> {
    let wrong = |source| ConfigError::File { option, path: path.to_owned(), source };
    File::options().append(true).open(path).map_err(wrong)
}

/// The console of a board.
struct Console {
    serial: SerialInput,
    virtio: ConsoleHandle,
    is_virtio: bool,
    /// Without firmware: what is typed early waits for the kernel.
    has_kernel: bool,
}

impl Port for Console {
    fn receive(&self, bytes: &[u8]) {
        // Boot loaders are on the serial line.
        if self.is_virtio && (self.has_kernel || self.virtio.has_driver()) {
            self.virtio.send(bytes);
        } else {
            self.serial.send(bytes);
        }
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.virtio.set_size(columns, rows);
    }
}
