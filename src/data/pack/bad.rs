//! Rows that cannot be used: counted and named, file by file.

use super::options::OnBadRow;
use super::report::{DropReason, PackReport};
use crate::data::input::Place;
use crate::data::numbers::grouped;
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// How the rows of the file at hand fare.
#[derive(Default)]
pub(super) struct FileRows {
    path: Option<Arc<PathBuf>>,
    rows: u64,
    bad: u64,
    kept: u64,
    first: Option<Error>,
}

impl FileRows {
    /// The next row; where it begins another file, the one before is [finished](FileRows::finish).
    pub fn row(&mut self, place: &Place, report: &mut PackReport) -> Result<()> {
        if !self.path.as_ref().is_some_and(|p| Arc::ptr_eq(p, &place.path)) {
            self.finish(report)?;
            self.path = Some(place.path.clone());
        }
        self.rows += 1;
        Ok(())
    }

    /// The row is in the shards, in part at least.
    pub fn kept(&mut self) {
        self.kept += 1;
    }

    /// The row cannot be used. The error is `e` again where it ends the pack.
    pub fn bad(&mut self, e: Error, place: &Place, policy: OnBadRow, report: &mut PackReport) -> Result<()> {
        if policy == OnBadRow::Stop {
            return Err(e);
        }
        self.bad += 1;
        report.dropped(DropReason::Unusable, true, || place.to_string());
        if report.unusable_rows.len() < PackReport::NAMED {
            report.unusable_rows.push(match &e {
                Error::File { path, why } => {
                    format!("{}: {why}", path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
                }
                other => other.to_string(),
            });
        }
        self.first.get_or_insert(e);
        Ok(())
    }

    /// The file's last row is in. Errors: none of its rows can be used, with what is wrong with the first.
    pub fn finish(&mut self, report: &mut PackReport) -> Result<()> {
        let file = std::mem::take(self);
        let Some(path) = file.path else { return Ok(()) };
        match file.first {
            Some(e) if file.bad == file.rows => Err(match e {
                Error::File { path, why } if file.rows > 1 => {
                    Error::file(path, format!("none of its {} rows can be used; {why}", grouped(file.rows)))
                }
                e => e,
            }),
            _ => {
                if file.kept == 0 {
                    report.empty_files.push(path.display().to_string());
                }
                Ok(())
            }
        }
    }
}
