//! A ledger, read where it lies.

use super::format::{HEADER_LEN, Header, PairRecord, RECORD_LEN};
use crate::error::{Error, Result};
use crate::files::{self, Map, RunDir};
use std::path::{Path, PathBuf};

/// The ledger of a run, whatever became of the run: up to its last whole record.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    header: Header,
    map: Map,
    records: usize,
}

impl Ledger {
    /// That of the run in `run`; `None` where it has none.
    ///
    /// Errors: [`Error::File`] for a damaged one and one of another version; [`Error::Io`]. Every record's numbers of pair, step
    /// and epoch are checked; log-probs that are not finite may stand in it, as a step may have had them.
    pub fn open(run: &Path) -> Result<Option<Self>> {
        let path = RunDir::ledger_of(run);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let file = files::open(&path)?;
        let refuse = |why: String| Err(Error::file(&path, why));
        let len = file.metadata().map_err(Error::io(&path, "read the length of"))?.len();
        if len < HEADER_LEN as u64 {
            let why = "its run was killed before its first step, or it was cut short: take it away";
            return refuse(format!("is no ledger of pairs: {len} bytes, a header alone has {HEADER_LEN}; {why}"));
        }
        let map = Map::new(&path, &file)?;
        let header: Header = bytemuck::pod_read_unaligned(&map[..HEADER_LEN]);
        if let Err(why) = header.check() {
            return refuse(why);
        }
        let records = (map.len() - HEADER_LEN) / RECORD_LEN;
        let this = Self { path: path.clone(), header, map, records };
        let mut before = (0, 1);
        for (i, r) in this.records().iter().enumerate() {
            if r.pair >= header.num_pairs || r.epoch < before.0 || r.step < before.1 {
                let (pair, step, epoch) = (r.pair, r.step, r.epoch);
                return refuse(format!(
                    "is damaged: record {i} is of pair {pair} at step {step} of epoch {epoch}: take it away; without it the run is as it was, and has no ledger"
                ));
            }
            before = (r.epoch, r.step);
        }
        Ok(Some(this))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of which data it is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Every record, in the order of steps, and within a step by pair.
    pub fn records(&self) -> &[PairRecord] {
        // A map begins at a page, and a header is a multiple of a record's alignment.
        bytemuck::cast_slice(&self.map[HEADER_LEN..HEADER_LEN + self.records * RECORD_LEN])
    }

    /// Epochs that have a record, ascending.
    pub fn epochs(&self) -> Vec<u32> {
        self.records().chunk_by(|a, b| a.epoch == b.epoch).map(|of| of[0].epoch).collect()
    }

    /// The records of an epoch.
    pub fn epoch(&self, epoch: u32) -> &[PairRecord] {
        let all = self.records();
        let begin = all.partition_point(|r| r.epoch < epoch);
        &all[begin..all.partition_point(|r| r.epoch <= epoch)]
    }
}
