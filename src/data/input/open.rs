//! Finds out what a file is, and opens it.

use super::packed::Unpacked;
use super::raw::RowIter;
use super::reading::{Gauge, Reading};
use super::{csv, json, parquet};
use crate::error::{Error, Result};
use crate::files;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

const BUFFER: usize = 1 << 18;
/// What is read, for messages.
const ACCEPTED: &str = "accepted are JSONL, a JSON array, CSV and TSV, each by itself or in .gz or .zst, and Parquet";
const SAVED: &str = "written as Parquet by `datasets`: load_from_disk(FOLDER).to_parquet(FILE)";

/// Opens `path` and finds out by its first bytes what it is; a table's delimiter also by its name. Errors name the file:
/// unreadable, a folder, a pipe or a device, or of a kind that is not accepted; those of its rows name the row too.
pub fn open(path: &Path, how: Reading) -> Result<RowIter> {
    if path.is_dir() {
        return Err(Error::file(path, folder(path)));
    }
    let file = files::open(path)?;
    let size = file.metadata().map_err(Error::io(path, "read"))?.len();
    let gauge = Gauge::new(&how);
    let mut raw = BufReader::with_capacity(BUFFER, Counted { inner: file, gauge: gauge.clone() });
    let head = raw.fill_buf().map_err(Error::io(path, "read"))?;
    if let Some(what) = foreign(head) {
        return Err(Error::file(path, format!("is {what}")));
    }
    match head {
        [b'P', b'A', b'R', b'1' | b'E', ..] => parquet::open(path, raw.into_inner().inner, size, &how, gauge),
        [0x1f, 0x8b, ..] => unpacked(path, "gzip", flate2::bufread::MultiGzDecoder::new(raw), &how, gauge),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let zstd = zstd::stream::read::Decoder::with_buffer(raw).map_err(Error::io(path, "read"))?;
            unpacked(path, "zstd", zstd, &how, gauge)
        }
        _ => text(path, Box::new(raw), &how, gauge),
    }
}

fn unpacked(
    path: &Path,
    what: &'static str,
    inner: impl Read + Send + 'static,
    how: &Reading,
    gauge: Gauge,
) -> Result<RowIter> {
    let mut inside = BufReader::with_capacity(BUFFER, Unpacked::new(what, inner));
    // What cannot be unpacked is told where it is read.
    if let Ok(head) = inside.fill_buf() {
        if head.starts_with(b"PAR1") {
            return Err(Error::file(path, format!("is Parquet in {what}; unpack it, Parquet compresses by itself")));
        }
        if let Some(inner) = foreign(head) {
            return Err(Error::file(path, format!("is, in {what}, {inner}")));
        }
    }
    text(path, Box::new(inside), how, gauge)
}

/// Rows of a text: of a table if its name or its first line says so, else of JSON.
fn text(path: &Path, mut text: Box<dyn BufRead + Send>, how: &Reading, gauge: Gauge) -> Result<RowIter> {
    let head = text.fill_buf().unwrap_or_default();
    let mark = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let named = csv::named(path);
    // A line of JSON may be a string that is a column's name.
    let json = named.is_none() && json::named(path);
    let delimiter = if json { None } else { csv::delimiter(&head[mark..], named, &how.map) };
    text.consume(mark);
    match delimiter {
        Some(delimiter) => Ok(Box::new(csv::open(path.to_owned(), text, delimiter, &how.map, gauge)?)),
        None => json::open(path, text, &how.map, gauge),
    }
}

/// What is wrong with a folder.
fn folder(path: &Path) -> String {
    let has = |name: &str| path.join(name).exists();
    if has("dataset_info.json") && has("state.json") || has("dataset_dict.json") {
        return format!("is what save_to_disk of `datasets` writes (Arrow), which is not read; give it {SAVED}");
    }
    format!("is a folder; give the files in it ({ACCEPTED})")
}

/// What a file is that is not accepted.
fn foreign(head: &[u8]) -> Option<String> {
    let unpack = |what: &str| format!("{what}; unpack it: {ACCEPTED}");
    let other = |what: &str| format!("{what}; {ACCEPTED}");
    // A message's length follows the mark of an Arrow stream.
    let arrow =
        head.starts_with(b"ARROW1") || head.starts_with(&[0xff, 0xff, 0xff, 0xff]) && head.get(6..8) == Some(&[0, 0]);
    let blank = head.iter().take_while(|b| b.is_ascii_whitespace()).count();
    let begins = |text: &str| {
        head.get(blank..).and_then(|h| h.get(..text.len())).is_some_and(|h| h.eq_ignore_ascii_case(text.as_bytes()))
    };
    Some(match head {
        _ if arrow => format!("Arrow (`datasets` saves it), which is not read; give it {SAVED}"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-16; convert it to UTF-8".into(),
        [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..] => "UTF-16; convert it to UTF-8".into(),
        [b'P', b'K', 3 | 5, 4 | 6, ..] => unpack("a zip archive"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => unpack("xz-compressed"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => unpack("bzip2-compressed"),
        [4, 0x22, 0x4d, 0x18, ..] => unpack("lz4-compressed"),
        [b'7', b'z', 0xbc, 0xaf, ..] => unpack("a 7z archive"),
        _ if head.get(257..262) == Some(b"ustar") => unpack("a tar archive"),
        [b'O', b'b', b'j', 1, ..] => other("Avro"),
        [b'O', b'R', b'C', ..] => other("ORC"),
        [0x89, b'H', b'D', b'F', ..] => other("HDF5"),
        [0x80, 2..=5, ..] => other("a Python pickle, which may run any program where it is read"),
        _ if head.starts_with(b"SQLite format 3\0") => other("an SQLite database"),
        _ if head.starts_with(b"version https://git-lfs") => {
            "a pointer of Git LFS in place of the file; fetch the file itself (`git lfs pull`)".into()
        }
        _ if begins("<!doctype html") || begins("<html") => {
            "a web page in place of the file; fetch the file itself".into()
        }
        _ => return None,
    })
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
