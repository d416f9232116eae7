//! Host instructions of one iteration of a loop in translated code, counted by single-stepping.
//!
//! Scheme: `xenolith run --engine bt` with a guest that does nothing but the loop. After a moment, when everything
//! is translated and chained, the vCPU's thread (the one that has run most) is seized by ptrace and stepped.
//! Every loop of `guests.rs` counts ECX down, and the guest's ECX is the host's at most places of translated code:
//! a host address at which ECX is one less each time it is passed marks the iterations.
//! Source: ptrace(2), `PTRACE_SEIZE`, `PTRACE_INTERRUPT`, `PTRACE_SINGLESTEP`.

use std::collections::HashMap;
use std::ffi::c_uint;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const STEPS: usize = 200_000;
const WARM_UP: Duration = Duration::from_millis(500);
/// Fewer say nothing.
const ITERATIONS_MIN: u64 = 40;

/// Killed when dropped.
struct Traced {
    child: Child,
    /// The thread that was seized.
    thread: Option<libc::pid_t>,
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        // A process whose dead thread its tracer hasn't waited for can't be waited for.
        if let Some(thread) = self.thread {
            while stopped(thread).is_ok() {}
        }
        let _ = self.child.wait();
    }
}

/// A host address that was passed.
struct Place {
    first: (usize, u32),
    last: (usize, u32),
    /// ECX was one less at each visit.
    counts: bool,
}

/// Host instructions an iteration of the loop in `image`.
///
/// # Errors
/// The guest doesn't run, or no place counts iterations.
pub fn per_iteration(program: &Path, image: &Path) -> Result<f64> {
    let child = Command::new(program)
        .args(["run", "--engine", "bt", "-m", "64M", "--serial", "none", "--kernel"])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run xenolith")?;
    let mut traced = Traced { child, thread: None };
    thread::sleep(WARM_UP);
    if let Some(status) = traced.child.try_wait()? {
        bail!("the guest ended at once: {status}");
    }
    let vcpu = busiest_thread(traced.child.id())?;
    trace(libc::PTRACE_SEIZE, vcpu, 0)?;
    traced.thread = Some(vcpu);
    trace(libc::PTRACE_INTERRUPT, vcpu, 0)?;
    stopped(vcpu)?;
    let mut places: HashMap<u64, Place> = HashMap::new();
    for step in 0..STEPS {
        let registers = registers(vcpu)?;
        let ecx = registers.rcx as u32;
        let visit = (step, ecx);
        places
            .entry(registers.rip)
            .and_modify(|place| {
                place.counts &= ecx == place.last.1.wrapping_sub(1);
                place.last = visit;
            })
            .or_insert(Place { first: visit, last: visit, counts: true });
        single_step(vcpu)?;
    }
    let best = places
        .values()
        .filter(|place| place.counts)
        .max_by_key(|place| place.first.1.wrapping_sub(place.last.1))
        .context("nothing was passed twice")?;
    let iterations = u64::from(best.first.1.wrapping_sub(best.last.1));
    ensure!(iterations >= ITERATIONS_MIN, "only {iterations} iterations in {STEPS} steps");
    Ok((best.last.0 - best.first.0) as f64 / iterations as f64)
}

fn busiest_thread(pid: u32) -> Result<libc::pid_t> {
    let mut busiest = None;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path().join("schedstat"))?;
        let ran: u64 = text.split_whitespace().next().context("a time")?.parse()?;
        let thread: libc::pid_t = entry.file_name().to_string_lossy().parse()?;
        busiest = busiest.max(Some((ran, thread)));
    }
    Ok(busiest.context("a process has threads")?.1)
}

fn trace(request: c_uint, thread: libc::pid_t, data: usize) -> Result<()> {
    // SAFETY: with a zero address, and as data a number or a pointer to a structure that the caller has; the
    // thread is one of a child of ours.
    let result = unsafe { libc::ptrace(request, thread, 0usize, data) };
    ensure!(result == 0, "ptrace({request:#x}): {}", std::io::Error::last_os_error());
    Ok(())
}

/// Waits until the thread stops. Gives the signal that stopped it.
fn stopped(thread: libc::pid_t) -> Result<i32> {
    let mut status = 0;
    // SAFETY: the status is ours to be written.
    let result = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    ensure!(result == thread, "waitpid: {}", std::io::Error::last_os_error());
    ensure!(libc::WIFSTOPPED(status), "the vCPU's thread ended: {status:#x}");
    Ok(libc::WSTOPSIG(status))
}

/// One instruction; a signal that comes in between is delivered.
fn single_step(thread: libc::pid_t) -> Result<()> {
    trace(libc::PTRACE_SINGLESTEP, thread, 0)?;
    loop {
        match stopped(thread)? {
            libc::SIGTRAP => return Ok(()),
            signal => trace(libc::PTRACE_SINGLESTEP, thread, usize::try_from(signal)?)?,
        }
    }
}

fn registers(thread: libc::pid_t) -> Result<libc::user_regs_struct> {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
    trace(libc::PTRACE_GETREGS, thread, registers.as_mut_ptr().expose_provenance())?;
    // SAFETY: filled by the call that succeeded; any bits are registers.
    Ok(unsafe { registers.assume_init() })
}
