//! What an engine counts, always.

use std::fmt;

use iced_x86::Mnemonic;

/// Mnemonics that there are, with room for later ones.
const MNEMONICS: usize = 4096;

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
    pub promotions: u64,
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
            promotions: 0,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("entries", self.entries),
            ("refills", self.refills),
            ("accesses interpreted", self.misses_interpreted),
            ("  across pages", self.misses_across),
            ("chain exits", self.chain_exits),
            ("indirect misses", self.indirect_misses),
            ("guard exits", self.guard_exits),
            ("polls taken", self.polls),
            ("rounds in unfit modes", self.unfit),
            ("rounds without a block", self.unfound),
            ("instructions interpreted", self.interpreted),
            ("flushes", self.flushes),
            ("pages flushed", self.page_flushes),
            ("evictions", self.evictions),
            ("window faults filled", self.window_fills),
            ("window pages mapped", self.window_pages),
            ("window faults interpreted", self.window_misses),
            ("address spaces given windows", self.promotions),
            ("handed over", self.handed_over),
        ];
        for (name, value) in rows {
            writeln!(f, "{value:>14}  {name}")?;
        }
        let mut by_count: Vec<(u64, usize)> = self
            .by_mnemonic
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
            .map(|(n, &count)| (count, n))
            .collect();
        by_count.sort_unstable_by(|a, b| b.cmp(a));
        for (count, n) in by_count.into_iter().take(24) {
            let name = Mnemonic::values().nth(n).map_or_else(String::new, |m| format!("{m:?}"));
            writeln!(f, "{count:>14}    {}", name.to_lowercase())?;
        }
        Ok(())
    }
}
