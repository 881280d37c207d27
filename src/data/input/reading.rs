//! How files are read: names of columns, limits, and the gauge that holds a file to them.
//!
//! A file of a few kilobytes can ask for terabytes. Two limits stop it: of a row's bytes, and of how many times its own
//! bytes a file may become.

use super::fields::FieldMap;
use super::raw::Place;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How files are read.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Names of columns.
    pub map: FieldMap,
    /// What a file may ask for.
    pub limits: Limits,
    /// Counts bytes taken from files, for progress.
    pub bytes_read: Arc<AtomicU64>,
}

/// What a file may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one row, decompressed: of its JSON text, of its CSV record, of its columns' texts and numbers.
    pub row_bytes: u64,
    /// Most times its own bytes that a file's rows may take, once they take [`FREE`].
    pub expansion: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { row_bytes: 64 << 20, expansion: 256 }
    }
}

/// Bytes of rows that a file may always have, whatever its own size.
pub const FREE: u64 = 64 << 20;

/// Bytes that a row counts for at least: one of two bytes is as much work.
const LEAST_ROW: u64 = 256;

/// Holds one file to its [`Limits`], and counts what is read of it.
#[derive(Clone, Debug)]
pub(super) struct Gauge {
    /// The limits.
    pub limits: Limits,
    /// Bytes taken from this file.
    taken: Arc<AtomicU64>,
    all_files: Arc<AtomicU64>,
    rows: u64,
}

impl Gauge {
    pub fn new(how: &Reading) -> Self {
        let (limits, all_files) = (how.limits, how.bytes_read.clone());
        Self { limits, taken: Arc::default(), all_files, rows: 0 }
    }

    /// `bytes` were taken from the file.
    pub fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.all_files.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Room for the next row.
    pub fn room(&self) -> u64 {
        self.limits.row_bytes
    }

    /// A row of `bytes` was made. Errors: it, or all rows so far, are beyond the limits.
    pub fn row(&mut self, bytes: u64, place: &Place) -> Result<()> {
        if bytes > self.room() {
            return Err(self.too_long(place));
        }
        self.passed(bytes.max(LEAST_ROW), place)
    }

    /// `bytes` that are no row went by: blanks, most likely. Errors: all so far are beyond the limit.
    pub fn passed(&mut self, bytes: u64, place: &Place) -> Result<()> {
        self.rows += bytes;
        let taken = self.taken.load(Ordering::Relaxed).max(1);
        if self.rows > FREE && self.rows / taken > self.limits.expansion {
            return Err(place.error(format!(
                "the rows up to here take {} times the bytes of the file that they come from, as a decompression bomb's do; \
                 where that is meant, raise `options.max_expansion` ({})",
                self.rows / taken,
                self.limits.expansion
            )));
        }
        Ok(())
    }

    /// The error about a row that is too long.
    pub fn too_long(&self, place: &Place) -> Error {
        place.error(format!(
            "longer than {} bytes; where that is meant, raise `options.max_row_bytes`",
            self.limits.row_bytes
        ))
    }
}
