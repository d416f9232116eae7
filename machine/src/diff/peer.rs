//! QEMU as a processor and a piece of RAM.
//!
//! Problem: QEMU must run the guest from the very state our machine starts in, and its RAM must be
//! comparable without a debugger's round trip for every page. Scheme: its board without any device
//! (`-M none`), so that nothing interrupts; RAM in a file that both processes map; registers over the
//! debugger's protocol. A few instructions placed in low memory load what a debugger can't write (GDTR,
//! IDTR, TR, hidden parts of segments), then memory is as it was. Invariants: the process and its files
//! are gone when this is dropped; our writes to its RAM go through the debugger, so that QEMU drops
//! translations, except before it has run. Source: QEMU's register order is target.xml's, i386-64bit.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use vm_memory::{FileOffset, MmapRegion};
use xenolith_cpu::state::{Rflags, VectorState, sreg};
use xenolith_cpu::{CpuState, PAGE_SIZE};
use xenolith_mmu::GuestRam;

use super::DiffError;
use super::compare::words_differing;
use super::gdb::{Gdb, PATIENCE, Stopped};
use super::memory::{Pages, resident};

const PAGE: usize = PAGE_SIZE as usize;
/// RAM beyond this would lie above 4 GiB on our side.
const RAM_BYTES_MAX: u64 = 3 << 30;

/// Our numbers of the general registers in QEMU's order.
const GPR_ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
const SEG_ORDER: [usize; 6] = [sreg::CS, sreg::SS, sreg::DS, sreg::ES, sreg::FS, sreg::GS];

/// Register numbers, and where their bytes are in a `g` packet.
mod number {
    pub const RIP: usize = 16;
    pub const EFLAGS: usize = 17;
    pub const CS: usize = 18;
    pub const FS_BASE: usize = 24;
    pub const CR0: usize = 27;
    pub const CR2: usize = 28;
    pub const CR3: usize = 29;
    pub const CR4: usize = 30;
    pub const EFER: usize = 32;
    pub const FCTRL: usize = 41;
    pub const XMM: usize = 49;
    pub const MXCSR: usize = 65;
}
mod offset {
    pub const RIP: usize = 128;
    pub const EFLAGS: usize = 136;
    pub const SEG: usize = 140;
    pub const BASES: usize = 164;
    pub const CONTROL: usize = 188;
    pub const ST: usize = 236;
    pub const FCTRL: usize = 316;
    pub const FSTAT: usize = 320;
    pub const XMM: usize = 348;
    pub const MXCSR: usize = 604;
    pub const END: usize = 608;
}

/// Flags that a debugger sees and that both sides must have equal. RF is not: QEMU shows it at other
/// moments.
const FLAGS_SEEN: u64 = 0x3f_ffff & !(1 << 16);

/// A running QEMU.
#[derive(Debug)]
pub struct Peer {
    gdb: Gdb,
    child: Child,
    region: MmapRegion<()>,
}

fn refused(what: &str, error: impl std::fmt::Display) -> DiffError {
    DiffError::Qemu(format!("{what}: {error}"))
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A fresh folder for `purpose`, in memory if the host has one such.
pub fn folder(purpose: &str) -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    loop {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("xenolith-{purpose}-{}-{n}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // A process of the same number was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

impl Peer {
    /// Starts QEMU with our RAM's contents and our processor's state.
    ///
    /// # Errors
    /// There is no QEMU, or it doesn't do as it is told.
    pub fn start(ram: &Arc<GuestRam>, state: &CpuState) -> Result<Self, DiffError> {
        let bytes = ram.size_bytes();
        if bytes > RAM_BYTES_MAX {
            return Err(DiffError::Qemu("at most 3 GiB of memory: give less with -m".to_owned()));
        }
        let folder = folder("diff").map_err(|error| refused("no folder for its memory", error))?;
        let (memory, socket) = (folder.join("ram"), folder.join("gdb"));
        let map = || -> Result<MmapRegion<()>, Box<dyn std::error::Error>> {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(&memory)?;
            file.set_len(bytes)?;
            Ok(MmapRegion::from_file(FileOffset::new(file, 0), bytes as usize)?)
        };
        let region = map().map_err(|error| refused("no file for its memory", error))?;
        for gpn in ram.touched() {
            if let Some(page) = ram.page(gpn) {
                let to = region.as_ptr().wrapping_add(gpn as usize * PAGE);
                // SAFETY: RAM is one piece of `bytes` bytes on both sides; QEMU isn't there yet.
                unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to, PAGE) };
            }
        }
        let backend = format!(
            "memory-backend-file,id=ram,size={bytes},mem-path={},share=on",
            memory.display()
        );
        let mut command = Command::new("qemu-system-x86_64");
        // It would outlive us if we were killed.
        let with_us = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: between fork and exec there is one system call, which touches no memory.
        unsafe { command.pre_exec(with_us) };
        let spawned = command
            .args(["-M", "none,memory-backend=ram", "-object", &backend])
            .args(["-m", &format!("{}M", bytes >> 20), "-accel", "tcg"])
            .args(["-cpu", "max,vendor=GenuineIntel,-apic,apic-id=0"])
            .args(["-S", "-display", "none", "-nodefaults", "-gdb", "chardev:gdb", "-chardev"])
            .arg(format!("socket,id=gdb,path={},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                // The error that matters is the other one.
                let _ = fs::remove_dir_all(&folder);
                return Err(refused("qemu-system-x86_64 can't be started", error));
            }
        };
        let connected = connect(&socket, child);
        // Both have all open now, or it has failed for another reason, which is told.
        let _ = fs::remove_dir_all(&folder);
        let (gdb, child) = connected?;
        let mut peer = Self { gdb, child, region };
        peer.enter(ram, state)?;
        Ok(peer)
    }

    /// Brings the processor from RESET into the state that our loaders start a guest in: flat protected
    /// mode, by the descriptor table that they have put into memory.
    fn enter(&mut self, ram: &Arc<GuestRam>, state: &CpuState) -> Result<(), DiffError> {
        const CODE: u64 = 0x600;
        const TABLES: u64 = 0x6f0;
        const INSTRUCTIONS: usize = 14;
        let selectors = [sreg::CS, sreg::DS].map(|n| state.seg[n].selector as u8);
        let [code, data] = selectors;
        let task = state.tr.selector as u8;
        let gdt = state.gdtr.base;
        #[rustfmt::skip]
        let program = [
            0x0f, 0x01, 0x16, 0xf0, 0x06,           // lgdt [0x6f0]
            0x0f, 0x20, 0xc0,                       // mov eax, cr0
            0x0c, 0x01,                             // or al, 1
            0x0f, 0x22, 0xc0,                       // mov cr0, eax
            0x66, 0xea, 0x15, 0x06, 0, 0, code, 0,  // jmp code:0x615
            0x66, 0xb8, data, 0,                    // mov ax, data
            0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0,     // mov ds, es, ss
            0x8e, 0xe0, 0x8e, 0xe8,                 // mov fs, gs
            0x66, 0xb8, task, 0,                    // mov ax, task
            0x0f, 0x00, 0xd8,                       // ltr ax
            0x0f, 0x01, 0x1d, 0xf8, 0x06, 0, 0,     // lidt [0x6f8]
        ];
        let mut tables = state.gdtr.limit.to_le_bytes().to_vec();
        tables.extend((gdt as u32).to_le_bytes());
        tables.extend([0; 2 + 6]);
        self.gdb.write(CODE, &program)?;
        self.gdb.write(TABLES, &tables)?;
        // LTR wants the task's descriptor available, and marks it busy.
        self.gdb.write(gdt + u64::from(task) + 5, &[0x89])?;
        self.gdb.set_register(number::CS, &[0; 4])?;
        self.gdb.set_register(number::RIP, &CODE.to_le_bytes())?;
        let end = CODE + program.len() as u64;
        let mut rip = CODE;
        // An instruction that loads SS and its successor may be one step.
        for _ in 0..INSTRUCTIONS {
            if rip != end {
                self.gdb.step()?;
                rip = self.state(state)?.rip;
            }
        }
        if rip != end {
            return Err(DiffError::Qemu(format!("its start went astray, to {rip:#x}")));
        }
        let theirs = self.state(state)?;
        self.copy_page(ram, 0)?;
        self.set_state(state, &theirs)
    }

    /// QEMU's state; what a debugger doesn't see is taken from `ours`.
    pub fn state(&mut self, ours: &CpuState) -> Result<CpuState, DiffError> {
        let bytes = self.gdb.registers()?;
        if bytes.len() < offset::END {
            let len = bytes.len();
            return Err(DiffError::Qemu(format!(
                "its debugger shows only {len} bytes of registers"
            )));
        }
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let mut theirs = ours.clone();
        let wide = ours.is_64bit();
        for (n, &register) in GPR_ORDER.iter().enumerate() {
            if wide {
                theirs.gpr[register] = u64_at(8 * n);
            } else if n < 8 {
                let high = ours.gpr[register] & !0xffff_ffff;
                theirs.gpr[register] = high | u64_at(8 * n) & 0xffff_ffff;
            }
        }
        theirs.rip = u64_at(offset::RIP);
        let eflags = u64::from(u32_at(offset::EFLAGS));
        theirs.rflags = ours.rflags & !FLAGS_SEEN | eflags & FLAGS_SEEN;
        for (n, &register) in SEG_ORDER.iter().enumerate() {
            theirs.seg[register].selector = u32_at(offset::SEG + 4 * n) as u16;
        }
        if ours.long_mode() {
            theirs.seg[sreg::FS].base = u64_at(offset::BASES);
            theirs.seg[sreg::GS].base = u64_at(offset::BASES + 8);
            theirs.msr.kernel_gs_base = u64_at(offset::BASES + 16);
        }
        let control = |n: usize| u64_at(offset::CONTROL + 8 * n);
        (theirs.cr0, theirs.cr2, theirs.cr3) = (control(0), control(1), control(2));
        (theirs.cr4, theirs.efer) = (control(3), control(5));
        let vector = &mut theirs.vector;
        vector.set_u16_at(VectorState::FCW, u32_at(offset::FCTRL) as u16);
        let fsw = u32_at(offset::FSTAT) as u16;
        vector.set_u16_at(VectorState::FSW, fsw);
        let top = usize::from(fsw >> 11 & 7);
        for n in 0..8 {
            // QEMU shows physical registers; only full ones have a value.
            let physical = (top + n) & 7;
            if vector.bytes[VectorState::FTW] & 1 << physical != 0 {
                vector.bytes[VectorState::ST + 16 * n..][..10]
                    .copy_from_slice(&bytes[offset::ST + 10 * physical..][..10]);
            }
        }
        for n in 0..if wide { 16 } else { 8 } {
            vector.bytes[VectorState::XMM + 16 * n..][..16]
                .copy_from_slice(&bytes[offset::XMM + 16 * n..][..16]);
        }
        vector.set_mxcsr(u32_at(offset::MXCSR));
        Ok(theirs)
    }

    /// Takes QEMU back from `theirs`, its present state, to an earlier one, with the translations and the hidden parts
    /// of segments that the memory of then gives.
    pub fn take_back(&mut self, to: &CpuState, theirs: &CpuState) -> Result<(), DiffError> {
        if !to.long_mode() {
            // A selector that is there already isn't loaded again.
            for n in [2, 3, 4, 5] {
                self.gdb.set_register(number::CS + n, &[0; 4])?;
            }
        }
        let mut now = theirs.clone();
        // Written in any case: that makes QEMU forget its translations.
        now.cr3 = !to.cr3;
        if !to.long_mode() {
            for n in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
                now.seg[n].selector = 0;
            }
        }
        self.set_state(to, &now)
    }

    /// Writes the registers in which `theirs`, its present state, is not `to` (queued).
    pub fn set_state(&mut self, to: &CpuState, theirs: &CpuState) -> Result<(), DiffError> {
        let control = [
            (number::CR4, to.cr4, theirs.cr4),
            (number::CR3, to.cr3, theirs.cr3),
            (number::EFER, to.efer, theirs.efer),
            (number::CR0, to.cr0, theirs.cr0),
            (number::CR2, to.cr2, theirs.cr2),
        ];
        for (register, new, old) in control {
            self.set_u64(register, new, old)?;
        }
        for (n, &register) in SEG_ORDER.iter().enumerate() {
            let (new, old) = (to.seg[register].selector, theirs.seg[register].selector);
            if new != old {
                self.gdb.set_register(number::CS + n, &u32::from(new).to_le_bytes())?;
            }
        }
        if to.long_mode() {
            let bases =
                |s: &CpuState| [s.seg[sreg::FS].base, s.seg[sreg::GS].base, s.msr.kernel_gs_base];
            let loaded = |n: usize| to.seg[n].selector != theirs.seg[n].selector;
            // A selector loads the base of its descriptor, too.
            let loaded = [loaded(sreg::FS), loaded(sreg::GS), false];
            for (n, (new, old)) in bases(to).into_iter().zip(bases(theirs)).enumerate() {
                let old = if loaded[n] { !new } else { old };
                self.set_u64(number::FS_BASE + n, new, old)?;
            }
        }
        for (n, &register) in GPR_ORDER.iter().enumerate() {
            self.set_u64(n, to.gpr[register], theirs.gpr[register])?;
        }
        self.set_u64(number::RIP, to.rip, theirs.rip)?;
        if (to.rflags ^ theirs.rflags) & FLAGS_SEEN != 0 {
            let flags = to.rflags & !Rflags::RF.bits();
            self.gdb.set_register(number::EFLAGS, &(flags as u32).to_le_bytes())?;
        }
        let (new, old) = (&to.vector, &theirs.vector);
        let fcw = new.u16_at(VectorState::FCW);
        if fcw != old.u16_at(VectorState::FCW) {
            self.gdb.set_register(number::FCTRL, &u32::from(fcw).to_le_bytes())?;
        }
        for n in 0..16 {
            let at = VectorState::XMM + 16 * n..VectorState::XMM + 16 * (n + 1);
            if new.bytes[at.clone()] != old.bytes[at.clone()] {
                self.gdb.set_register(number::XMM + n, &new.bytes[at])?;
            }
        }
        if new.mxcsr() != old.mxcsr() {
            self.gdb.set_register(number::MXCSR, &new.mxcsr().to_le_bytes())?;
        }
        Ok(())
    }

    fn set_u64(&mut self, register: usize, new: u64, old: u64) -> Result<(), DiffError> {
        if new == old { Ok(()) } else { self.gdb.set_register(register, &new.to_le_bytes()) }
    }

    /// Makes a page the same as `from`'s, word by word where it isn't.
    pub fn copy_page(&mut self, from: &impl Pages, gpn: u64) -> Result<(), DiffError> {
        match from.page(gpn) {
            Some(page) => self.write_page(gpn, page),
            None => Ok(()),
        }
    }

    pub fn write_page(&mut self, gpn: u64, page: &[u8]) -> Result<(), DiffError> {
        let Some(now) = self.page(gpn) else { return Ok(()) };
        let differ: Vec<usize> =
            (0..PAGE).step_by(8).filter(|&at| now[at..at + 8] != page[at..at + 8]).collect();
        // Neighbours go in one packet.
        for run in differ.chunk_by(|a, b| a + 8 == *b) {
            let (start, end) = (run[0], run[run.len() - 1] + 8);
            self.gdb.write(gpn * PAGE_SIZE + start as u64, &page[start..end])?;
        }
        // Whoever looks at the page sees what has been written.
        self.gdb.settle()
    }

    /// Writes bytes of one page.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), DiffError> {
        self.gdb.write(gpa, bytes)?;
        self.gdb.settle()
    }

    pub fn step(&mut self) -> Result<(), DiffError> {
        self.gdb.step()
    }

    pub fn set_breakpoint(&mut self, linear: u64) -> Result<(), DiffError> {
        self.gdb.set_breakpoint(linear)
    }

    pub fn clear_breakpoint(&mut self, linear: u64) -> Result<(), DiffError> {
        self.gdb.clear_breakpoint(linear)
    }

    /// Runs to a breakpoint; `false` if none is reached within `limit`.
    pub fn go(&mut self, limit: Duration) -> Result<bool, DiffError> {
        Ok(self.gdb.go(limit)? == Stopped::Trap)
    }

    /// Runs to a breakpoint at `linear`; `false` if it isn't reached within `limit`.
    pub fn run_to(&mut self, linear: u64, limit: Duration) -> Result<bool, DiffError> {
        self.set_breakpoint(linear)?;
        let arrived = self.go(limit)?;
        self.clear_breakpoint(linear)?;
        Ok(arrived)
    }

    /// Whether a page of ours and QEMU's differ: the first word's offset, and how many are tolerated.
    pub fn page_differs(&self, ours: &impl Pages, gpn: u64) -> (Option<usize>, usize) {
        let (Some(a), Some(b)) = (ours.page(gpn), self.page(gpn)) else { return (None, 0) };
        let (words, tolerated) = words_differing(a, b);
        (words.first().copied(), tolerated)
    }
}

impl Pages for Peer {
    fn page(&self, gpn: u64) -> Option<&[u8]> {
        let at = usize::try_from(gpn).ok()?.checked_mul(PAGE)?;
        if at >= self.region.size() {
            return None;
        }
        // SAFETY: the page is inside the mapping; QEMU's processor stands while we look.
        Some(unsafe { std::slice::from_raw_parts(self.region.as_ptr().wrapping_add(at), PAGE) })
    }

    fn touched(&self) -> Vec<u64> {
        resident(self.region.as_ptr(), self.region.size()).map(|n| n as u64).collect()
    }
}

/// Waits until QEMU listens.
fn connect(socket: &Path, mut child: Child) -> Result<(Gdb, Child), DiffError> {
    let deadline = Instant::now() + PATIENCE;
    let reason = loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            match Gdb::new(stream, child.id()) {
                Ok(gdb) => return Ok((gdb, child)),
                Err(error) => break error.to_string(),
            }
        }
        if let Ok(Some(status)) = child.try_wait() {
            break format!("qemu-system-x86_64 refuses to start ({status})");
        }
        if Instant::now() > deadline {
            break "qemu-system-x86_64 doesn't open its debugger's socket".to_owned();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // The error is told; what is left over is cleared away as far as it goes.
    let _ = child.kill();
    let _ = child.wait();
    Err(DiffError::Qemu(reason))
}
