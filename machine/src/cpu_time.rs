//! Processor time of a thread or another process.
//!
//! Problem: what runs too long must be ended, but on a busy computer a moment of work takes any time. Scheme: patience
//! is measured in processor time of whoever works. Source: clock_getcpuclockid(3), pthread_getcpuclockid(3).

use std::time::Duration;

/// Counts only while its thread or process has a processor.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The calling thread's.
    pub fn of_this_thread() -> Option<Self> {
        let mut id = 0;
        // SAFETY: without conditions.
        let thread = unsafe { libc::pthread_self() };
        // SAFETY: the calling thread exists, and there is room for the answer.
        let failed = unsafe { libc::pthread_getcpuclockid(thread, &raw mut id) };
        (failed == 0).then_some(Self(id))
    }

    /// That of all threads of a process.
    pub fn of_process(pid: u32) -> Option<Self> {
        let mut id = 0;
        // SAFETY: has room for the answer.
        let failed = unsafe { libc::clock_getcpuclockid(pid.try_into().ok()?, &raw mut id) };
        (failed == 0).then_some(Self(id))
    }

    /// The time used so far; `None` when the thread or process is gone.
    pub fn now(self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: has room for the answer.
        let failed = unsafe { libc::clock_gettime(self.0, &raw mut time) } != 0;
        (!failed).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_counts() {
        let clock = CpuClock::of_this_thread().expect("it is there");
        let start = clock.now().expect("it runs");
        while clock.now().expect("it runs") < start + Duration::from_millis(20) {}
        let before = clock.now().expect("it runs");
        std::thread::sleep(Duration::from_millis(200));
        let slept = clock.now().expect("it runs") - before;
        assert!(slept < Duration::from_millis(100), "{slept:?}");
    }

    #[test]
    fn another_process_has_its_own() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("a shell");
        let clock = CpuClock::of_process(child.id()).expect("it is there");
        while clock.now().expect("it runs") < Duration::from_millis(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("ours");
        child.wait().expect("killed");
        assert_eq!(clock.now(), None);
    }
}
