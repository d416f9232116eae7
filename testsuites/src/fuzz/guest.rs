//! A whole hostile guest: drawn from a seed, kept in a file.
//!
//! The file is a multiboot image that `xenolith run --kernel` takes too, with a few words behind it that say
//! how it was run: a magic number, the seed, processors, resets, guest time.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::chunks::Kind;
use super::plan::Plan;
use super::rng::Rng;
use super::world;

const MAGIC: u64 = u64::from_le_bytes(*b"XENOFUZZ");
const TRAILER_WORDS: usize = 5;

/// A guest and how to run it.
#[derive(Clone, PartialEq, Eq)]
pub struct HostileGuest {
    pub seed: u64,
    /// Multiboot image.
    pub image: Vec<u8>,
    pub vcpus: u32,
    /// It may reset the machine and go on.
    pub resets: bool,
    /// How long it runs, in its own time.
    pub guest_time: Duration,
    /// It has no part whose timing depends on the host.
    pub repeatable: bool,
    /// For people.
    pub summary: String,
}

impl std::fmt::Debug for HostileGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.summary)
    }
}

impl HostileGuest {
    /// Draws a guest.
    ///
    /// # Errors
    /// Code can't be assembled: a defect of the fuzzer.
    pub fn from_seed(seed: u64) -> Result<Self> {
        // Neighbouring seeds must not give neighbouring sequences.
        let mut rng = Rng::new(Rng::new(seed).u64());
        let mut plan = Plan::draw(&mut rng);
        let vcpus = if rng.one_in(50) { 2 } else { 1 };
        plan.second_processor = vcpus > 1 && !rng.one_in(4);
        let resets = rng.one_in(50);

        // How much of each kind: mostly of a few.
        let weights: Vec<(Kind, u64)> = Kind::ALL
            .iter()
            .filter(|kind| !kind.is_final())
            .map(|&kind| (kind, *rng.pick(&[0, 0, 1, 1, 4, 16])))
            .collect();
        let total = weights.iter().map(|(_, weight)| weight).sum::<u64>().max(1);
        let mut chunks = Vec::new();
        let count = if rng.one_in(4) { 4 } else { 8 + rng.below(150) };
        for _ in 0..count {
            let mut at = rng.range(0..total);
            let mut kind = Kind::Garbage;
            for &(candidate, weight) in &weights {
                if at < weight {
                    kind = candidate;
                    break;
                }
                at -= weight;
            }
            if rng.one_in(if resets { 8 } else { 400 }) {
                kind = if rng.one_in(2) { Kind::Reset } else { Kind::TripleFault };
            }
            chunks.push(kind.chunk(&mut rng, plan.mode));
        }
        let uses_virtio = weights.iter().any(|&(kind, weight)| weight > 0 && kind == Kind::Virtio);
        let image = world::image(&mut rng, &plan, &chunks)?.bytes;
        let guest_time = Duration::from_micros(if rng.one_in(32) { 10_000 } else { 300 });
        let privilege = if plan.user { "user" } else { "kernel" };
        let mut much: Vec<_> = weights.iter().filter(|(_, weight)| *weight >= 4).collect();
        much.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        let much: Vec<_> = much.iter().map(|(kind, _)| format!("{kind:?}")).collect();
        let summary = format!(
            "{:?} {privilege}, {} chunks, mostly {}; {vcpus} vCPU{}",
            plan.mode,
            chunks.len(),
            much.join(" "),
            if resets { ", resets" } else { "" }
        );
        let repeatable = vcpus == 1 && !uses_virtio && !resets;
        Ok(Self { seed, image, vcpus, resets, guest_time, repeatable, summary })
    }

    /// The guest as a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.image.clone();
        let time_ns = u64::try_from(self.guest_time.as_nanos()).unwrap_or(u64::MAX);
        let resets = u64::from(self.resets) | u64::from(self.repeatable) << 1;
        for word in [MAGIC, self.seed, u64::from(self.vcpus), resets, time_ns] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    /// The guest in a file that [`Self::to_bytes`] made.
    ///
    /// # Errors
    /// It is another kind of file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let start = bytes.len().checked_sub(8 * TRAILER_WORDS).unwrap_or(bytes.len());
        let words: Vec<u64> = bytes[start..]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("a chunk of eight bytes")))
            .collect();
        ensure!(words.first() == Some(&MAGIC), "not a guest that the fuzzer has saved");
        Ok(Self {
            seed: words[1],
            image: bytes[..start].to_vec(),
            vcpus: u32::try_from(words[2])?,
            resets: words[3] & 1 != 0,
            repeatable: words[3] & 2 != 0,
            guest_time: Duration::from_nanos(words[4]),
            summary: "from a file".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_guest() {
        let (a, b) = (HostileGuest::from_seed(7), HostileGuest::from_seed(7));
        let (a, b) = (a.expect("it assembles"), b.expect("it assembles"));
        assert_eq!(a, b);
        let c = HostileGuest::from_seed(8).expect("it assembles");
        assert_ne!(a.image, c.image);
    }

    #[test]
    fn every_plan_assembles_and_survives_its_file() {
        for seed in 0..200 {
            let guest = HostileGuest::from_seed(seed).expect("it assembles");
            let back = HostileGuest::from_bytes(&guest.to_bytes()).expect("it was saved");
            assert_eq!(back.image, guest.image);
            assert_eq!((back.seed, back.vcpus, back.resets), (seed, guest.vcpus, guest.resets));
            assert_eq!((back.guest_time, back.repeatable), (guest.guest_time, guest.repeatable));
        }
        assert!(HostileGuest::from_bytes(b"short").is_err());
        assert!(HostileGuest::from_bytes(&[0; 1000]).is_err());
    }
}
