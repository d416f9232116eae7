//! What an engine counts, always, and how it is told.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use iced_x86::Mnemonic;
use xenolith_codecache::cache::Counters;

/// Mnemonics that there are, with room for later ones.
const MNEMONICS: usize = 4096;
/// Of those handed over, how many are told.
const TOLD_MNEMONICS: usize = 16;

/// Counters of one vCPU.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Times that translated code was entered.
    pub entries: u64,
    /// Exits by reason.
    pub refills: u64,
    pub misses_interpreted: u64,
    /// Of those, accesses across pages.
    pub misses_across: u64,
    pub chain_exits: u64,
    pub indirect_misses: u64,
    pub guard_exits: u64,
    pub polls: u64,
    pub handed_over: u64,
    /// The same by instruction.
    pub by_mnemonic: Box<[u64]>,
    /// Rounds in a mode that blocks aren't made for, and at places without a block.
    pub unfit: u64,
    pub unfound: u64,
    /// Instructions that the interpreter did.
    pub interpreted: u64,
    /// TLB flushes, and pages flushed one by one.
    pub flushes: u64,
    pub page_flushes: u64,
    pub evictions: u64,
    /// Faults in shadow windows: pages mapped for them, and accesses left to the interpreter.
    pub window_fills: u64,
    pub window_pages: u64,
    pub window_misses: u64,
    /// Those of them that showed a region to be guessed wrong.
    pub misled: u64,
    pub promotions: u64,
    pub wakings: u64,
    /// Pages of code made again with guesses.
    pub warm_pages: u64,
    /// Accesses left to the interpreter because of a segment's limit or rights.
    pub segment_misses: u64,
    /// Guest instructions in all, where blocks count.
    pub retired: u64,
    /// Ticks of the host's time stamp counter spent on making blocks.
    pub translating_ticks: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            entries: 0,
            refills: 0,
            misses_interpreted: 0,
            misses_across: 0,
            chain_exits: 0,
            indirect_misses: 0,
            guard_exits: 0,
            polls: 0,
            handed_over: 0,
            by_mnemonic: vec![0; MNEMONICS].into_boxed_slice(),
            unfit: 0,
            unfound: 0,
            interpreted: 0,
            flushes: 0,
            page_flushes: 0,
            evictions: 0,
            window_fills: 0,
            window_pages: 0,
            window_misses: 0,
            misled: 0,
            promotions: 0,
            wakings: 0,
            warm_pages: 0,
            segment_misses: 0,
            retired: 0,
            translating_ticks: 0,
        }
    }
}

impl Stats {
    fn add(&mut self, other: &Self) {
        let Self { by_mnemonic, .. } = self;
        for (sum, n) in by_mnemonic.iter_mut().zip(&other.by_mnemonic[..]) {
            *sum += n;
        }
        let pairs = [
            (&mut self.entries, other.entries),
            (&mut self.refills, other.refills),
            (&mut self.misses_interpreted, other.misses_interpreted),
            (&mut self.misses_across, other.misses_across),
            (&mut self.chain_exits, other.chain_exits),
            (&mut self.indirect_misses, other.indirect_misses),
            (&mut self.guard_exits, other.guard_exits),
            (&mut self.polls, other.polls),
            (&mut self.handed_over, other.handed_over),
            (&mut self.unfit, other.unfit),
            (&mut self.unfound, other.unfound),
            (&mut self.interpreted, other.interpreted),
            (&mut self.flushes, other.flushes),
            (&mut self.page_flushes, other.page_flushes),
            (&mut self.evictions, other.evictions),
            (&mut self.window_fills, other.window_fills),
            (&mut self.window_pages, other.window_pages),
            (&mut self.window_misses, other.window_misses),
            (&mut self.misled, other.misled),
            (&mut self.promotions, other.promotions),
            (&mut self.wakings, other.wakings),
            (&mut self.warm_pages, other.warm_pages),
            (&mut self.segment_misses, other.segment_misses),
            (&mut self.retired, other.retired),
            (&mut self.translating_ticks, other.translating_ticks),
        ];
        for (sum, n) in pairs {
            *sum += n;
        }
    }
}

/// The counters of all engines of a run, over resets too.
#[derive(Debug, Default)]
pub struct Report(Mutex<Totals>);

#[derive(Debug, Default)]
struct Totals {
    engines: usize,
    stats: Stats,
    counters: Counters,
    live: usize,
}

impl Report {
    /// Guest instructions in all, and those of them that the interpreter did.
    ///
    /// Blocks count where a report is asked for.
    #[must_use]
    pub fn instructions(&self) -> (u64, u64) {
        let totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (totals.stats.retired, totals.stats.interpreted)
    }

    /// Faults of translated code that shadow windows couldn't help.
    #[must_use]
    pub fn window_misses(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stats.window_misses
    }

    /// Adds an engine's counters; those of the cache are all engines' together.
    pub(super) fn add(&self, stats: &Stats, counters: &Counters, live: usize) {
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        totals.engines += 1;
        totals.stats.add(stats);
        totals.counters = *counters;
        totals.live = live;
    }
}

/// The host's time stamp counter against its clock, over a hundredth of a second.
fn ticks_per_ns() -> f64 {
    let start = std::time::Instant::now();
    // SAFETY: the time stamp counter may be read by any program here.
    let before = unsafe { std::arch::x86_64::_rdtsc() };
    std::thread::sleep(std::time::Duration::from_millis(10));
    // SAFETY: as above.
    let after = unsafe { std::arch::x86_64::_rdtsc() };
    (after - before) as f64 / start.elapsed().as_nanos() as f64
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if totals.engines == 0 {
            return writeln!(f, "no translator has run");
        }
        let (stats, counters) = (&totals.stats, &totals.counters);
        let interpreted = share(stats.interpreted, stats.retired);
        let translating_ns = stats.translating_ticks as f64 / ticks_per_ns();
        let each_ns = translating_ns / (counters.instructions.max(1)) as f64;
        writeln!(f, "{:>14}  guest instructions", stats.retired)?;
        writeln!(f, "{:>14}    interpreted ({interpreted:.3} %)", stats.interpreted)?;
        writeln!(f, "{:>14}  blocks translated", counters.blocks)?;
        writeln!(f, "{:>14}    of them kept", totals.live)?;
        writeln!(f, "{:>14}    instructions in them", counters.instructions)?;
        writeln!(f, "{:>14}    bytes of guest code", counters.guest_bytes)?;
        writeln!(f, "{:>14}    bytes of host code", counters.host_bytes)?;
        writeln!(f, "{translating_ns:>14.0}    ns for it, {each_ns:.0} ns an instruction")?;
        let rows = [
            ("blocks dropped for changed code", counters.invalidated),
            ("writes beside code", counters.spared),
            ("blocks dropped for many of them", counters.outwritten),
            ("blocks evicted", counters.evicted),
            ("segments of the cache opened anew", stats.evictions),
            ("entries of translated code", stats.entries),
            ("exits: inline TLB filled", stats.refills),
            ("exits: access interpreted", stats.misses_interpreted),
            ("  of them across pages", stats.misses_across),
            ("exits: block to chain", stats.chain_exits),
            ("  chained", counters.chains),
            ("exits: jump unknown", stats.indirect_misses),
            ("exits: page to vouch for", stats.guard_exits),
            ("exits: attention", stats.polls),
            ("exits: window filled", stats.window_fills),
            ("  pages mapped", stats.window_pages),
            ("exits: window of no use", stats.window_misses),
            ("  region guessed wrong", stats.misled),
            ("exits: outside the segment", stats.segment_misses),
            ("exits: instruction handed over", stats.handed_over),
        ];
        for (name, value) in rows {
            writeln!(f, "{value:>14}  {name}")?;
        }
        let mut by_count: Vec<(u64, usize)> = stats
            .by_mnemonic
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
            .map(|(n, &count)| (count, n))
            .collect();
        by_count.sort_unstable_by(|a, b| b.cmp(a));
        for (count, n) in by_count.into_iter().take(TOLD_MNEMONICS) {
            let name = Mnemonic::values().nth(n).map_or_else(String::new, |m| format!("{m:?}"));
            writeln!(f, "{count:>14}    {}", name.to_lowercase())?;
        }
        let rest = [
            ("TLB flushes", stats.flushes),
            ("pages flushed by themselves", stats.page_flushes),
            ("address spaces given windows", stats.promotions),
            ("  woken after a flush", stats.wakings),
            ("code pages made again with guesses", stats.warm_pages),
            ("rounds in modes without blocks", stats.unfit),
            ("rounds at places without a block", stats.unfound),
        ];
        for (name, value) in rest {
            writeln!(f, "{value:>14}  {name}")?;
        }
        Ok(())
    }
}
