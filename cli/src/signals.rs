//! Signals: the window's size to the guest, and orderly ends.
//!
//! Problem: a signal that kills us must leave a usable terminal, and a handler may do almost nothing.
//! Scheme: no handlers. The signals are blocked before any other thread starts, so all threads inherit
//! that, and one thread waits for them with sigwait(3) and acts as ordinary code. A deadly signal ends
//! the machine; when that is done the main thread calls [`Signals::die_if_told`], which raises it again
//! with its default action, so that our parent sees the truth. Before there is a machine (its files may be slow to
//! read, or a pipe that nobody writes) it is obeyed at once.
//! Invariants: a signal that was ignored when we started (nohup, a shell's background job) stays so;
//! SIGSEGV and its like are never touched here. The guest's own Ctrl-C is a byte, not a signal.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use libc::c_int;
use xenolith_machine::Handle;

use crate::terminal;

const DEADLY: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// How long a machine may take to stop before a deadly signal is obeyed without it.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// The signals that the signal thread takes, blocked in this thread and those it starts.
pub struct Signals {
    /// The deadly signal that came, or 0.
    deadly: Arc<AtomicI32>,
    machine: Arc<OnceLock<Handle>>,
}

impl Signals {
    /// Blocks the signals, and starts the thread that acts on them. Call it before the machine's threads exist.
    pub fn block() -> Self {
        let mut set = empty_set();
        for signal in DEADLY.into_iter().chain([libc::SIGWINCH, libc::SIGTSTP]) {
            if !is_ignored(signal) {
                // SAFETY: `set` is an initialised set and `signal` a valid signal number.
                unsafe { libc::sigaddset(&raw mut set, signal) };
            }
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        let this = Self { deadly: Arc::default(), machine: Arc::default() };
        let (deadly, machine) = (Arc::clone(&this.deadly), Arc::clone(&this.machine));
        thread::spawn(move || {
            loop {
                let mut signal = 0;
                // SAFETY: both point to initialised locals, and the signals are blocked here.
                if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
                    return;
                }
                let tell_size = || {
                    if let (Some(handle), Some((columns, rows))) =
                        (machine.get(), terminal::window())
                    {
                        handle.set_console_size(columns, rows);
                    }
                };
                match (signal, machine.get()) {
                    (libc::SIGWINCH, _) => tell_size(),
                    (libc::SIGTSTP, _) => {
                        suspend();
                        tell_size();
                    }
                    (_, None) => die(signal),
                    _ if deadly.swap(signal, Ordering::SeqCst) != 0 => die(signal),
                    (_, Some(handle)) => {
                        handle.quit();
                        thread::spawn(move || {
                            thread::sleep(STOP_TIME_MAX);
                            die(signal);
                        });
                    }
                }
            }
        });
        this
    }

    /// From now on signals are for the machine behind `handle`.
    pub fn serve(&self, handle: Handle) {
        self.machine.set(handle).unwrap_or_else(|_| unreachable!("there is one machine"));
    }

    /// Dies of the deadly signal that ended the machine, if one did.
    pub fn die_if_told(&self) {
        match self.deadly.load(Ordering::SeqCst) {
            0 => {}
            signal => die(signal),
        }
    }
}

/// Stops as a shell's job, with the terminal as the shell wants it; returns when continued.
fn suspend() {
    let lent = terminal::is_lent();
    let page = terminal::show_page(false);
    terminal::restore();
    // SAFETY: raising a signal touches no memory; SIGSTOP stops all our threads until SIGCONT.
    unsafe { libc::raise(libc::SIGSTOP) };
    if lent && let Err(error) = terminal::lend() {
        terminal::say(&format!("cannot use the terminal again: {error}"));
    }
    terminal::show_page(page);
}

/// Ends the process by `signal`'s default action.
fn die(signal: c_int) -> ! {
    terminal::restore();
    let mut set = empty_set();
    // SAFETY: `set` is an initialised set and `signal` came from the kernel.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: the action was never changed by us, so the default one, which ends us, is in force.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
    // SAFETY: as above; a signal sent to this thread is taken before raise returns.
    unsafe { libc::raise(signal) };
    // Reached only if a debugger swallowed the signal.
    std::process::exit(128 + signal);
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above, which can't fail for a valid pointer.
    unsafe { set.assume_init() }
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the answer has room in `action`.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: all-zero bytes are a valid sigaction, so it is initialised whatever the call did.
    let action = unsafe { action.assume_init() };
    asked && action.sa_sigaction == libc::SIG_IGN
}
