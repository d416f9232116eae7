//! Making blocks from guest code.
//!
//! Problem: short-lived programs run most of their code once or twice, so what a block costs before it runs counts
//! as much as how it runs; and a library's pages lie elsewhere in every process. Scheme: user code's blocks float: they
//! are made for their page wherever it is mapped, but where interrupts find a page at work again and again, which then
//! has blocks for its address. Direct jumps are pointed at their targets as soon as both exist. Invariants: a block's
//! bytes are those that the page had when all of it was read, and the page is watched since before; what was made of
//! other bytes is taken back. One per vCPU, on its thread.

use std::sync::Arc;

use iced_x86::{Code, EncodingKind, Instruction};
use xenolith_codecache::cache::{Cache, Entries, Key, Mapped, NewBlock, NewLink, Source};
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::env::Memory;
use xenolith_cpu::{Gpa, INSN_BYTES_MAX, PAGE_SIZE, interp};
use xenolith_translator::area::FLOATING;
use xenolith_translator::emit::{EmitError, Frame, Page, Site, Translation, Translator};
use xenolith_translator::guess::Start;
use xenolith_translator::mode::Mode;
use xenolith_translator::plan::Limits;

use super::segments::{Spot, key, tag_of};
use super::shared::Side;
use super::windows::ticks;
use super::{Bt, Fetched, Found, LENGTH_MAX, windows};
use crate::config::Mmu;

/// Bytes of the longest block, which are copied for each block however short: hardly any of [`LENGTH_MAX`] instructions
/// has more.
const BLOCK_BYTES_MAX: usize = 6 * LENGTH_MAX;

/// What making blocks needs.
#[derive(Debug)]
pub(super) struct Maker {
    translator: Translator,
    /// By instruction code: the processor has it.
    allowed: Box<[bool]>,
    map: Vec<Mapped>,
    links: Vec<NewLink>,
}

impl Maker {
    pub fn new(cpuid: &CpuidModel) -> Self {
        let allows = |code: Code| code.cpuid_features().iter().all(|&f| cpuid.allows(f));
        Self {
            translator: Translator::default(),
            allowed: Code::values().map(allows).collect(),
            map: Vec::new(),
            links: Vec::new(),
        }
    }
}

/// Where a block is, and its page.
#[derive(Clone, Copy)]
struct Origin {
    mode: Mode,
    at: Spot,
    page: Page,
    second: Option<Page>,
    /// The block is to serve all addresses that its page is mapped at.
    floats: bool,
}

impl Origin {
    /// What is added to addresses of its code for those that it is made with.
    fn made_with(&self) -> u64 {
        if self.floats { FLOATING.wrapping_sub(self.page.la) } else { 0 }
    }
}

impl Bt {
    /// Makes the block at `at` from the bytes of its page, or of two if its one instruction lies across.
    pub(super) fn make(
        &mut self,
        mode: Mode,
        key: Key,
        at: Spot,
        first: Fetched,
        second: Option<Fetched>,
    ) -> Option<Found> {
        let Fetched { host: hva, page, gpn, floats } = first;
        let gpa = Gpa(gpn << 12);
        let offset = (at.la & (PAGE_SIZE - 1)) as usize;
        let in_page = PAGE_SIZE as usize - offset;
        // Code ends where its segment does.
        let in_segment = usize::try_from(at.limit - at.rip).unwrap_or(usize::MAX).saturating_add(1);
        let mut room = [0; BLOCK_BYTES_MAX];
        for _ in 0..4 {
            let version = self.interp.mem.watch_code(gpa);
            let len = in_page.min(in_segment).min(room.len());
            // SAFETY: `len` bytes are no more than what is left of the page that `hva` lies in.
            unsafe { interp::copy_in(hva, &mut room[..len]) };
            let mut across = None;
            let mut bytes = len;
            if let Some(Fetched { host: tail, page: tail_page, gpn: tail_gpn, .. }) = second
                && in_segment > len
                && self.is_cut(mode, at.rip, &room[..len])
            {
                let tail_gpa = Gpa(tail_gpn << 12);
                let tail_version = self.interp.mem.watch_code(tail_gpa);
                bytes = len + INSN_BYTES_MAX.min(in_segment - len);
                // SAFETY: the second page's beginning.
                unsafe { interp::copy_in(tail, &mut room[len..bytes]) };
                across = Some((tail_page, tail_gpn, tail_gpa, tail_version));
            }
            let second = across.map(|(page, ..)| page);
            let origin = Origin { mode, at, page, second, floats };
            let sources = |used: usize| {
                let first_len = used.min(len);
                let (offset, len) = (offset as u16, first_len as u16);
                let one = Source { gpn, id: page.id, offset, len };
                let two = across.map(|(page, gpn, ..)| {
                    let len = (used - first_len) as u16;
                    Source { gpn, id: page.id, offset: 0, len }
                });
                (one, two)
            };
            let made = self.translate(origin, key, &room[..bytes], sources)?;
            let whole = self.interp.mem.code_version(gpa) == version
                && across.is_none_or(|(_, _, gpa, version)| {
                    self.interp.mem.code_version(gpa) == version
                });
            if whole {
                return Some(made);
            }
            // Written while it was read.
            self.shared.drop_block(key);
        }
        None
    }

    /// The first instruction of `bytes` goes on where they end.
    fn is_cut(&self, mode: Mode, rip: u64, bytes: &[u8]) -> bool {
        let options = self.cpuid.decoder_options();
        let mut decoder = iced_x86::Decoder::with_ip(u32::from(mode.bits), bytes, rip, options);
        let _ = decoder.decode();
        decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
    }

    /// Makes the block of `origin`, whose code `code` begins with, and keeps it.
    fn translate(
        &mut self,
        origin: Origin,
        key: Key,
        code: &[u8],
        sources: impl Fn(usize) -> (Source, Option<Source>),
    ) -> Option<Found> {
        let Origin { mode, at, .. } = origin;
        let with_windows = !self.shared.lessons().is_unlucky(key);
        let guesses = self.guesses(mode, origin.floats, at.rip);
        let shared = Arc::clone(&self.shared);
        for _ in 0..2 {
            {
                let mut cache = shared.cache();
                if let Some(entries) = cache.find(key) {
                    // Another vCPU was quicker.
                    return Some(Found { entries, key, epoch: shared.epoch() });
                }
                let start = ticks();
                let frame = self.frame(&cache, &origin);
                let translation = self.anew(&frame, code, &origin, key, with_windows, guesses)?;
                let (one, two) = sources(translation.bytes);
                let inserted = self.insert(&mut cache, &origin, key, translation, code, one, two);
                self.stats.translating_ticks += ticks().wrapping_sub(start);
                if let Some(entries) = inserted {
                    return Some(Found { entries, key, epoch: shared.epoch() });
                }
            }
            self.stats.evictions += 1;
            shared.evict(&self.me);
        }
        None
    }

    fn frame(&self, cache: &Cache<Site>, origin: &Origin) -> Frame {
        let Origin { mode, at, page, second, .. } = *origin;
        let made = |address: u64| address.wrapping_add(origin.made_with());
        let page = Page { la: made(page.la), ..page };
        let second = second.map(|page| Page { la: made(page.la), ..page });
        let (base, first_site) = cache.next();
        Frame {
            base,
            routines: self.shared.routines,
            first_site,
            mode,
            rip: made(at.rip),
            page,
            second,
            code_base: at.la.wrapping_sub(at.rip),
            host: self.shared.host,
            unlocks: self.shared.unlocks(mode),
        }
    }

    /// The block made of its code.
    fn anew(
        &mut self,
        frame: &Frame,
        code: &[u8],
        origin: &Origin,
        key: Key,
        windows: bool,
        guesses: bool,
    ) -> Option<Translation> {
        let mode = frame.mode;
        // VEX prefixes are undefined in real and virtual-8086 mode (SDM vol. 2, "VEX Prefix").
        let plain_only = self.interp.state.real_or_v86();
        let codes = &self.maker.allowed;
        let allowed = |insn: &Instruction| {
            codes[insn.code() as usize] && !(plain_only && insn.encoding() != EncodingKind::Legacy)
        };
        let lessons = self.shared.lessons();
        let looks_up = |insn: &Instruction| lessons.faults_often(key, insn.ip());
        let interp = &*self.interp;
        let read = |la: u64| windows::peek_u64(interp, mode.privilege, la);
        let start = Start {
            registers: interp.state.gpr,
            bases: interp.state.seg.map(|segment| segment.base),
            read: &read,
            misleads: &|insn| lessons.is_misled(insn.ip()),
        };
        let limits = Limits {
            start: guesses.then_some(&start),
            looks_up: &looks_up,
            length_max: if frame.second.is_some() { 1 } else { LENGTH_MAX },
            allowed: &allowed,
            decoder_options: self.cpuid.decoder_options(),
            windows,
            counts: self.shared.options.counts,
            unrolls: self.shared.options.making.mmu == Mmu::Shadow || lessons.is_busy(key),
            code_limit: origin.at.limit,
        };
        match self.maker.translator.translate(*frame, code, &limits) {
            Ok(translation) => translation,
            Err(error) => {
                tracing::warn!("block at {:#x} left to the interpreter: {error}", frame.rip);
                // What can't be encoded is rare, but our own code always can be assembled.
                debug_assert!(
                    !matches!(error, EmitError::Assemble(_)),
                    "{:#x}: {error}",
                    frame.rip
                );
                None
            }
        }
    }

    /// Keeps a block; nothing if the cache's segment is full.
    #[allow(clippy::too_many_arguments, reason = "all that a block is made of")]
    fn insert(
        &mut self,
        cache: &mut Cache<Site>,
        origin: &Origin,
        key: Key,
        translation: Translation,
        code: &[u8],
        one: Source,
        two: Option<Source>,
    ) -> Option<Entries> {
        self.maker.map.clear();
        self.maker.map.extend(translation.map.iter().map(|entry| {
            let [first, second] = entry.spilled.map(u64::from);
            let live = if entry.live { windows::LIVE } else { 0 };
            let enters = if entry.enters { windows::ENTERS } else { 0 };
            let done = u64::from(entry.done) << 32;
            let word = u64::from(entry.guest) | first << 16 | second << 24 | done | live | enters;
            Mapped::new(entry.host, word)
        }));
        self.find_links(origin, &translation);
        let both = [one, two.unwrap_or(one)];
        let inserted = cache.insert(&NewBlock {
            map: &self.maker.map,
            key,
            code: &translation.code,
            sites: &translation.sites,
            indirect: translation.indirect,
            polled: translation.polled,
            again: translation.again,
            plain: translation.plain,
            exits: translation.exits,
            bytes: &code[..translation.bytes],
            sources: &both[..1 + usize::from(two.is_some())],
            instructions: translation.instructions as u32,
            tag: tag_of(origin.at, origin.floats),
            links: &self.maker.links,
        });
        self.maker.translator.recycle(translation);
        inserted
    }

    /// Works out the keys that direct jumps of a block lead to.
    fn find_links(&mut self, origin: &Origin, translation: &Translation) {
        let Origin { mode, page, .. } = *origin;
        self.maker.links.clear();
        if self.stepping || mode.segmented {
            return;
        }
        let side = Side::of(mode);
        let in_page = |la: u64| la & !(PAGE_SIZE - 1) == page.la;
        for site in &translation.sites {
            let &Site::Chain { target, patch, link } = site else { continue };
            let target = target.wrapping_sub(origin.made_with());
            let target = if mode.bits == 64 { target } else { target & 0xffff_ffff };
            let id = if in_page(target) {
                page.id
            } else if let Some(id) = self.known_page(target & !(PAGE_SIZE - 1), side) {
                id
            } else {
                continue;
            };
            let key = key(id, mode, target);
            self.maker.links.push(NewLink { patch, key, link });
        }
    }
}
