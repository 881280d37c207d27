//! Reading a checkpoint.

use super::layout::{self, BUFFER, PIECE, TensorFile, pieces};
use super::manifest::{Manifest, Saved, instead};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ParamTable;
use crate::train::state::{Part, Section, State};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Takes elements of a section, from which one of the arena on.
type Sink<'a> = &'a mut dyn FnMut(Part, usize, &[u8]) -> Result<()>;

/// A checkpoint whose [`Manifest`] was read.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    saved: Saved,
}

impl Checkpoint {
    /// Reads what `path` says of itself. Errors: as of [`Manifest::read`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), saved: Manifest::read(path)?.saved })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Reads all of it, for a state of `sections` over `table`. Changes nothing.
    ///
    /// Errors: sections of another kind; files that are missing, cut short, another checkpoint's or damaged; a folder under the
    /// name of another step's.
    pub fn verify(&self, table: &ParamTable, sections: &[Section]) -> Result<()> {
        self.check_kinds(sections, table)?;
        let nowhere = &mut |_: Part, _: usize, _: &[u8]| Ok(());
        layout::files(sections, table).iter().try_for_each(|file| self.read_tensors(file, table, nowhere))?;
        self.check_name()
    }

    /// Overwrites every lasting section of `state`, and its clock. Errors: as of [`Checkpoint::verify`]; then `state` is of no
    /// use any more.
    pub fn load<B: Backend>(&self, be: &B, state: &mut State<B>) -> Result<()> {
        let (table, sections) = (state.model.table.clone(), state.sections(be));
        self.check_kinds(&sections, &table)?;
        let to_state = &mut |part: Part, start: usize, bytes: &[u8]| state.write(be, part, start, bytes);
        layout::files(&sections, &table).iter().try_for_each(|file| self.read_tensors(file, &table, to_state))?;
        state.clock = self.saved.clock;
        Ok(())
    }

    /// Under another's name it would be taken for newer or older than it is: what is newer than the one that a run goes on from
    /// is taken away.
    fn check_name(&self) -> Result<()> {
        let name = self.path.canonicalize().ok().and_then(|p| p.file_name()?.to_str().map(str::to_owned));
        let named: Option<u64> = name.and_then(|name| name.strip_prefix("checkpoint-")?.parse().ok());
        let step = self.saved.global_step;
        match named.is_none_or(|named| named == step) {
            true => Ok(()),
            false => Err(Error::file(
                &self.path,
                format!("is the checkpoint of step {step}: name it checkpoint-{step} again"),
            )),
        }
    }

    /// Whether what it holds is what a state of `sections` has.
    fn check_kinds(&self, sections: &[Section], table: &ParamTable) -> Result<()> {
        let said = |name: &str, dtype: &str| format!("{name} in {dtype}");
        let had: Vec<_> = self.saved.sections.iter().map(|s| said(&s.name, &s.dtype)).collect();
        let want: Vec<_> =
            layout::files(sections, table).iter().flat_map(|f| &f.sections).map(|s| said(s.name, s.dtype)).collect();
        if had == want {
            return Ok(());
        }
        let why = format!(
            "holds {}, and this run {}: use the `options.device`, `options.dtype`, `options.optim` and `options.sync_ref_model` that it was made with",
            had.join(", "),
            want.join(", ")
        );
        Err(Error::file(&self.path, why))
    }

    /// Hands the elements of `file` to `to`, a piece at a time: of which section, from which element of the arena on.
    fn read_tensors(&self, file: &TensorFile, table: &ParamTable, to: Sink<'_>) -> Result<()> {
        let path = self.path.join(file.name);
        let refuse = |why: &str| Error::file(&path, format!("{why}: {}", instead(&self.path)));
        if !path.is_file() {
            return Err(refuse("is missing"));
        }
        let from = files::open(&path)?;
        let len = from.metadata().map_err(Error::io(&path, "read the length of"))?.len();
        let header = file.header(table, self.saved.global_step)?;
        let want = header.len() as u64 + file.data_len(table);
        if len != want {
            return Err(refuse(&format!("is {len} bytes long, not {want}")));
        }
        let mut from = BufReader::with_capacity(BUFFER, from);
        let mut read = |piece: &mut [u8]| from.read_exact(piece).map_err(Error::io(&path, "read"));
        let mut piece = vec![0; header.len()];
        read(&mut piece)?;
        if piece != header {
            return Err(refuse("has tensors of another checkpoint, or is damaged"));
        }
        for s in &file.sections {
            let mut crc = crc32fast::Hasher::new();
            piece.reserve(PIECE.min(table.len) * s.width);
            for range in pieces(table, s.part) {
                piece.resize(range.len() * s.width, 0);
                read(&mut piece)?;
                crc.update(&piece);
                if !finite(&piece, s.width) {
                    return Err(refuse(&format!("{} in it are not finite", s.name)));
                }
                to(s.part, range.start, &piece)?;
            }
            let crc = crc.finalize();
            if !self.saved.sections.iter().any(|saved| saved.name == s.name && saved.crc32 == crc) {
                return Err(refuse(&format!("its {} is not what was saved with it (CRC-32)", s.name)));
            }
        }
        Ok(())
    }
}

/// Whether little-endian numbers of `width` bytes, of 2 bfloat16, are all finite; single bytes are codes.
fn finite(bytes: &[u8], width: usize) -> bool {
    match width {
        1 => true,
        2 => bytes.as_chunks().0.iter().all(|x| half::bf16::from_le_bytes(*x).is_finite()),
        4 => bytes.as_chunks().0.iter().all(|x| f32::from_le_bytes(*x).is_finite()),
        _ => bytes.as_chunks().0.iter().all(|x| f64::from_le_bytes(*x).is_finite()),
    }
}
