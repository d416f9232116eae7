//! What an engine counts, always.

/// Counters of one vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Times that translated code was entered.
    pub entries: u64,
    /// Exits by reason.
    pub refills: u64,
    pub misses_interpreted: u64,
    pub chain_exits: u64,
    pub indirect_misses: u64,
    pub guard_exits: u64,
    pub polls: u64,
    pub handed_over: u64,
    /// Rounds in a mode that blocks aren't made for, and at places without a block.
    pub unfit: u64,
    pub unfound: u64,
    /// Instructions that the interpreter did.
    pub interpreted: u64,
    /// TLB flushes, and pages flushed one by one.
    pub flushes: u64,
    pub page_flushes: u64,
    pub evictions: u64,
}
