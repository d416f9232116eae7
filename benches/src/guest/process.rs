//! What the host's kernel knows about a process: processor time, waiting for a processor, memory.
//!
//! Source: Linux, Documentation/scheduler/sched-stats.rst ("/proc/<pid>/schedstat"), Documentation/filesystems/proc.rst
//! ("/proc/PID/smaps").

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Nanoseconds run and waited by each thread.
#[derive(Clone, Debug, Default)]
pub struct Usage(BTreeMap<u32, (u64, u64)>);

/// A difference of two.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// By all threads.
    pub ran: Duration,
    /// By the thread that ran most: the vCPU.
    pub waited: Duration,
}

impl Usage {
    /// Of a process that may have ended: then there is nothing.
    pub fn of(pid: u32) -> Self {
        let mut threads = BTreeMap::new();
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Self::default() };
        for entry in entries.filter_map(Result::ok) {
            let text = fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
            let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
            let thread = entry.file_name().to_string_lossy().parse();
            if let (Ok(thread), Some(ran), Some(waited)) = (thread, numbers.next(), numbers.next())
            {
                threads.insert(thread, (ran, waited));
            }
        }
        Self(threads)
    }

    pub fn since(&self, before: &Self) -> Used {
        let (mut sum, mut most) = (0, (0, 0));
        for (thread, (ran, waited)) in &self.0 {
            let (ran0, waited0) = before.0.get(thread).copied().unwrap_or_default();
            let (ran, waited) = (ran.saturating_sub(ran0), waited.saturating_sub(waited0));
            sum += ran;
            if ran >= most.0 {
                most = (ran, waited);
            }
        }
        Used { ran: Duration::from_nanos(sum), waited: Duration::from_nanos(most.1) }
    }
}

/// Bytes of a process's memory that are not guest RAM: what is resident in mappings, each page once however
/// often it is mapped, and the page tables that the host needs for it.
///
/// Guest RAM is a mapping of exactly its size, or views of one file with such a mapping.
pub fn memory_beyond(pid: u32, guest_bytes: u64) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    // Name, size and resident share of each mapping.
    let mut mappings: Vec<(String, u64, u64)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        let kib = |words: &mut std::str::SplitWhitespace<'_>| -> Option<u64> {
            Some(words.next()?.parse::<u64>().ok()? << 10)
        };
        match first {
            "Size:" => mappings.last_mut()?.1 = kib(&mut words)?,
            "Pss:" => mappings.last_mut()?.2 = kib(&mut words)?,
            _ if !first.ends_with(':') => {
                // Address, rights, offset, device, inode, name. The inode tells files of one name apart.
                let rest: Vec<_> = line.split_whitespace().skip(4).collect();
                mappings.push((rest.join(" "), 0, 0));
            }
            _ => {}
        }
    }
    let is_file = |name: &str| name.split(' ').next().is_some_and(|inode| inode != "0");
    let files: Vec<_> = mappings
        .iter()
        .filter(|(name, size, _)| *size == guest_bytes && is_file(name))
        .map(|(name, ..)| name.clone())
        .collect();
    let beyond: u64 = mappings
        .iter()
        .filter(|(name, size, _)| *size != guest_bytes && !files.contains(name))
        .map(|(.., resident)| resident)
        .sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tables = status.lines().find_map(|line| line.strip_prefix("VmPTE:"))?;
    let tables: u64 = tables.split_whitespace().next()?.parse().ok()?;
    Some(beyond + (tables << 10))
}
