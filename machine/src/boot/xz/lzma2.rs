//! LZMA2 data, decoded by the library.
//!
//! Problem: the library's window is tens of megabytes on small pages, which the host has to find on the way, if it
//! allocates it itself. Scheme: it is given an allocator that takes the window out of a [`Room`], which somebody else may
//! populate meanwhile. Invariants: a decoder reads and writes inside the slices that it is given and in its room. Any
//! thread.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::{mem, ptr};

use liblzma_sys as lzma;

use crate::boot::ask_for_large_pages;

/// What the library asks for beside the window's bytes, and more.
const EXTRA_BYTES: usize = 1 << 16;

/// Memory for a decoder's window.
pub struct Room {
    start: *mut u8,
    bytes: Vec<u8>,
    is_free: Cell<bool>,
    /// What takes from here.
    allocator: OnceCell<lzma::lzma_allocator>,
}

impl Room {
    pub fn new(window_bytes: u32) -> Self {
        let mut bytes = vec![0; window_bytes as usize + EXTRA_BYTES];
        ask_for_large_pages(&mut bytes);
        let start = bytes.as_mut_ptr();
        Self { start, bytes, is_free: Cell::new(true), allocator: OnceCell::new() }
    }

    pub fn range(&self) -> Range<*mut u8> {
        self.start..self.start.wrapping_add(self.bytes.len())
    }
}

/// The library asks for its window, which is by far the largest thing that it asks for, or for something small.
unsafe extern "C" fn allocate(room: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: the decoder's room, which it borrows.
    let room = unsafe { &*room.cast::<Room>() };
    let Some(bytes) = count.checked_mul(size) else { return ptr::null_mut() };
    if bytes > EXTRA_BYTES && bytes <= room.bytes.len() && room.is_free.take() {
        return room.start.cast();
    }
    // SAFETY: any size can be asked for.
    unsafe { libc::malloc(bytes) }
}

unsafe extern "C" fn free(room: *mut c_void, given: *mut c_void) {
    // SAFETY: the decoder's room, which it borrows.
    let room = unsafe { &*room.cast::<Room>() };
    if given.cast() != room.start {
        // SAFETY: the library frees once what `allocate` gave it, or null.
        unsafe { libc::free(given) };
    }
}

/// A decoder in the midst of its data.
pub struct Decoder<'a> {
    stream: lzma::lzma_stream,
    borrowed: PhantomData<(&'a [u8], &'a Room)>,
}

impl<'a> Decoder<'a> {
    /// One that looks back at `window_bytes` at most, for which there is `room`, and takes at most `memory` bytes.
    pub fn new(
        data: &'a [u8],
        window_bytes: u32,
        room: &'a Room,
        memory: u64,
    ) -> Result<Self, String> {
        // SAFETY: integers and pointers, for which zero is a value; so the library wants a new one to be.
        let mut options: lzma::lzma_options_lzma = unsafe { mem::zeroed() };
        options.dict_size = window_bytes;
        let filters = [
            lzma::lzma_filter { id: lzma::LZMA_FILTER_LZMA2, options: (&raw mut options).cast() },
            lzma::lzma_filter { id: lzma::LZMA_VLI_UNKNOWN, options: ptr::null_mut() },
        ];
        // SAFETY: a list of filters with its end, and the options that belong to them.
        if unsafe { lzma::lzma_raw_decoder_memusage(filters.as_ptr()) } > memory {
            return Err("its window is larger than memory".to_owned());
        }
        // SAFETY: as for the options.
        let mut stream: lzma::lzma_stream = unsafe { mem::zeroed() };
        let opaque = ptr::from_ref(room).cast_mut().cast();
        let allocator = lzma::lzma_allocator { alloc: Some(allocate), free: Some(free), opaque };
        stream.allocator = room.allocator.get_or_init(|| allocator);
        stream.next_in = data.as_ptr();
        stream.avail_in = data.len();
        let mut decoder = Self { stream, borrowed: PhantomData };
        // SAFETY: a new stream with an allocator in a room that is borrowed, and a list as above. Nothing keeps the list.
        let status = unsafe { lzma::lzma_raw_decoder(&mut decoder.stream, filters.as_ptr()) };
        decoder_status(status).map(|_| decoder)
    }

    /// Fills `piece`, or comes to the data's end. Gives the number of bytes filled, and whether that was the end.
    pub fn decode(&mut self, piece: &mut [u8]) -> Result<(usize, bool), String> {
        self.stream.next_out = piece.as_mut_ptr();
        self.stream.avail_out = piece.len();
        // SAFETY: the stream was set up by `new`; its input is what is left of a slice that outlives it, its output is
        // `piece`.
        let status = unsafe { lzma::lzma_code(&mut self.stream, lzma::LZMA_FINISH) };
        let is_at_end = decoder_status(status)?;
        Ok((piece.len() - self.stream.avail_out, is_at_end))
    }

    /// Bytes of the data that were needed so far.
    pub fn taken(&self) -> usize {
        self.stream.total_in as usize
    }
}

impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: set up by `new`, or still zeroes, which is nothing to free.
        unsafe { lzma::lzma_end(&mut self.stream) };
    }
}

/// Whether it is at its end.
fn decoder_status(status: lzma::lzma_ret) -> Result<bool, String> {
    match status {
        lzma::LZMA_OK => Ok(false),
        lzma::LZMA_STREAM_END => Ok(true),
        lzma::LZMA_DATA_ERROR => Err("it is damaged".to_owned()),
        lzma::LZMA_BUF_ERROR => Err("it doesn't end where it should".to_owned()),
        lzma::LZMA_MEM_ERROR => Err("there isn't enough memory".to_owned()),
        other => Err(format!("status {other} of the decoder")),
    }
}
