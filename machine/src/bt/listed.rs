//! Lists blocks of a run that has ended, as they were chained.

use std::fmt::Write as _;

use xenolith_codecache::cache::{Cache, Kept};
use xenolith_translator::emit::Site;
use xenolith_translator::listing::Listing;

use super::Bt;
use super::segments::{mode_of, rip_of};

impl Bt {
    /// Tells whoever wants a listing, once no vCPU runs any more.
    pub(super) fn list_blocks(&self) {
        let Some(wanted) = &self.shared.options.listing else { return };
        if !self.shared.is_empty() {
            return;
        }
        let cache = self.shared.cache();
        let mut blocks: Vec<Kept> = cache.kept().collect();
        blocks.sort_by_key(|kept| (kept.tag, kept.entries.guarded));
        let mut text = String::new();
        for kept in &blocks {
            let first = self.linear(kept);
            let is_wanted = wanted.at.is_none_or(|at| {
                let mode = mode_of(kept.key);
                let at = if mode.bits == 64 { at } else { at & 0xffff_ffff };
                at.wrapping_sub(first) < kept.bytes.len() as u64
            });
            if is_wanted {
                self.list(&cache, &blocks, kept, wanted.at.is_some(), &mut text);
            }
        }
        wanted.found(text);
    }

    /// Linear address of a block.
    fn linear(&self, kept: &Kept) -> u64 {
        let rip = rip_of(kept.tag);
        if !mode_of(kept.key).segmented {
            return rip;
        }
        let number = (kept.tag >> 32) as u32 & 0x3fff_ffff;
        let base = self.shared.code_segment(number).map_or(0, |(base, _)| base);
        base.wrapping_add(rip) & 0xffff_ffff
    }

    fn list(
        &self,
        cache: &Cache<Site>,
        blocks: &[Kept],
        kept: &Kept,
        whole: bool,
        text: &mut String,
    ) {
        let map: Vec<(u32, u16)> =
            kept.map.iter().map(|mapped| (mapped.host() as u32, mapped.word() as u16)).collect();
        let (first_site, sites) = if whole { cache.sites_of(kept) } else { (0, Vec::new()) };
        let shared = &self.shared;
        let names = |address: u64| {
            let named = shared.routines.named();
            if let Some((_, name)) = named.iter().find(|&&(at, _)| at == address) {
                return Some((*name).to_owned());
            }
            blocks.iter().find_map(|other| {
                let entries = other.entries;
                let entry = match address as usize {
                    at if at == entries.guarded => "guarded",
                    at if at == entries.polled => "polled",
                    at if at == entries.indirect => "indirect",
                    at if at == entries.plain => "plain",
                    at if at == entries.again => "again",
                    _ => return None,
                };
                Some(format!("{:x}, entry {entry}", rip_of(other.tag)))
            })
        };
        let entries = kept.entries;
        let listing = Listing {
            mode: mode_of(kept.key),
            rip: rip_of(kept.tag),
            guest: kept.bytes,
            options: self.cpuid.decoder_options(),
            base: entries.guarded as u64,
            code: kept.code,
            indirect: (entries.indirect - entries.guarded) as u32,
            polled: (entries.polled - entries.guarded) as u32,
            plain: (entries.plain - entries.guarded) as u32,
            exits: kept.exits,
            map: &map,
            sites: &sites,
            first_site,
            names: &names,
        };
        // Writing to a String can't fail.
        let _ = if whole {
            writeln!(text, "{listing}jumps that lead here: {}\n", kept.incoming)
        } else {
            writeln!(text, "{}", listing.summary())
        };
    }
}
