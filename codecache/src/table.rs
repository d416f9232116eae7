//! Long lists whose elements stay where they are, on large pages.
//!
//! Problem: what is known of blocks grows to tens of megabytes while a guest starts. A `Vec` doubles: it copies, and
//! leaves holes; and every page of 4 KiB is a fault. Scheme: a [`Pool`] hands out memory of address space that costs
//! nothing until it is made memory, in steps of a large page of the host's, which is asked for; the pool's users share
//! the one that isn't full yet. A [`Table`] is a list of pieces of it. Invariants: what a pool has handed out lives as
//! long as the pool and is nobody else's; a table's elements are in its pieces, one behind the other but for gaps at
//! pieces' ends. A table has one owner; any thread. Source: mmap(2), madvise(2).

use std::alloc::{Layout, handle_alloc_error};
use std::io;
use std::ops::{Index, IndexMut};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, MprotectFlags, madvise, mprotect};

use crate::span::Span;

/// Bytes of a large page of the host's.
pub const LARGE_BYTES: usize = 2 << 20;
/// Address space that a pool reserves at a time.
const STRETCH_BYTES: usize = 64 << 20;
/// What a table takes at a time.
const PIECE_BYTES: usize = 128 << 10;
/// Alignment of all that is handed out.
pub const ALIGN: usize = 64;

/// Address space whose beginning is memory.
#[derive(Debug)]
struct Stretch {
    /// It begins at a multiple of [`LARGE_BYTES`].
    span: Span,
    open_bytes: usize,
    used_bytes: usize,
}

impl Stretch {
    fn new() -> io::Result<Self> {
        Ok(Self { span: Span::new(0, STRETCH_BYTES, 0..0)?, open_bytes: 0, used_bytes: 0 })
    }

    /// `bytes` more bytes, if there is room.
    fn take(&mut self, bytes: usize) -> io::Result<Option<NonNull<u8>>> {
        let at = self.used_bytes;
        let end = (at + bytes).next_multiple_of(ALIGN);
        if end > STRETCH_BYTES {
            return Ok(None);
        }
        self.open(end)?;
        self.used_bytes = end;
        // SAFETY: within the reservation.
        Ok(Some(unsafe { self.span.start().byte_add(at) }))
    }

    /// Makes the first `bytes` bytes memory, and maybe more.
    fn open(&mut self, bytes: usize) -> io::Result<()> {
        if bytes <= self.open_bytes {
            return Ok(());
        }
        let end = bytes.next_multiple_of(LARGE_BYTES);
        let at = self.span.start().as_ptr().wrapping_add(self.open_bytes).cast();
        let more = end - self.open_bytes;
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: within the reservation, which is ours; nobody uses this part yet.
        unsafe { mprotect(at, more, access) }?;
        // SAFETY: the same range; the advice changes no contents. A refusal does no harm.
        let _ = unsafe { madvise(at, more, Advice::LinuxHugepage) };
        self.open_bytes = end;
        Ok(())
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Stretch>>);

impl Pool {
    /// Memory, aligned to [`ALIGN`] and zeroed, which lives as long as the pool. Where there is none, this ends as it
    /// does for a `Vec`.
    ///
    /// # Panics
    /// More than a pool has at a time.
    pub fn take(&self, bytes: usize) -> NonNull<u8> {
        assert!(bytes <= STRETCH_BYTES, "{bytes} bytes at a time");
        let mut stretches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self::try_take(&mut stretches, bytes).unwrap_or_else(|_| {
            handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>()))
        })
    }

    fn try_take(stretches: &mut Vec<Stretch>, bytes: usize) -> io::Result<NonNull<u8>> {
        loop {
            if let Some(last) = stretches.last_mut()
                && let Some(taken) = last.take(bytes)?
            {
                return Ok(taken);
            }
            stretches.push(Stretch::new()?);
        }
    }
}

/// A list of plain values in a [`Pool`]'s memory.
#[derive(Debug)]
pub struct Table<T> {
    pool: Arc<Pool>,
    pieces: Vec<NonNull<T>>,
    /// Places that are in use, or were left out.
    len: usize,
}

// SAFETY: it owns its elements, as a `Vec` does.
unsafe impl<T: Send> Send for Table<T> {}

impl<T: Copy> Table<T> {
    const PER_PIECE: usize = {
        assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0);
        PIECE_BYTES / size_of::<T>()
    };

    #[must_use]
    pub fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool), pieces: Vec::new(), len: 0 }
    }

    /// Adds one, and says where.
    pub fn push(&mut self, element: T) -> usize {
        self.extend(&[element])
    }

    /// Adds some, which [`Self::slice`] gives together, and says where.
    ///
    /// # Panics
    /// More than a piece can have.
    pub fn extend(&mut self, elements: &[T]) -> usize {
        assert!(elements.len() <= Self::PER_PIECE, "few at a time");
        let left = self.len.next_multiple_of(Self::PER_PIECE) - self.len;
        if elements.len() > left {
            // A gap is nobody's, but must have something.
            for _ in 0..left {
                self.put(&elements[..1]);
            }
            if self.len == self.pieces.len() * Self::PER_PIECE {
                self.pieces.push(self.pool.take(PIECE_BYTES).cast());
            }
        }
        self.put(elements)
    }

    /// Adds elements that the last piece has room for.
    fn put(&mut self, elements: &[T]) -> usize {
        let at = self.len;
        if let Some(piece) = self.pieces.get(at / Self::PER_PIECE) {
            let place = piece.as_ptr().wrapping_add(at % Self::PER_PIECE);
            // SAFETY: there is room for them in the piece, which is ours; `elements` can't be there, as `self` is
            // borrowed mutably.
            unsafe { ptr::copy_nonoverlapping(elements.as_ptr(), place, elements.len()) };
            self.len += elements.len();
        }
        at
    }

    /// Forgets all elements. Their memory is kept.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn place(&self, at: usize) -> Option<*mut T> {
        (at < self.len)
            .then(|| self.pieces[at / Self::PER_PIECE].as_ptr().wrapping_add(at % Self::PER_PIECE))
    }

    #[must_use]
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        // SAFETY: an element, which changes only by `&mut self`.
        self.place(at).map(|place| unsafe { &*place })
    }

    #[inline]
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        // SAFETY: an element, and `self` is borrowed mutably.
        self.place(at).map(|place| unsafe { &mut *place })
    }

    /// `len` elements that were added together.
    ///
    /// # Panics
    /// They weren't.
    #[must_use]
    pub fn slice(&self, at: usize, len: usize) -> &[T] {
        if len == 0 {
            return &[];
        }
        let together = at % Self::PER_PIECE + len <= Self::PER_PIECE && at + len <= self.len;
        assert!(together, "{len} elements at {at} of {}", self.len);
        let start = self.pieces[at / Self::PER_PIECE].as_ptr().wrapping_add(at % Self::PER_PIECE);
        // SAFETY: elements of one piece, which change only by `&mut self`.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl<T: Copy> Index<usize> for Table<T> {
    type Output = T;
    #[inline]
    fn index(&self, at: usize) -> &T {
        self.get(at).expect("an element of the table")
    }
}

impl<T: Copy> IndexMut<usize> for Table<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        self.get_mut(at).expect("an element of the table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stay_where_they_are() {
        let pool = Arc::default();
        let mut table = Table::new(&pool);
        assert_eq!((table.len(), table.get(0)), (0, None));
        assert_eq!(table.push(0_u64), 0);
        let first = &raw const table[0];
        let count = 8 << 20 >> 3;
        assert!((1..count).all(|n| table.push(n as u64) == n));
        assert_eq!(table.len(), count);
        assert!((0..count).all(|n| table[n] == n as u64));
        assert_eq!(&raw const table[0], first);
        table[7] = 8;
        assert_eq!(table.get(7), Some(&8));
        assert_eq!(table.get(count), None);
        table.clear();
        assert_eq!((table.len(), table.push(9)), (0, 0));
        assert_eq!((&raw const table[0], table[0]), (first, 9));
        let taken = pool.0.lock().expect("no panic")[0].used_bytes;
        assert!((1..count).all(|n| table.push(1) == n));
        assert_eq!(
            taken,
            pool.0.lock().expect("no panic")[0].used_bytes,
            "it fills its pieces again"
        );
    }

    #[test]
    fn what_is_added_together_stays_together() {
        let mut table = Table::new(&Arc::default());
        let given: Vec<Vec<u8>> = (0..1000).map(|n| vec![n as u8; 7 * n % 5000]).collect();
        let places: Vec<usize> = given.iter().map(|bytes| table.extend(bytes)).collect();
        assert!(table.len() > given.iter().map(Vec::len).sum(), "with gaps");
        for (bytes, at) in given.iter().zip(places) {
            assert_eq!(table.slice(at, bytes.len()), bytes);
        }
        let whole = vec![5; PIECE_BYTES];
        let at = table.extend(&whole);
        assert_eq!(table.slice(at, PIECE_BYTES), whole);
        assert_eq!(table.extend(&[]), table.len());
        assert_eq!(table.extend(&[1]), at + PIECE_BYTES);
    }

    #[test]
    fn a_pool_gives_each_its_own() {
        let pool = Pool::default();
        let bytes = 20 << 20;
        let taken: Vec<_> = (0..7).map(|_| pool.take(bytes + 1)).collect();
        for (n, start) in (0..).zip(&taken) {
            assert!(start.addr().get().is_multiple_of(ALIGN));
            let last = start.as_ptr().wrapping_add(bytes);
            // SAFETY: a byte that was taken.
            unsafe { last.write(n) };
        }
        for (n, start) in (0..).zip(&taken) {
            // SAFETY: so many bytes were taken.
            let taken = unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes + 1) };
            assert_eq!((taken[0], taken[bytes]), (0, n));
        }
        assert_eq!(pool.0.lock().expect("no panic").len(), 3);
    }

    #[test]
    #[should_panic(expected = "3 elements at 0 of 2")]
    fn a_slice_has_an_end() {
        let mut table = Table::new(&Arc::default());
        table.extend(&[1, 2]);
        let _ = table.slice(0, 3);
    }

    #[test]
    #[should_panic(expected = "few at a time")]
    fn a_piece_has_an_end() {
        Table::new(&Arc::default()).extend(&[0_u8; PIECE_BYTES + 1]);
    }
}
