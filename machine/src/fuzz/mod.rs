//! Random snippets in all engines and on the host's processor, until two disagree.
//!
//! Problem: whoever breaks an instruction must know within a minute, with the smallest piece of code that shows
//! it. Scheme: snippets are drawn by number from a seed ([`generate`]) in batches; the host's processor runs a
//! batch in its own process while our engines run it here; each engine is then compared with the
//! processor. What differs is looked at closer ([`crate::snippet::judge`]), and what then remains is
//! shrunk ([`shrink`]) and written as a conformance case ([`file`]). What is generated and what is not: [`coverage`].
//! Invariants: snippet `n` of a seed is always the same on one CPU model; nothing depends on time but how far
//! a run gets. Thread: the caller's, with the processor's child process beside it.

mod assemble;
pub mod coverage;
pub mod file;
pub mod generate;
pub mod rng;
mod session;
pub mod shrink;
mod template;
#[cfg(test)]
mod tests;
pub mod values;

pub use session::{Config, Counts, Finding, Unsteady, run};
