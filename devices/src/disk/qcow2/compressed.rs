//! A cluster's bytes out of their compressed form.
//!
//! Problem: what is compressed may be damaged or made to do harm, and its exact length isn't known. Scheme: the
//! libraries' decoders fill a cluster and stop; what is behind the end is left alone. Invariants: a cluster is full
//! or refused; no memory beyond what a sound image needs. Any thread.
//!
//! Source: QEMU, docs/interop/qcow2.txt, "Compressed Clusters Descriptor"; RFC 1951; RFC 8878.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// Largest zstd window that is made room for, as a power of two: four clusters of the largest size.
const WINDOW_BITS_MAX: u32 = 23;

/// Fills `bytes` from `packed`. False if that isn't possible.
pub(super) fn unpack(compression: Compression, packed: &[u8], bytes: &mut [u8]) -> bool {
    match compression {
        Compression::Zlib => inflate(packed, bytes),
        Compression::Zstd => unpack_zstd(packed, bytes).is_ok_and(|whole| whole),
    }
}

fn inflate(packed: &[u8], bytes: &mut [u8]) -> bool {
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut inflater = DecompressorOxide::new();
    let (status, _, done) = decompress(&mut inflater, packed, bytes, 0, flags);
    status == TINFLStatus::Done && done == bytes.len()
}

fn unpack_zstd(packed: &[u8], bytes: &mut [u8]) -> std::io::Result<bool> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_BITS_MAX))?;
    let wanted = bytes.len();
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(bytes);
    while output.pos() < wanted {
        let before = (input.pos, output.pos());
        decoder.run(&mut input, &mut output)?;
        if before == (input.pos, output.pos()) {
            return Ok(false);
        }
    }
    Ok(true)
}
