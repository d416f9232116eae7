//! The bare processor as a runner: snippets in a child process.
//!
//! Problem: what a snippet does must be measured on real hardware, register for register, and a snippet may
//! fault, loop, call the kernel or clobber its stack; and a process for each would be a thousand times slower
//! than the snippet. Scheme: one child runs batch after batch inside a signal handler. The handler writes the
//! next snippet's registers into the interrupted context, and the kernel's signal return loads them all
//! at once, 16- or 32-bit code segment included. The snippet ends by a signal (UD2 at its end gives
//! SIGILL), whose handler, on its own stack, keeps the context and goes on with the next one. Batches and
//! answers lie in shared memory ([`record`]); a futex says when. A timer of processor time ends
//! endless snippets. A seccomp filter lets the child wait, return from signals and exit: every other
//! system call is refused with a signal, so that a snippet can't do harm.
//! Invariants: after the fork the child makes system calls and plain stores only (no allocation, no locks,
//! no thread-local storage: FS is the snippet's); the handler's entry clears EFLAGS.AC first. A child that
//! dies is replaced, and only the snippet that it died in is lost.
//! Source: Linux `arch/x86/include/uapi/asm/sigcontext.h`, seccomp(2), futex(2), modify_ldt(2);
//! SDM vol. 1, "XSAVE-Managed Features".

mod child;
mod record;

use std::ptr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::{HIGH_LEN, LOW_LEN};
use super::{Bits, End, Ending, Runner, RunnerError, Snippet};
use record::{ANSWERS_MAX, Shared};

/// A child that answers nothing for so long has its state looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Length of both pieces of memory.
const MEMORY_LEN: usize = HIGH_LEN + LOW_LEN;

fn refused(what: &'static str) -> RunnerError {
    RunnerError::Host { what, reason: std::io::Error::last_os_error().to_string() }
}

/// A shared mapping that is undone with the value.
#[derive(Debug)]
struct Mapping {
    address: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to the value, whoever holds it.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(len: usize, fd: i32) -> Result<Self, RunnerError> {
        let flags = if fd < 0 { libc::MAP_SHARED | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(refused("map memory for the host's processor"));
        }
        Ok(Self { address: address.cast(), len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference outlives the value.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// Whether this kernel lets a process have an LDT, which 16-bit code and some selectors need.
#[must_use]
pub fn has_local_descriptors() -> bool {
    const READ: i32 = 0;
    let mut entry = [0u8; 8];
    // SAFETY: reads at most eight bytes of this process's LDT into `entry`.
    let read =
        unsafe { libc::syscall(libc::SYS_modify_ldt, READ, entry.as_mut_ptr(), entry.len()) };
    read >= 0
}

/// One child process, which has one of the two pieces of memory.
#[derive(Debug)]
struct Child {
    /// The snippet's memory, by file, since the child maps it twice.
    memory: i32,
    shared: Mapping,
    _stack: Mapping,
    setup: Box<child::Setup>,
    child: libc::pid_t,
    /// Snippets of the batch that have been given to the child.
    given: usize,
}

impl Child {
    /// A child for code of that size.
    fn new(bits: Bits) -> Result<Self, RunnerError> {
        // The patterns are made before there is a child, which could not.
        let _ = super::image::pattern(0);
        // SAFETY: the name is a C string.
        let memory = unsafe { libc::memfd_create(c"xenolith-snippet".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(refused("make a memory file"));
        }
        // SAFETY: a plain call on our descriptor.
        if unsafe { libc::ftruncate(memory, MEMORY_LEN as i64) } != 0 {
            return Err(refused("size a memory file"));
        }
        let shared = Mapping::new(size_of::<Shared>(), -1)?;
        let stack = Mapping::new(child::STACK_LEN, -1)?;
        let setup = child::Setup::new(bits, memory, shared.address.cast(), stack.address);
        let mut child = Self { memory, shared, _stack: stack, setup, child: 0, given: 0 };
        child.spawn()?;
        Ok(child)
    }

    fn shared(&self) -> &Shared {
        // SAFETY: mapped as long as `self` lives, aligned, and valid for every content: it is plain data
        // and atomics. The child writes answers only before it says that they are there.
        unsafe { &*self.shared.address.cast::<Shared>() }
    }

    fn spawn(&mut self) -> Result<(), RunnerError> {
        // What a child left in its memory when it died.
        // SAFETY: no child runs, and the file has that length.
        let cleared = unsafe {
            libc::fallocate(
                self.memory,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                0,
                MEMORY_LEN as i64,
            )
        };
        if cleared != 0 {
            return Err(refused("clear a memory file"));
        }
        let shared = self.shared();
        shared.stage.store(0, Ordering::SeqCst);
        shared.wanted.store(shared.done.load(Ordering::SeqCst), Ordering::SeqCst);
        // SAFETY: the child keeps to system calls and stores, as the module says.
        let child = unsafe { libc::fork() };
        if child == 0 {
            self.setup.run();
        }
        if child < 0 {
            return Err(refused("start a process"));
        }
        self.child = child;
        // It says when it is ready, or ends.
        while self.shared().stage.load(Ordering::SeqCst) != child::READY {
            if let Some(how) = self.ended() {
                let stage = self.shared().stage.load(Ordering::SeqCst);
                let reason = format!("{how} at step {stage}");
                return Err(RunnerError::Host { what: "set up a child process", reason });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// How the child ended, if it has.
    fn ended(&mut self) -> Option<String> {
        let mut status = 0;
        // SAFETY: asks for our own child.
        let waited = unsafe { libc::waitpid(self.child, &raw mut status, libc::WNOHANG) };
        if waited != self.child {
            return None;
        }
        self.child = 0;
        Some(if libc::WIFSIGNALED(status) {
            format!("killed by signal {}", libc::WTERMSIG(status))
        } else {
            format!("exited with status {}", libc::WEXITSTATUS(status))
        })
    }

    fn kill(&mut self) {
        if self.child > 0 {
            // SAFETY: our own child, not waited for yet.
            unsafe { libc::kill(self.child, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(self.child, ptr::null_mut(), 0) };
            self.child = 0;
        }
    }

    /// Gives the child what fits of the batch from `from` on.
    fn give(&mut self, batch: &[Snippet], from: usize) {
        // SAFETY: the child waits and reads the input only once `wanted` has changed.
        let input = unsafe { &mut *self.shared().input.get() };
        let mut writer = record::Writer::new(input);
        let fits = |writer: &mut record::Writer, snippet| writer.put(snippet);
        let given =
            batch[from..].iter().take(ANSWERS_MAX).take_while(|it| fits(&mut writer, it)).count();
        self.given = given;
        let shared = self.shared();
        shared.count.store(given as u32, Ordering::SeqCst);
        shared.index.store(0, Ordering::SeqCst);
        shared.wanted.fetch_add(1, Ordering::SeqCst);
        record::wake(&shared.wanted);
    }

    /// Waits until the child is through; how it died, if it did.
    fn wait(&mut self) -> Option<String> {
        loop {
            let shared = self.shared();
            let (wanted, done) =
                (shared.wanted.load(Ordering::SeqCst), shared.done.load(Ordering::SeqCst));
            if wanted == done {
                return None;
            }
            record::wait(&shared.done, done, LOOK_EVERY);
            if self.shared().done.load(Ordering::SeqCst) == done
                && let Some(how) = self.ended()
            {
                return Some(how);
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // SAFETY: opened by `new`.
        unsafe { libc::close(self.memory) };
    }
}

impl Child {
    fn start(&mut self, batch: &[Snippet]) -> Result<(), RunnerError> {
        if self.child == 0 {
            self.spawn()?;
        }
        self.give(batch, 0);
        Ok(())
    }

    fn finish(&mut self, batch: &[Snippet]) -> Result<Vec<Ending>, RunnerError> {
        let mut endings = Vec::with_capacity(batch.len());
        loop {
            let died = self.wait();
            let shared = self.shared();
            let through = shared.index.load(Ordering::SeqCst) as usize;
            endings.extend((0..through.min(self.given)).map(|n| shared.answer(n).ending()));
            if let Some(how) = died {
                if endings.len() < batch.len() {
                    endings.push(Ending::only(End::Lost(how)));
                }
                self.spawn()?;
            } else if self.given == 0 && endings.len() < batch.len() {
                endings.push(Ending::only(End::Lost("too much memory in one snippet".to_owned())));
            }
            if endings.len() == batch.len() {
                return Ok(endings);
            }
            self.give(batch, endings.len());
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Host {
    high: Child,
    /// For 16-bit code, where the kernel allows it.
    low: Option<Child>,
}

impl Host {
    /// # Errors
    /// The host refuses memory or a process.
    pub fn new() -> Result<Self, RunnerError> {
        let low = if has_local_descriptors() { Some(Child::new(Bits::B16)?) } else { None };
        Ok(Self { high: Child::new(Bits::B64)?, low })
    }

    /// Whether 16-bit code and selectors of the LDT can be run.
    #[must_use]
    pub fn has_local_descriptors(&self) -> bool {
        self.low.is_some()
    }

    /// The child that can run a snippet.
    fn child(&mut self, snippet: &Snippet) -> Option<&mut Child> {
        match snippet.bits {
            Bits::B16 => self.low.as_mut(),
            Bits::B32 | Bits::B64 => Some(&mut self.high),
        }
    }
}

/// Whether all of a batch is for one child.
fn is_uniform(batch: &[Snippet]) -> bool {
    batch.windows(2).all(|pair| same_child(&pair[0], &pair[1]))
}

fn same_child(a: &Snippet, b: &Snippet) -> bool {
    (a.bits == Bits::B16) == (b.bits == Bits::B16)
}

impl Runner for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn start(&mut self, batch: &[Snippet]) -> Result<(), RunnerError> {
        match batch.first().and_then(|first| self.child(first)) {
            Some(child) if is_uniform(batch) => child.start(batch),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, batch: &[Snippet]) -> Result<Vec<Ending>, RunnerError> {
        let uniform = is_uniform(batch);
        let mut endings = Vec::with_capacity(batch.len());
        for part in batch.chunk_by(same_child) {
            let Some(child) = self.child(&part[0]) else {
                let lost = Ending::only(End::Lost("this kernel gives no LDT".to_owned()));
                endings.resize(endings.len() + part.len(), lost);
                continue;
            };
            if !uniform {
                child.start(part)?;
            }
            endings.extend(child.finish(part)?);
        }
        Ok(endings)
    }
}
