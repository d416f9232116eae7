//! Blocks that can be had again for another address.
//!
//! Problem: the same page of a library lies at other linear addresses in every process, and making its
//! blocks anew for each is most of what a short-lived process costs. Scheme: while a block is
//! assembled every place that depends on where the guest or the host has it is written down;
//! [`Template::instantiate`] copies the code and moves those. What can't be moved makes its block
//! without template. Invariant: an instance is, byte for byte, what the emitter would have made.

use super::{Frame, MapEntry, Site, Spare, Translation, Translator};

/// What depends on a block's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Eight bytes: a guest address. Four: the same in 32-bit code.
    Guest64,
    Guest32,
    /// A distance to the common code.
    Common,
    /// A site's number.
    Site,
    /// The offset of the page's slot in the table of executable pages; minus the page's identifier.
    ExecSlot,
    PageId,
}

/// A place in a block's code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub at: u32,
    pub kind: Kind,
}

/// See the module's head.
#[derive(Debug)]
pub struct Template {
    code: Box<[u8]>,
    sites: Box<[Site]>,
    places: Box<[Place]>,
    map: Box<[MapEntry]>,
    frame: Frame,
    polled: u32,
    plain: u32,
    exits: u32,
    instructions: usize,
    /// Guest bytes it was made from.
    bytes: Box<[u8]>,
}

impl Template {
    /// A template of a translation made for `frame` from the beginning of `bytes`; `None` if it can't be
    /// moved.
    #[must_use]
    pub fn of(translation: &Translation, frame: Frame, bytes: &[u8]) -> Option<Self> {
        let places = translation.places.as_ref()?;
        frame.second.is_none().then(|| Self {
            code: translation.code.as_slice().into(),
            sites: translation.sites.as_slice().into(),
            places: places.as_slice().into(),
            map: translation.map.as_slice().into(),
            frame,
            polled: translation.polled,
            plain: translation.plain,
            exits: translation.exits,
            instructions: translation.instructions,
            bytes: bytes[..translation.bytes].into(),
        })
    }

    /// Bytes of memory that it takes, about.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.code.len()
            + size_of_val(&self.sites[..])
            + size_of_val(&self.places[..])
            + size_of_val(&self.map[..])
            + self.bytes.len()
    }

    /// Bytes of the code that it was made from.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Guest addresses of its instructions, from the block's.
    pub fn instructions(&self) -> impl Iterator<Item = u16> {
        self.map.iter().map(|entry| entry.guest)
    }

    /// The block for another frame of the same mode, if `bytes` begin with the same code. `memory` has room for it.
    #[must_use]
    pub fn instantiate(
        &self,
        frame: &Frame,
        bytes: &[u8],
        memory: &mut Translator,
    ) -> Option<Translation> {
        let old = &self.frame;
        let same = frame.mode == old.mode
            && frame.second.is_none()
            && frame.base % super::LINE_BYTES == old.base % super::LINE_BYTES
            && (frame.rip ^ old.rip) & 0xfff == 0
            && bytes.starts_with(&self.bytes);
        if !same {
            return None;
        }
        let moved = frame.rip.wrapping_sub(old.rip);
        let Spare { mut code, mut sites, mut map, .. } = std::mem::take(&mut memory.spare);
        code.extend_from_slice(&self.code);
        for place in &self.places {
            let at = place.at as usize;
            let four = |code: &[u8]| {
                i32::from_le_bytes([code[at], code[at + 1], code[at + 2], code[at + 3]])
            };
            let value = match place.kind {
                Kind::Guest64 => {
                    let mut eight = [0; 8];
                    eight.copy_from_slice(&code[at..at + 8]);
                    let value = u64::from_le_bytes(eight).wrapping_add(moved);
                    code[at..at + 8].copy_from_slice(&value.to_le_bytes());
                    continue;
                }
                Kind::Guest32 => four(&code).wrapping_add(moved as i32),
                Kind::Common => {
                    let host = frame.base.wrapping_sub(old.base);
                    let common = frame.exit.wrapping_sub(old.exit);
                    four(&code).wrapping_sub(host as i32).wrapping_add(common as i32)
                }
                Kind::Site => {
                    four(&code).wrapping_add(frame.first_site.wrapping_sub(old.first_site) as i32)
                }
                Kind::ExecSlot => crate::area::Area::exec_offset(frame.page.la),
                Kind::PageId => (frame.page.id as i32).wrapping_neg(),
            };
            code[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let bits = frame.mode.bits;
        sites.extend(self.sites.iter().map(|site| site.moved(moved, bits)));
        map.extend_from_slice(&self.map);
        Some(Translation {
            code,
            sites,
            polled: self.polled,
            plain: self.plain,
            exits: self.exits,
            bytes: self.bytes.len(),
            instructions: self.instructions,
            map,
            places: None,
        })
    }
}

impl Site {
    /// The same site of a block that lies `by` further on.
    fn moved(self, by: u64, bits: u8) -> Self {
        let mut site = self;
        let shift = |address: &mut u64| *address = super::mask(address.wrapping_add(by), bits);
        match &mut site {
            Self::Miss { rip, .. }
            | Self::Indirect { rip, .. }
            | Self::Poll { rip }
            | Self::Guard { rip } => shift(rip),
            Self::Chain { target, .. } => shift(target),
            Self::Crossed => {}
            Self::HandOver { rip, next, .. } => {
                shift(rip);
                shift(next);
            }
        }
        site
    }
}
