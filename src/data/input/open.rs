//! Finds out what a file is, and opens it.

use super::raw::RowIter;
use super::reading::{Gauge, Reading};
use super::{json, parquet};
use crate::error::{Error, Result};
use crate::files;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Opens `path` and finds out by its first bytes what it is. Errors name the file: unreadable, a folder, a pipe or a device,
/// or of a kind that is not accepted; those of its rows name the row too.
pub fn open(path: &Path, how: Reading) -> Result<RowIter> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; give the files in it (JSONL, JSON, .gz or Parquet)"));
    }
    let file = files::open(path)?;
    let size = file.metadata().map_err(Error::io(path, "read"))?.len();
    let gauge = Gauge::new(&how);
    let mut raw = BufReader::with_capacity(1 << 18, Counted { inner: file, gauge: gauge.clone() });
    let magic: [u8; 4] = {
        let head = raw.fill_buf().map_err(Error::io(path, "read"))?;
        std::array::from_fn(|i| head.get(i).copied().unwrap_or(0))
    };
    match magic {
        [b'P', b'A', b'R', b'1'] => parquet::open(path, size, gauge),
        [0x1f, 0x8b, ..] => {
            let text = BufReader::with_capacity(1 << 18, flate2::bufread::MultiGzDecoder::new(raw));
            json::open(path, Box::new(text), gauge)
        }
        [b'P', b'K', 3, 4] => Err(not_accepted(path, "a zip archive")),
        [0x28, 0xb5, 0x2f, 0xfd] => Err(not_accepted(path, "zstd-compressed")),
        [0xfd, b'7', b'z', b'X'] => Err(not_accepted(path, "xz-compressed")),
        [b'A', b'R', b'R', b'O'] => Err(not_accepted(path, "an Arrow file")),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err(Error::file(path, "is UTF-16; convert it to UTF-8")),
        _ => json::open(path, Box::new(raw), gauge),
    }
}

fn not_accepted(path: &Path, what: &str) -> Error {
    Error::file(path, format!("is {what}; accepted are JSONL, a JSON array, either gzipped, and Parquet"))
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    gauge: Gauge,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.gauge.took(n as u64);
        Ok(n)
    }
}
