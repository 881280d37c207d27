//! A page's bytes, decompressed: as many as its header says, and never more.
//!
//! The `parquet` crate's own codecs fill memory with whatever a gzip or brotli stream makes.

use parquet::basic::Compression;
use std::io::Read;

/// Decompresses `input` into `size` bytes. Errors: a damaged stream, more or fewer bytes, a codec that nobody writes.
pub fn decompress(codec: Compression, input: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let out = match codec {
        Compression::UNCOMPRESSED => input.to_vec(),
        Compression::SNAPPY => {
            let says = snap::raw::decompress_len(input).map_err(|e| e.to_string())?;
            if says != size {
                return Err(wrong(says, size));
            }
            let mut out = zeros(size)?;
            snap::raw::Decoder::new().decompress(input, &mut out).map_err(|e| e.to_string())?;
            out
        }
        Compression::GZIP(_) => stream(flate2::bufread::MultiGzDecoder::new(input), size)?,
        Compression::ZSTD(_) => {
            stream(zstd::stream::read::Decoder::with_buffer(input).map_err(|e| e.to_string())?, size)?
        }
        Compression::BROTLI(_) => stream(brotli_decompressor::Decompressor::new(input, 1 << 12), size)?,
        Compression::LZ4_RAW => lz4_block(input, size)?,
        // Three writers have meant three things by it.
        Compression::LZ4 => hadoop(input, size)
            .or_else(|| stream(lz4_flex::frame::FrameDecoder::new(input), size).ok())
            .map_or_else(|| lz4_block(input, size), Ok)?,
        Compression::LZO => return Err("LZO compression is not supported; write it with another codec".into()),
    };
    if out.len() == size { Ok(out) } else { Err(wrong(out.len(), size)) }
}

fn wrong(got: usize, want: usize) -> String {
    format!("a page has {got} bytes where its header says {want}")
}

fn zeros(size: usize) -> Result<Vec<u8>, String> {
    bytemuck::try_zeroed_vec(size).map_err(|()| format!("no memory for a page of {size} bytes"))
}

fn stream(from: impl Read, size: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    // One byte more than said tells a stream that goes on.
    from.take(size as u64 + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

fn lz4_block(input: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = zeros(size)?;
    let n = lz4_flex::block::decompress_into(input, &mut out).map_err(|e| e.to_string())?;
    out.truncate(n);
    Ok(out)
}

/// Hadoop's framing: blocks, each after its two lengths.
fn hadoop(mut input: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out = zeros(size).ok()?;
    let mut done = 0usize;
    while let Some((head, rest)) = input.split_first_chunk::<8>() {
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (len, stored) = (number(0), number(4));
        let block = rest.get(..stored)?;
        let n = lz4_flex::block::decompress_into(block, out.get_mut(done..done.checked_add(len)?)?).ok()?;
        if n != len {
            return None;
        }
        done += len;
        input = &rest[stored..];
    }
    (done == size && input.is_empty()).then_some(out)
}
