//! LZMA2 data, decoded by the library.
//!
//! Problem: the library's window is tens of megabytes on small pages, if it allocates it itself. Scheme: it is given an
//! allocator that asks for large ones. Invariants: a decoder reads and writes inside the slices that it is given. Any
//! thread.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::{mem, ptr};

use liblzma_sys as lzma;

const LARGE_PAGE: usize = 2 << 20;

const ALLOCATOR: lzma::lzma_allocator =
    lzma::lzma_allocator { alloc: Some(allocate), free: Some(free), opaque: ptr::null_mut() };

unsafe extern "C" fn allocate(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else { return ptr::null_mut() };
    if bytes < LARGE_PAGE {
        // SAFETY: any size can be asked for.
        return unsafe { libc::malloc(bytes) };
    }
    let Some(bytes) = bytes.checked_next_multiple_of(LARGE_PAGE) else { return ptr::null_mut() };
    // SAFETY: the alignment is a power of two, and the size a multiple of it.
    let room = unsafe { libc::aligned_alloc(LARGE_PAGE, bytes) };
    if !room.is_null() {
        // SAFETY: the range was just allocated; the advice changes no contents. A refusal does no harm.
        let _ = unsafe { libc::madvise(room, bytes, libc::MADV_HUGEPAGE) };
    }
    room
}

unsafe extern "C" fn free(_: *mut c_void, room: *mut c_void) {
    // SAFETY: the library frees once what `allocate` gave it, or null.
    unsafe { libc::free(room) };
}

/// A decoder in the midst of its data.
pub struct Decoder<'a> {
    stream: lzma::lzma_stream,
    data: PhantomData<&'a [u8]>,
}

impl<'a> Decoder<'a> {
    /// One that looks back at `window_bytes` at most, and takes at most `memory` bytes.
    pub fn new(data: &'a [u8], window_bytes: u32, memory: u64) -> Result<Self, String> {
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
        stream.allocator = &ALLOCATOR;
        stream.next_in = data.as_ptr();
        stream.avail_in = data.len();
        let mut decoder = Self { stream, data: PhantomData };
        // SAFETY: a new stream with an allocator that is never gone, and a list as above. Nothing keeps the list.
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
