//! Looks at many pages at one time.
//!
//! Problem: to find out whether thousands of pages are still where they were, each of them would be walked to from the
//! root. Scheme: what leads to the pages of a 2 MiB piece, a table or a large page, is kept for the next page of the
//! piece. Invariant: [`Ways::peek`] answers as [`peek`](super::peek) would, if no table above the last changes in
//! between; so it is for one moment, such as acting on a flush. On one thread.

use xenolith_cpu::{Gpa, Gva};

use super::{Mode, Paging, Path, Rights, Translation, descend, descend_wide, entry};
use crate::ram::GuestRam;

/// Pieces whose ways are kept at a time; a power of two.
const WAYS: usize = 64;
/// log2 of a piece, which is what a table of pages covers.
const PIECE_SHIFT: u8 = 21;

/// What leads to the pages of a piece.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// They are part of a large page: the translation of the first.
    Large(Translation),
    /// A table, and what the tables above it allow.
    Table { at: u64, rights: Rights },
}

/// See the module's head.
#[derive(Debug)]
pub struct Ways<'a> {
    ram: &'a GuestRam,
    paging: Paging,
    kept: Box<[Option<(u64, Way)>; WAYS]>,
}

impl<'a> Ways<'a> {
    #[must_use]
    pub fn new(ram: &'a GuestRam, paging: Paging) -> Self {
        Self { ram, paging, kept: Box::new([None; WAYS]) }
    }

    /// See [`peek`](super::peek).
    pub fn peek(&mut self, gva: Gva) -> Option<Translation> {
        let (ram, paging) = (self.ram, &self.paging);
        let at = match paging.mode {
            Mode::Off | Mode::Bits32 => return super::peek(ram, paging, gva),
            Mode::Pae => gva.0 & 0xffff_ffff,
            Mode::FourLevel => gva.0,
        };
        let piece = at >> PIECE_SHIFT;
        let slot = &mut self.kept[piece as usize % WAYS];
        let way = match *slot {
            Some((known, way)) if known == piece => way,
            _ => {
                let way = way(paging, &descend(ram, paging, gva).ok()?)?;
                *slot = Some((piece, way));
                way
            }
        };
        let found = match way {
            Way::Large(first) => {
                let gpa = Gpa(first.gpa.0 + (at & ((1 << PIECE_SHIFT) - 0x1000)));
                Translation { gpa, ..first }
            }
            Way::Table { at: table, rights } => {
                let path = descend_wide(ram, paging, at, table, 12).ok()?;
                let found = path.translation;
                let accessed = path.is_accessed();
                accessed.then_some(Translation { rights: found.rights.both(rights), ..found })?
            }
        };
        Some(Translation { gpa: Gpa(ram.issue(found.gpa.0)), ..found })
    }
}

/// What led to a page and leads to its neighbours, if all above the page has been accessed.
fn way(paging: &Paging, path: &Path) -> Option<Way> {
    let found = path.translation;
    if found.page_shift >= PIECE_SHIFT {
        let gpa = Gpa(found.gpa.0 & !((1 << PIECE_SHIFT) - 1));
        return path.is_accessed().then_some(Way::Large(Translation { gpa, ..found }));
    }
    let above = &path.steps[..path.len - 1];
    let accessed = above.iter().all(|step| step.value & entry::ACCESSED != 0);
    let at = above.last()?.value & paging.address_mask();
    let rights = above.iter().fold(Rights::ALL, |rights, step| rights.and(step.value));
    accessed.then_some(Way::Table { at, rights })
}
