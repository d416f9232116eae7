//! Making blocks: anew from guest code, or from what was made of the same code before.
//!
//! Problem: short-lived programs run most of their code once or twice, so what a block costs before it runs counts
//! as much as how it runs; and a library's pages lie elsewhere in every process. Scheme: user code's blocks
//! leave templates, by guest page and offset; a page that comes at another address gets its blocks as copies. With a
//! block come those of its page that it may go to next, if they have templates: whoever ran it before came there.
//! Direct jumps are pointed at their targets as soon as both exist. Invariants: a block's bytes are those that
//! the page had when all of it was read, and the page is watched since before; what was made of other bytes is
//! taken back. One per vCPU, on its thread.

use std::sync::Arc;

use iced_x86::{Code, EncodingKind, Instruction};
use xenolith_codecache::cache::{Cache, Entries, Key, Mapped, NewBlock, NewLink, Source};
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::env::{Memory, Privilege};
use xenolith_cpu::{Gpa, PAGE_SIZE, interp};
use xenolith_translator::emit::{EmitError, Frame, Page, Site, Template, Translation, Translator};
use xenolith_translator::guess::Start;
use xenolith_translator::mode::Mode;
use xenolith_translator::plan::Limits;

use super::segments::{Spot, key};
use super::shared::Templates;
use super::windows::ticks;
use super::{Bt, Found, INSN_BYTES_MAX, LENGTH_MAX, UNLUCKY_MAX, windows};

/// Bytes of the longest block.
const BLOCK_BYTES_MAX: usize = LENGTH_MAX * INSN_BYTES_MAX;
/// Blocks that are copied along with one at most.
const ALONG_MAX: usize = 64;

/// What making blocks needs.
#[derive(Debug)]
pub(super) struct Maker {
    translator: Translator,
    /// By instruction code: the processor has it.
    allowed: Box<[bool]>,
    map: Vec<Mapped>,
    links: Vec<NewLink>,
    /// RIPs that blocks just copied may go to.
    ahead: Vec<u64>,
    /// Keys of the blocks that were copied along.
    along: Vec<Key>,
}

impl Maker {
    pub fn new(cpuid: &CpuidModel) -> Self {
        let allows = |code: Code| code.cpuid_features().iter().all(|&f| cpuid.allows(f));
        Self {
            translator: Translator::default(),
            allowed: Code::values().map(allows).collect(),
            map: Vec::new(),
            links: Vec::new(),
            ahead: Vec::new(),
            along: Vec::new(),
        }
    }
}

/// Where a block is, and its page.
#[derive(Clone, Copy)]
struct Origin {
    mode: Mode,
    at: Spot,
    page: Page,
    gpn: u64,
    second: Option<Page>,
    /// Host address of the page.
    host: *const u8,
}

impl Origin {
    fn offset(&self) -> usize {
        (self.at.la & (PAGE_SIZE - 1)) as usize
    }

    /// What the page's blocks are kept as templates under, by this block's key.
    fn template_key(&self, key: Key) -> u64 {
        self.gpn << 32 | key & 0xffff_ffff
    }
}

impl Bt {
    /// Makes the block at `at` from the bytes of its page, or of two if its one instruction lies across.
    pub(super) fn make(
        &mut self,
        mode: Mode,
        key: Key,
        at: Spot,
        first: (*const u8, Page, u64),
        second: Option<(*const u8, Page, u64)>,
    ) -> Option<Found> {
        let (hva, page, gpn) = first;
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
            if let Some((tail, tail_page, tail_gpn)) = second
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
            let host = hva.wrapping_sub(offset);
            let second = across.map(|(page, ..)| page);
            let origin = Origin { mode, at, page, gpn, second, host };
            let sources = |used: usize| {
                let first_len = used.min(len);
                let one = Source { gpn, offset: offset as u16, len: first_len as u16 };
                let two = across.map(|(_, gpn, ..)| {
                    let len = (used - first_len) as u16;
                    Source { gpn, offset: 0, len }
                });
                (one, two)
            };
            self.maker.along.clear();
            let made = self.translate(origin, key, &room[..bytes], sources)?;
            let whole = self.interp.mem.code_version(gpa) == version
                && across.is_none_or(|(_, _, gpa, version)| {
                    self.interp.mem.code_version(gpa) == version
                });
            if whole {
                return Some(made);
            }
            // Written while it was read.
            let mut cache = self.shared.cache();
            cache.remove(key);
            for key in self.maker.along.drain(..) {
                cache.remove(key);
            }
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
        let with_windows = self.unlucky.get(&key).is_none_or(|&times| times < UNLUCKY_MAX);
        // User code is at home in many address spaces.
        let user = mode.privilege == Privilege::User as u8;
        let guesses = self.guesses(mode, key, at.rip);
        let movable = user && with_windows && !mode.segmented && !guesses;
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
                let mut templates = movable.then(|| shared.templates());
                let again = templates.as_deref().and_then(|templates| {
                    self.again(templates, origin.template_key(key), &frame, code)
                });
                let is_copy = again.is_some();
                let translation = match again {
                    Some(translation) => translation,
                    None => self.anew(&frame, code, with_windows, guesses, at.limit)?,
                };
                if let Some(templates) = &mut templates
                    && !is_copy
                    && !self.has_faulty(at.rip, translation.map.iter().map(|entry| entry.guest))
                    && let Some(template) = Template::of(&translation, frame, code)
                {
                    templates.keep(origin.template_key(key), template);
                }
                let (one, two) = sources(translation.bytes);
                let inserted = self.insert(&mut cache, &origin, key, translation, code, one, two);
                if let Some(templates) = &templates
                    && is_copy
                    && inserted.is_some()
                {
                    self.copy_along(&mut cache, templates, origin);
                }
                self.maker.ahead.clear();
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
        let (base, first_site) = cache.next();
        Frame {
            base,
            exit: self.shared.exit,
            load_vector: self.shared.load_vector,
            load_x87: self.shared.load_x87,
            first_site,
            mode,
            rip: at.rip,
            page,
            second,
            code_base: at.la.wrapping_sub(at.rip),
            host: self.shared.host,
        }
    }

    /// One of the instructions, by their distances from `rip` in its page, faults too often for windows.
    fn has_faulty(&self, rip: u64, mut instructions: impl Iterator<Item = u16>) -> bool {
        let faults = &self.faults;
        self.faulty_pages.contains_key(&(rip >> 12))
            && instructions.any(|at| windows::faults_often(faults, rip.wrapping_add(u64::from(at))))
    }

    /// The block as a copy of what was made of the same code.
    fn again(
        &mut self,
        templates: &Templates,
        source: u64,
        frame: &Frame,
        code: &[u8],
    ) -> Option<Translation> {
        let template = templates.get(source)?;
        if self.has_faulty(frame.rip, template.instructions()) {
            return None;
        }
        let copy = template.instantiate(frame, code, &mut self.maker.translator)?;
        self.stats.instances += 1;
        Some(copy)
    }

    /// The block made of its code.
    fn anew(
        &mut self,
        frame: &Frame,
        code: &[u8],
        windows: bool,
        guesses: bool,
        code_limit: u64,
    ) -> Option<Translation> {
        let mode = frame.mode;
        // VEX prefixes are undefined in real and virtual-8086 mode (SDM vol. 2, "VEX Prefix").
        let plain_only = self.interp.state.real_or_v86();
        let codes = &self.maker.allowed;
        let allowed = |insn: &Instruction| {
            codes[insn.code() as usize] && !(plain_only && insn.encoding() != EncodingKind::Legacy)
        };
        let (faults, misled) = (&self.faults, &self.misled);
        let looks_up = |insn: &Instruction| windows::faults_often(faults, insn.ip());
        let interp = &*self.interp;
        let read = |la: u64| windows::peek_u64(interp, mode.privilege, la);
        let start = Start {
            registers: interp.state.gpr,
            bases: interp.state.seg.map(|segment| segment.base),
            read: &read,
            misleads: &|insn| misled.contains_key(&insn.ip()),
        };
        let limits = Limits {
            start: guesses.then_some(&start),
            looks_up: &looks_up,
            length_max: if frame.second.is_some() { 1 } else { LENGTH_MAX },
            allowed: &allowed,
            decoder_options: self.cpuid.decoder_options(),
            windows,
            counts: self.shared.options.counts,
            code_limit,
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
            polled: translation.polled,
            plain: translation.plain,
            exits: translation.exits,
            bytes: &code[..translation.bytes],
            sources: &both[..1 + usize::from(two.is_some())],
            instructions: translation.instructions as u32,
            tag: origin.at.tag(),
            links: &self.maker.links,
        });
        self.maker.translator.recycle(translation);
        inserted
    }

    /// Works out the keys that direct jumps of a block lead to, and what of the block's page it may go to next.
    fn find_links(&mut self, origin: &Origin, translation: &Translation) {
        let Origin { mode, at, page, .. } = *origin;
        self.maker.links.clear();
        if self.stepping || mode.segmented {
            return;
        }
        let user = mode.privilege == Privilege::User as u8;
        let in_page = |la: u64| la & !(PAGE_SIZE - 1) == page.la;
        for site in &translation.sites {
            let &Site::Chain { target, patch, link } = site else { continue };
            let id = if in_page(target) {
                self.maker.ahead.push(target);
                page.id
            } else if let Some(id) = self.known_page(target & !(PAGE_SIZE - 1), user) {
                id
            } else {
                continue;
            };
            let key = key(id, mode, target);
            self.maker.links.push(NewLink { patch, key, link });
        }
        // Where a call comes back to.
        let behind = at.rip.wrapping_add(translation.bytes as u64);
        if in_page(behind) {
            self.maker.ahead.push(behind);
        }
    }

    /// Copies the blocks of the page that are reached from the one just copied.
    fn copy_along(&mut self, cache: &mut Cache<Site>, templates: &Templates, first: Origin) {
        let mut room = [0; BLOCK_BYTES_MAX];
        while self.maker.along.len() < ALONG_MAX
            && let Some(rip) = self.maker.ahead.pop()
        {
            let at = first.at.other(rip);
            let origin = Origin { at, ..first };
            let offset = origin.offset();
            let key = key(first.page.id, first.mode, rip);
            let source = origin.template_key(key);
            let Some(template) = templates.get(source) else { continue };
            if cache.find(key).is_some() {
                continue;
            }
            let code = &mut room[..template.bytes()];
            if offset + code.len() > PAGE_SIZE as usize {
                continue;
            }
            // SAFETY: within the page at `host`.
            unsafe { interp::copy_in(origin.host.wrapping_add(offset), code) };
            let frame = self.frame(cache, &origin);
            let Some(copy) = self.again(templates, source, &frame, code) else { continue };
            let len = copy.bytes as u16;
            let one = Source { gpn: first.gpn, offset: offset as u16, len };
            if self.insert(cache, &origin, key, copy, code, one, None).is_none() {
                break;
            }
            self.maker.along.push(key);
        }
    }
}
