//! What all vCPUs of a machine share: the code cache, and a way to stop each other.
//!
//! Problem: one vCPU translates a page that another is writing to, a device writes over translated code,
//! a part of the cache must be emptied while others run in it. Scheme: the cache is behind a lock that
//! is taken for look-ups that the fast tables couldn't answer. What a vCPU must do before it runs on
//! is an *order*: it is written to its peer record, and a bit of its attention word brings it out of
//! translated code; whoever ordered it waits until the other has left. Nobody waits while holding
//! the lock, and who waits is outside itself, so no two wait for each other.
//!
//! Invariants: a peer that is `inside` finds orders at its next poll; one that is outside obeys them before
//! it goes in, and takes the bit away that was for them. A page's blocks are checked right after a store to it ([`Shared::page_written`]).
//! Any thread.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Making;
use crate::disasm::Wanted;
use xenolith_codecache::arena::ArenaError;
use xenolith_codecache::cache::{Cache, Key, Sites, Source};
use xenolith_cpu::env::{Privilege, attention};
use xenolith_cpu::{Gpa, PAGE_SIZE};
use xenolith_mmu::GuestRam;
use xenolith_translator::area::{Area, HOME_IDS, is_floating};
use xenolith_translator::emit::{Routines, Site};
use xenolith_translator::host::Host;
use xenolith_translator::mode::Mode;

use super::common::common;
use super::lessons::{Lessons, NextRetry};
use super::probe;
use super::segments::{is_anywhere, mode_of, rip_of};
use super::stats::Report;
use crate::signal::WatchedCode;

/// Orders to a vCPU.
mod order {
    /// Write nothing inline to the pages in [`super::Peer::forbidden`].
    pub const FORBID_WRITES: u32 = 1 << 0;
    /// Wait outside until the cache has been seen to.
    pub const PAUSE: u32 = 1 << 1;
}

/// Pages that are forbidden one by one; a vCPU that sleeps may be told of any number.
const FORBIDDEN_MAX: usize = 1024;

/// A vCPU as the others see it.
#[derive(Debug)]
pub struct Peer {
    attention: Arc<AtomicU32>,
    inside: AtomicBool,
    orders: AtomicU32,
    /// Guest pages that others have begun to watch; nothing for all pages.
    forbidden: Mutex<Option<Vec<u64>>>,
    /// Address of its area, which lives as long as the peer is registered.
    area: AtomicU64,
}

/// Which page a block is in: what must be the same for a block to be the right one at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageKey {
    /// Linear address of the page; [`FLOATING`](xenolith_translator::area::FLOATING) for any.
    pub la: u64,
    pub gpn: u64,
    /// The code segment's number, where code is segmented: RIP is the linear address minus its base.
    pub code: u64,
    pub side: Side,
}

/// Whose code is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Supervisor,
    /// User code that is segmented.
    User,
    /// Other user code, whose pages have identifiers of their own.
    Home,
}

impl Side {
    pub fn of(mode: Mode) -> Self {
        match mode {
            _ if mode.privilege != Privilege::User as u8 => Self::Supervisor,
            _ if mode.has_home() => Self::Home,
            _ => Self::User,
        }
    }
}

/// Numbers for things that are the same for ever. When there are too many, all are forgotten, and the same
/// thing gets another number when it comes again.
#[derive(Debug)]
struct Numbers<T> {
    known: HashMap<T, u32>,
    last: u32,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), last: 0 }
    }
}

/// Things whose numbers are known at most.
const NUMBERS_MAX: usize = 1 << 20;

impl<T: Eq + std::hash::Hash> Numbers<T> {
    /// The number of a thing, never 0.
    fn of(&mut self, thing: T) -> u32 {
        if let Some(&number) = self.known.get(&thing) {
            return number;
        }
        if self.known.len() >= NUMBERS_MAX {
            self.known.clear();
        }
        self.last += 1;
        self.known.insert(thing, self.last);
        self.last
    }
}

/// What a person asked of the engine.
#[derive(Clone, Debug)]
pub struct Options {
    pub vcpus: u32,
    /// Room for translated code.
    pub cache_bytes: usize,
    /// Blocks count the instructions they run: for counted time, and for statistics.
    pub counts: bool,
    pub making: Making,
    /// Where counters go when an engine is done.
    pub report: Option<Arc<Report>>,
    /// Which blocks to list when the last engine is done.
    pub listing: Option<Arc<Wanted>>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Shared {
    /// Dropped before the code's memory is.
    _watched: WatchedCode,
    cache: Mutex<Cache<Site>>,
    sites: Arc<Sites<Site>>,
    pages: Mutex<Numbers<PageKey>>,
    homes: Mutex<Numbers<PageKey>>,
    /// Base and limit of code segments.
    codes: Mutex<Numbers<(u64, u32)>>,
    peers: Mutex<Vec<Arc<Peer>>>,
    /// One at a time pauses the others.
    pausing: Mutex<()>,
    ram: Arc<GuestRam>,
    lessons: Mutex<Lessons>,
    pub next_retry: NextRetry,
    /// User code has talked to a device.
    user_has_devices: AtomicBool,
    /// Counts evictions: host addresses of code are good for one epoch.
    epoch: AtomicU64,
    pub options: Options,
    /// What code is made for.
    pub host: Host,
    /// Regions may be guessed.
    pub has_probe: bool,
    pub enter: u64,
    pub routines: Routines,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The shared part over `ram`.
    ///
    /// # Errors
    /// The host refuses executable memory.
    pub fn new(ram: Arc<GuestRam>, options: Options) -> Result<Arc<Self>, ArenaError> {
        let host = if options.making.bmi2 { Host::detect() } else { Host::OLD };
        let mut routines = Routines::default();
        let cache = Cache::new(options.cache_bytes, |base| {
            let common = common(base, host);
            routines = common.routines;
            common.code
        })?;
        let shared = Arc::new(Self {
            sites: cache.sites(),
            enter: cache.common(),
            _watched: WatchedCode::new(cache.span()),
            routines,
            cache: Mutex::new(cache),
            pages: Mutex::default(),
            homes: Mutex::default(),
            codes: Mutex::default(),
            peers: Mutex::default(),
            pausing: Mutex::new(()),
            ram: Arc::clone(&ram),
            lessons: Mutex::default(),
            next_retry: NextRetry::default(),
            user_has_devices: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            options,
            host,
            has_probe: host.bmi2 && probe::set_up(),
        });
        let listener = Arc::downgrade(&shared);
        ram.code().set_listener(Arc::new(move |gpn, bytes| {
            if let Some(shared) = listener.upgrade() {
                shared.page_written(gpn, bytes);
            }
        }));
        Ok(shared)
    }

    pub fn cache(&self) -> MutexGuard<'_, Cache<Site>> {
        lock(&self.cache)
    }

    /// Host addresses of code that were got in an earlier epoch may lead anywhere.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub fn sites(&self) -> &Sites<Site> {
        &self.sites
    }

    /// What faults have taught.
    pub fn lessons(&self) -> MutexGuard<'_, Lessons> {
        lock(&self.lessons)
    }

    /// The number of a page, never 0. There could be too many of user code.
    pub fn page_id(&self, key: PageKey) -> Option<u32> {
        if key.side != Side::Home {
            return Some(lock(&self.pages).of(key));
        }
        Some(lock(&self.homes).of(key)).filter(|&id| id < HOME_IDS)
    }

    /// Whether locked instructions of code of `mode` needn't be locked: nobody else looks at what they touch, as there
    /// is one vCPU, and the code talks to no device.
    pub fn unlocks(&self, mode: Mode) -> bool {
        let alone = self.options.vcpus == 1 && mode.privilege == Privilege::User as u8;
        alone && !self.user_has_devices.load(Ordering::Relaxed)
    }

    /// User code talks to a device: true if that is news, and code was made without locks. It must go.
    pub fn note_user_device(&self) -> bool {
        !self.user_has_devices.swap(true, Ordering::Relaxed) && self.options.vcpus == 1
    }

    /// The number of a code segment, never 0.
    pub fn code_number(&self, base: u64, limit: u32) -> u32 {
        lock(&self.codes).of((base, limit))
    }

    /// Base and limit of the code segment with a number.
    pub fn code_segment(&self, number: u32) -> Option<(u64, u32)> {
        let codes = lock(&self.codes);
        codes.known.iter().find(|&(_, &known)| known == number).map(|(&segment, _)| segment)
    }

    /// Registers a vCPU. `area` must stay until [`Self::leave`].
    pub fn join(&self, attention: Arc<AtomicU32>, area: *const Area) -> Arc<Peer> {
        let peer = Arc::new(Peer {
            attention,
            inside: AtomicBool::new(false),
            orders: AtomicU32::new(0),
            forbidden: Mutex::new(Some(Vec::new())),
            area: AtomicU64::new(area.addr() as u64),
        });
        lock(&self.peers).push(Arc::clone(&peer));
        peer
    }

    /// There is one vCPU only.
    pub fn is_alone(&self) -> bool {
        lock(&self.peers).len() == 1
    }

    /// No vCPU is left.
    pub fn is_empty(&self) -> bool {
        lock(&self.peers).is_empty()
    }

    pub fn leave(&self, peer: &Arc<Peer>) {
        lock(&self.peers).retain(|other| !Arc::ptr_eq(other, peer));
    }

    /// To be called after a store to bytes of a page that was watched: stale blocks go.
    pub fn page_written(&self, gpn: u64, bytes: Range<u16>) {
        let mut gone: Vec<(Key, u64)> = Vec::new();
        {
            let mut cache = self.cache();
            if !cache.has_page(gpn) {
                return;
            }
            // What is kept must be told of the next store too: watched first, read then. A store by which the page went
            // cold is one to all of its bytes, so others that weren't told meanwhile are found too.
            self.ram.code().watch(gpn);
            let read = |source: Source, out: &mut [u8]| self.read(source, out);
            cache.page_written(gpn, bytes, read, |key, tag| gone.push((key, tag)));
        }
        if !gone.is_empty() {
            self.forget_jumps(&gone);
        }
    }

    /// Reads guest code, which lies within one page.
    pub fn read(&self, source: Source, out: &mut [u8]) {
        let gpa = Gpa(source.gpn << 12 | u64::from(source.offset));
        match self.ram.host_ptr(gpa, out.len()) {
            // SAFETY: `out.len()` bytes of RAM from there.
            Some(host) if !out.is_empty() => unsafe { xenolith_cpu::interp::copy_in(host, out) },
            _ => {}
        }
    }

    /// Makes every vCPU's jump caches forget blocks, given their tags.
    pub fn forget_jumps(&self, gone: &[(Key, u64)]) {
        for peer in lock(&self.peers).iter() {
            let area = peer.area.load(Ordering::Acquire) as usize as *const Area;
            // SAFETY: registered, so its area lives; `forget_jump` is for any thread.
            let area = unsafe { &*area };
            for &(key, tag) in gone {
                if is_anywhere(tag) {
                    area.forget_jumps_at(tag & (PAGE_SIZE - 1));
                } else {
                    let at = if is_floating(tag) { rip_of(tag) } else { tag };
                    area.forget_jump(usize::from(mode_of(key).privilege), at);
                }
            }
        }
    }

    /// Drops a block, if it is there.
    pub fn drop_block(&self, key: Key) {
        let tag = self.cache().remove(key);
        if let Some(tag) = tag {
            self.forget_jumps(&[(key, tag)]);
        }
    }

    /// Orders all vCPUs but `me`, and waits until none of them runs translated code under the old rules. `tell` adds to
    /// the order what goes with it.
    fn order(&self, me: &Peer, order: u32, tell: impl Fn(&Peer)) {
        let others: Vec<Arc<Peer>> = lock(&self.peers)
            .iter()
            .filter(|peer| !std::ptr::eq(&raw const ***peer, me))
            .cloned()
            .collect();
        for peer in &others {
            tell(peer);
            peer.orders.fetch_or(order, Ordering::SeqCst);
            peer.attention.fetch_or(attention::ENGINE, Ordering::SeqCst);
        }
        for peer in &others {
            while peer.inside.load(Ordering::SeqCst)
                && peer.orders.load(Ordering::SeqCst) & order != 0
            {
                std::thread::yield_now();
            }
        }
    }

    /// No other vCPU writes inline to a page that is watched now, once this returns.
    pub fn forbid_writes(&self, me: &Peer, gpn: u64) {
        self.order(me, order::FORBID_WRITES, |peer| {
            let mut forbidden = lock(&peer.forbidden);
            *forbidden = forbidden.take().filter(|pages| pages.len() < FORBIDDEN_MAX);
            if let Some(pages) = &mut *forbidden {
                pages.push(gpn);
            }
        });
    }

    /// Makes room for a block: empties the oldest part of the cache while nobody runs in it.
    pub fn evict(&self, me: &Peer) {
        let _pausing = lock(&self.pausing);
        self.order(me, order::PAUSE, |_| {});
        let mut gone = Vec::new();
        {
            let mut cache = self.cache();
            cache.evict(|key, tag| gone.push((key, tag)));
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        self.forget_jumps(&gone);
        for peer in lock(&self.peers).iter() {
            peer.orders.fetch_and(!order::PAUSE, Ordering::SeqCst);
        }
    }

    /// Empties the whole cache.
    pub fn evict_all(&self, me: &Peer) {
        for _ in 0..xenolith_codecache::cache::SEGMENTS {
            self.evict(me);
        }
    }
}

/// A place for what a machine's vCPUs share, made by the first that needs it.
#[derive(Debug)]
pub struct SharedSlot {
    options: Options,
    shared: Mutex<Option<Arc<Shared>>>,
}

impl SharedSlot {
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, shared: Mutex::default() }
    }

    /// # Errors
    /// The host refuses executable memory.
    pub fn get(&self, ram: &Arc<GuestRam>) -> Result<Arc<Shared>, ArenaError> {
        let mut slot = lock(&self.shared);
        if let Some(shared) = &*slot {
            return Ok(Arc::clone(shared));
        }
        let shared = Shared::new(Arc::clone(ram), self.options.clone())?;
        *slot = Some(Arc::clone(&shared));
        Ok(shared)
    }
}

impl Peer {
    /// About to run translated code. False if there are orders to obey first ([`Self::obey`]).
    pub fn go_in(&self) -> bool {
        self.inside.store(true, Ordering::SeqCst);
        // Whoever orders sets the bit last, perhaps when the order has long been obeyed. It goes here, before orders are
        // looked at: the bit of an order that isn't seen here is still to come.
        if self.attention.load(Ordering::Relaxed) & attention::ENGINE != 0 {
            self.attention.fetch_and(!attention::ENGINE, Ordering::SeqCst);
        }
        let free = self.orders.load(Ordering::SeqCst) == 0;
        if !free {
            self.inside.store(false, Ordering::SeqCst);
        }
        free
    }

    pub fn go_out(&self) {
        self.inside.store(false, Ordering::Release);
    }

    /// Obeys the orders; gives the guest pages that inline writes to must be forbidden, or nothing for all.
    pub fn obey(&self) -> Option<Vec<u64>> {
        while self.orders.load(Ordering::SeqCst) & order::PAUSE != 0 {
            std::thread::yield_now();
        }
        // Taken before the pages: one that is told from now on comes with another order.
        self.orders.fetch_and(!order::FORBID_WRITES, Ordering::SeqCst);
        lock(&self.forbidden).replace(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(vcpus: u32) -> Arc<Shared> {
        let ram = GuestRam::new(64 << 20).expect("memory");
        let making = Making::from(crate::config::Mmu::Soft);
        let options = Options {
            vcpus,
            cache_bytes: 1 << 22,
            counts: false,
            making,
            report: None,
            listing: None,
        };
        Shared::new(ram, options).expect("memory")
    }

    /// A vCPU whose bit stays would leave translated code at every poll.
    #[test]
    fn no_order_leaves_its_bit_behind_when_it_has_been_obeyed() {
        let shared = shared(2);
        let area = std::ptr::null();
        let [me, other] = [(); 2].map(|()| shared.join(Arc::new(AtomicU32::new(0)), area));
        // Obeyed between the order and its bit.
        other.orders.fetch_or(order::FORBID_WRITES, Ordering::SeqCst);
        assert!(!other.go_in());
        assert_eq!(other.obey(), Some(Vec::new()));
        other.attention.fetch_or(attention::ENGINE | attention::INTR, Ordering::SeqCst);
        assert!(other.go_in(), "nothing is left to obey");
        assert_eq!(other.attention.load(Ordering::SeqCst), attention::INTR);
        other.go_out();

        // As it comes: all pages are told, and no bit is left.
        let told = std::thread::scope(|scope| {
            let orders = scope.spawn(|| (0..200).for_each(|gpn| shared.forbid_writes(&me, gpn)));
            let mut told = 0;
            loop {
                let last = orders.is_finished();
                if !other.go_in() {
                    told += other.obey().map_or(0, |pages| pages.len());
                    continue;
                }
                while other.attention.load(Ordering::SeqCst) == attention::INTR
                    && !orders.is_finished()
                {
                    std::hint::spin_loop();
                }
                other.go_out();
                if last {
                    return told;
                }
            }
        });
        assert_eq!(told, 200);
        assert_eq!(other.attention.load(Ordering::SeqCst), attention::INTR);
    }

    #[test]
    fn user_code_is_unlocked_until_it_talks_to_a_device() {
        let [user, supervisor] = [0, 1].map(|privilege| Mode::numbered(4 | privilege << 3));
        let one = shared(1);
        assert!(one.unlocks(user) && !one.unlocks(supervisor));
        assert!(one.note_user_device(), "code is to be made anew");
        assert!(!one.unlocks(user) && !one.note_user_device());
        let two = shared(2);
        assert!(!two.unlocks(user) && !two.note_user_device());
    }
}
