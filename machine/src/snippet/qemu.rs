//! QEMU's emulator as a runner.
//!
//! Problem: a debugger's round trip for every register would make a snippet take milliseconds, and QEMU doesn't
//! notice code that another process writes into its memory. Scheme: its board without any device (`-M none`), RAM
//! in a file that both map. A small kernel of ours ([`guest`]) runs there: it waits for a batch, and for each record
//! lays out memory itself, loads the registers, enters the snippet, and writes registers and memory of its end
//! into an answer. The debugger is needed for the first instruction only. Invariants: the process and its
//! files are gone when this is dropped; what the guest reads and what it writes lie apart. A QEMU that makes no
//! progress is killed, and the snippet that it was at counts as endless. One thread.
//! Source: QEMU manual, "Invocation"; the register order of its debugger is i386-64bit's.

mod guest;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{FileOffset, MmapRegion};
use xenolith_cpu::state::{VectorState, XSAVE_AREA_SIZE};

use super::image::{self, Memory, Tally};
use super::kernel::{self, KERNEL, RAM_BYTES};
use super::layout::{CODE, CODE16, DATA, LOW_LEN, PAGE, RO, RWX, STACK};
use super::{Bits, CHANGES_MAX, End, Ending, Runner, RunnerError, Snippet};
use crate::cpu_time::CpuClock;
use crate::diff::gdb::{Gdb, PATIENCE};
use crate::diff::peer;
use guest::{ANSWERS, INPUT, INPUT_LEN, Vars, answer, registers};

/// A snippet that takes QEMU so much processor time is endless.
const TIME_MAX: Duration = Duration::from_secs(4);
/// Answers of 16-bit code are large.
const BATCH_16: usize = 32;

fn refused(what: impl std::fmt::Display) -> RunnerError {
    RunnerError::Qemu(what.to_string())
}

/// The version of the QEMU that would be run.
///
/// # Errors
/// There is none.
pub fn version() -> Result<String, RunnerError> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|_| refused("qemu-system-x86_64 is not installed"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A running QEMU.
struct Process {
    child: Child,
    region: MmapRegion<()>,
    folder: PathBuf,
    /// Kept, since QEMU stops when its debugger goes.
    _gdb: Gdb,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; leftovers in a temporary folder hurt nobody.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// See the module's head.
pub struct Qemu {
    process: Option<Process>,
    /// Whether AVX state is there.
    low: bool,
}

impl std::fmt::Debug for Qemu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qemu").field("low", &self.low).finish_non_exhaustive()
    }
}

impl Qemu {
    /// # Errors
    /// There is no QEMU, or it doesn't do as it is told.
    pub fn new() -> Result<Self, RunnerError> {
        version()?;
        Ok(Self { process: Some(Process::start()?), low: false })
    }

    fn process(&mut self) -> Result<&mut Process, RunnerError> {
        if self.process.is_none() {
            self.process = Some(Process::start()?);
            self.low = false;
        }
        self.process.as_mut().ok_or_else(|| refused("it is gone"))
    }

    /// Runs snippets of one kind of memory; how many were answered before QEMU got stuck.
    fn run_part(&mut self, part: &[Snippet]) -> Result<Vec<Ending>, RunnerError> {
        let low = part[0].bits == Bits::B16;
        let before = self.low;
        let process = self.process()?;
        if low != before {
            kernel::map_piece(&mut |at, value| process.put(at, value), low);
        }
        let reload = low != before;
        self.low = low;
        let process = self.process()?;
        let given = process.give(part, reload);
        let done = process.wait(given);
        let mut endings = process.answers(part, done);
        if done < given {
            self.process = None;
            endings.push(Ending::only(End::Endless));
        } else if given == 0 {
            endings.push(Ending::only(End::Lost("too much memory in one snippet".to_owned())));
        }
        Ok(endings)
    }
}

impl Process {
    fn start() -> Result<Self, RunnerError> {
        let folder =
            peer::folder("snippets").map_err(|error| refused(format!("no folder: {error}")))?;
        let started = Self::start_in(&folder);
        if started.is_err() {
            // The error that matters is the other one.
            let _ = fs::remove_dir_all(&folder);
        }
        started
    }

    fn start_in(folder: &std::path::Path) -> Result<Self, RunnerError> {
        let (memory, socket) = (folder.join("ram"), folder.join("gdb"));
        let map = || -> Result<MmapRegion<()>, Box<dyn std::error::Error>> {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(&memory)?;
            file.set_len(RAM_BYTES)?;
            Ok(MmapRegion::from_file(FileOffset::new(file, 0), RAM_BYTES as usize)?)
        };
        let region = map().map_err(|error| refused(format!("no file for its memory: {error}")))?;
        let backend = format!(
            "memory-backend-file,id=ram,size={RAM_BYTES},mem-path={},share=on",
            memory.display()
        );
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-M", "none,memory-backend=ram", "-object", &backend])
            .args(["-m", &format!("{}M", RAM_BYTES >> 20), "-accel", "tcg"])
            .args(["-cpu", "max,vendor=GenuineIntel,-apic,apic-id=0"])
            .args(["-S", "-display", "none", "-nodefaults", "-gdb", "chardev:gdb", "-chardev"])
            .arg(format!("socket,id=gdb,path={},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|_| refused("qemu-system-x86_64 is not installed"))?;
        let gdb = match connect(&socket, &mut child) {
            Ok(gdb) => gdb,
            Err(error) => {
                // Already gone, perhaps.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut process = Self { child, region, folder: folder.to_owned(), _gdb: gdb };
        process.boot()?;
        Ok(process)
    }

    /// Puts the guest into memory and starts it.
    fn boot(&mut self) -> Result<(), RunnerError> {
        kernel::build(&mut |at, value| self.put(at, value), guest::handler);
        for (at, bytes) in guest::program().map_err(refused)? {
            self.write(at, &bytes);
        }
        const RIP: usize = 16;
        const CS: usize = 18;
        let start = guest::START;
        let enter = |gdb: &mut Gdb| {
            gdb.set_register(CS, &[0; 4])?;
            gdb.set_register(RIP, &start.to_le_bytes())?;
            gdb.run()
        };
        enter(&mut self._gdb).map_err(refused)?;
        let deadline = Instant::now() + PATIENCE;
        while self.read(Vars::ALIVE) == 0 {
            if Instant::now() > deadline {
                return Err(refused("our guest doesn't start there"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn pointer(&self, at: u64, len: usize) -> Option<*mut u8> {
        let at = usize::try_from(at).ok()?;
        (at.checked_add(len)? <= self.region.size()).then(|| self.region.as_ptr().wrapping_add(at))
    }

    fn put(&self, at: u64, value: u64) {
        // It may tell the guest that what was written before is complete.
        fence(Ordering::SeqCst);
        self.write(at, &value.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    fn read(&self, at: u64) -> u64 {
        // SAFETY: inside the mapping.
        self.pointer(at, 8).map_or(0, |pointer| unsafe { pointer.cast::<u64>().read_volatile() })
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        if let Some(pointer) = self.pointer(at, bytes.len()) {
            // SAFETY: inside the mapping. The guest looks at it only when it is told.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
        }
    }

    fn bytes(&self, at: u64, len: usize) -> &[u8] {
        match self.pointer(at, len) {
            // SAFETY: inside the mapping; the guest has finished with it.
            Some(pointer) => unsafe { std::slice::from_raw_parts(pointer, len) },
            None => &[],
        }
    }

    /// Writes what fits of a batch and tells the guest; how many.
    fn give(&self, part: &[Snippet], reload: bool) -> usize {
        let mut at = INPUT;
        let mut given = 0;
        let most = if part[0].bits == Bits::B16 { BATCH_16 } else { usize::MAX };
        for snippet in part.iter().take(most) {
            let record = record(snippet);
            let answer_end =
                ANSWERS + (given as u64 + 1) * (answer::WINDOWS + windows_len(snippet.bits));
            if at + record.len() as u64 > INPUT + INPUT_LEN || answer_end > RAM_BYTES {
                break;
            }
            self.write(at, &record);
            at += record.len() as u64;
            given += 1;
        }
        self.put(Vars::COUNT, given as u64);
        self.put(Vars::INDEX, 0);
        self.put(Vars::RELOAD, u64::from(reload));
        self.put(Vars::ANSWER, KERNEL + ANSWERS);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.put(Vars::WANTED, self.read(Vars::WANTED) + 1);
        given
    }

    /// Waits until all are done; how many were when it got stuck.
    fn wait(&mut self, given: usize) -> usize {
        let clock = CpuClock::of_process(self.child.id());
        let used = || clock.and_then(CpuClock::now).unwrap_or_default();
        let mut seen = (0, used(), Instant::now());
        loop {
            if self.read(Vars::WANTED) == self.read(Vars::DONE) {
                return given;
            }
            let index = self.read(Vars::INDEX);
            if index != seen.0 {
                seen = (index, used(), Instant::now());
            } else if used() > seen.1 + TIME_MAX
                || seen.2.elapsed() > PATIENCE
                || matches!(self.child.try_wait(), Ok(Some(_)))
            {
                return index as usize;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn answers(&self, part: &[Snippet], done: usize) -> Vec<Ending> {
        let mut at = ANSWERS;
        let mut endings = Vec::with_capacity(done + 1);
        for snippet in &part[..done] {
            endings.push(self.ending(snippet, at));
            at += answer::WINDOWS + windows_len(snippet.bits);
        }
        endings
    }

    fn ending(&self, snippet: &Snippet, at: u64) -> Ending {
        let word = |offset: u64| self.read(at + offset);
        let vector = word(answer::VECTOR) as u8;
        let mut ending = Ending::only(End::Exception {
            vector,
            error: if kernel::has_error_code(vector) { word(answer::ERROR) as u32 } else { 0 },
            cr2: word(answer::CR2),
        });
        for (n, register) in ending.gpr.iter_mut().enumerate() {
            *register = word(8 * n as u64);
        }
        ending.gpr[4] = word(answer::RSP);
        ending.rip = word(answer::RIP);
        ending.rflags = word(answer::RFLAGS);
        let names = [answer::ES, answer::CS, answer::SS, answer::DS, answer::FS, answer::GS];
        ending.selectors = names.map(|offset| word(offset) as u16);
        if ending.selectors[1] & 3 == 0 {
            ending.end = End::Lost("it faulted in the kernel".to_owned());
        }
        let state = self.bytes(at + answer::XSAVE, XSAVE_AREA_SIZE);
        ending.vector = vector_state(state);
        let mut changes = Vec::new();
        let mut tally = Tally::default();
        let before = Before::of(snippet);
        let mut from = at + answer::WINDOWS;
        for (start, len) in windows(snippet.bits) {
            let now = self.bytes(from, len);
            before.compare(start, now, |place, value| {
                if changes.len() < CHANGES_MAX {
                    changes.push((place, value));
                }
                tally.add(place, value);
            });
            from += len as u64;
        }
        ending.changes = changes;
        (ending.changed, ending.hash) = (tally.changed, tally.hash);
        ending
    }
}

/// Memory that is looked through for changes: as [`Memory::changes`] does.
fn windows(bits: Bits) -> Vec<(u64, usize)> {
    if bits == Bits::B16 {
        vec![(CODE16, LOW_LEN)]
    } else {
        vec![(RWX, PAGE as usize), (DATA, image::PATTERN_LEN), (STACK, 2 * PAGE as usize)]
    }
}

fn windows_len(bits: Bits) -> u64 {
    windows(bits).iter().map(|(_, len)| *len as u64).sum()
}

/// Everything that a snippet may have left behind.
fn leftovers(bits: Bits) -> Vec<(u64, u64)> {
    if bits == Bits::B16 {
        vec![(CODE16, LOW_LEN as u64)]
    } else {
        vec![(CODE, 3 * PAGE), (RWX, 2 * PAGE), (DATA, 2 * PAGE), (RO, PAGE), (STACK, 2 * PAGE)]
    }
}

/// Memory as it was before a snippet.
struct Before<'a> {
    pieces: Vec<(u64, &'a [u8])>,
}

const UD2: [u8; 2] = [0x0f, 0x0b];

impl<'a> Before<'a> {
    /// All pieces, in the order in which they are laid out.
    fn of(snippet: &'a Snippet) -> Self {
        let mut pieces: Vec<(u64, &[u8])> = Vec::new();
        if snippet.pattern != 0 {
            let at = Memory::pattern_at(snippet.bits);
            pieces.push((at, &image::pattern(snippet.pattern)[..]));
        }
        pieces.push((snippet.at(), &snippet.code));
        pieces.push((snippet.at() + snippet.code.len() as u64, &UD2));
        pieces.extend(snippet.memory.iter().map(|piece| (piece.at, &piece.bytes[..])));
        Self { pieces }
    }

    /// Tells every word of `now`, which lies at `start`, that isn't as it was.
    fn compare(&self, start: u64, now: &[u8], mut found: impl FnMut(u64, u64)) {
        let mut before = vec![0u8; now.len()];
        for (at, bytes) in &self.pieces {
            for (n, byte) in bytes.iter().enumerate() {
                let offset = (at + n as u64).wrapping_sub(start);
                if let Some(slot) = before.get_mut(offset as usize) {
                    *slot = *byte;
                }
            }
        }
        for (n, (new, old)) in now.chunks_exact(8).zip(before.chunks_exact(8)).enumerate() {
            if new != old {
                let value = u64::from_le_bytes(new.try_into().expect("chunks of eight"));
                found(start + 8 * n as u64, value);
            }
        }
    }
}

/// A snippet as the guest reads it: offsets of its parts, memory to clear and to write, registers, memory to
/// copy out.
fn record(snippet: &Snippet) -> Vec<u8> {
    let mut out = vec![0; 24];
    let word = |out: &mut Vec<u8>, value: u64| out.extend(value.to_le_bytes());
    for (at, len) in leftovers(snippet.bits) {
        word(&mut out, guest::ZERO);
        word(&mut out, KERNEL + at);
        word(&mut out, len);
    }
    for (at, bytes) in Before::of(snippet).pieces {
        word(&mut out, guest::COPY);
        word(&mut out, KERNEL + at);
        word(&mut out, bytes.len() as u64);
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    word(&mut out, 0);
    out.resize(out.len().next_multiple_of(64), 0);
    let registers_at = out.len();
    let mut state = vec![0u8; registers::LEN];
    let mut set = |offset: usize, value: u64| {
        state[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    };
    for (n, value) in snippet.gpr.iter().enumerate() {
        set(8 * n, *value);
    }
    set(registers::RIP, snippet.rip);
    set(registers::RFLAGS, snippet.rflags);
    let places =
        [registers::ES, registers::CS, registers::SS, registers::DS, registers::FS, registers::GS];
    for (offset, selector) in places.into_iter().zip(snippet.selectors) {
        set(offset, u64::from(selector));
    }
    let area = &mut state[registers::XSAVE..][..XSAVE_AREA_SIZE];
    area.copy_from_slice(&snippet.vector.bytes);
    area[VectorState::XSTATE_BV] = 7;
    // MXCSR_MASK isn't loaded; what the frame's rest holds must be zero.
    area[416..512].fill(0);
    area[513..576].fill(0);
    out.extend(&state);
    let windows_at = out.len();
    for (start, len) in windows(snippet.bits) {
        word(&mut out, KERNEL + start);
        word(&mut out, len as u64);
    }
    word(&mut out, 0);
    out.resize(out.len().next_multiple_of(64), 0);
    let len = out.len();
    for (n, value) in [registers_at, len, windows_at].into_iter().enumerate() {
        out[8 * n..8 * n + 8].copy_from_slice(&(value as u64).to_le_bytes());
    }
    out
}

/// A state in which components that the image leaves out have their initial values.
fn vector_state(image: &[u8]) -> VectorState {
    let mut state = VectorState::default();
    let Some(&present) = image.get(VectorState::XSTATE_BV) else { return state };
    let mxcsr = VectorState::MXCSR..VectorState::MXCSR + 4;
    if present & 1 != 0 {
        state.bytes[..24].copy_from_slice(&image[..24]);
        state.bytes[32..160].copy_from_slice(&image[32..160]);
    }
    if present & 2 != 0 {
        state.bytes[160..416].copy_from_slice(&image[160..416]);
    }
    if present & 4 != 0 {
        state.bytes[576..].copy_from_slice(&image[576..XSAVE_AREA_SIZE]);
    }
    state.bytes[mxcsr.clone()].copy_from_slice(&image[mxcsr]);
    state
}

/// Waits until QEMU listens.
fn connect(socket: &std::path::Path, child: &mut Child) -> Result<Gdb, RunnerError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Gdb::new(stream, child.id()).map_err(refused);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(refused(format!("qemu-system-x86_64 refuses to start ({status})")));
        }
        if Instant::now() > deadline {
            return Err(refused("it doesn't open its debugger's socket"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Runner for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn start(&mut self, _: &[Snippet]) -> Result<(), RunnerError> {
        Ok(())
    }

    fn finish(&mut self, batch: &[Snippet]) -> Result<Vec<Ending>, RunnerError> {
        let same = |a: &Snippet, b: &Snippet| (a.bits == Bits::B16) == (b.bits == Bits::B16);
        let mut endings = Vec::with_capacity(batch.len());
        while endings.len() < batch.len() {
            let rest = &batch[endings.len()..];
            let len = 1 + rest.windows(2).take_while(|pair| same(&pair[0], &pair[1])).count();
            let part = self.run_part(&rest[..len])?;
            endings.extend(part);
        }
        Ok(endings)
    }
}
