//! Writing a checkpoint.

use super::layout::{BUFFER, PIECE, TensorFile, elements, files, pieces};
use super::manifest::{Manifest, NAME, Saved, SavedSection};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile, AtomicFolder};
use crate::model::{SaveDtype, export_beside_weights};
use crate::train::exchange;
use crate::train::state::{Part, Section, State};
use crate::train::team::Team;
use crate::train::trained_with::TrainedWith;
use std::collections::VecDeque;
use std::io::{BufWriter, Write};
use std::ops::Range;

/// The tensors of a checkpoint as they are read, a piece at a time: of what several ranks keep, from all of them, each of which reads
/// the same pieces in the same order.
pub struct Source<'a, B: Backend> {
    be: &'a B,
    state: &'a State<B>,
    team: &'a Team<'a>,
    /// What several ranks keep and was not read yet.
    rest: VecDeque<(Part, usize, Range<usize>)>,
}

impl<'a, B: Backend> Source<'a, B> {
    /// Of all that lasts of `state`.
    pub fn new(be: &'a B, state: &'a State<B>, team: &'a Team<'a>) -> Self {
        let table = &state.model.table;
        let all = files(&state.sections(be), table).into_iter().flat_map(|file| file.sections);
        let shared = all.filter(|s| s.part.shared().is_some() && state.shares.shared());
        let rest = shared.flat_map(|s| pieces(table, s.part).map(move |range| (s.part, s.width, range))).collect();
        Self { be, state, team, rest }
    }

    /// Appends the elements `range` of `section` to `to`.
    fn read(&mut self, section: &Section, range: Range<usize>, to: &mut Vec<u8>) -> Result<()> {
        let Section { part, width, .. } = *section;
        if self.rest.front().is_some_and(|(next, _, of)| (*next, of) == (part, &range)) {
            self.rest.pop_front();
        }
        exchange::collect(self.be, self.state, self.team, (part, width), range, to)
    }

    /// Reads what is left, for nobody: the others count on it.
    pub fn end(mut self) -> Result<()> {
        let mut piece = Vec::new();
        while let Some((part, width, range)) = self.rest.pop_front() {
            piece.clear();
            exchange::collect(self.be, self.state, self.team, (part, width), range, &mut piece)?;
        }
        Ok(())
    }
}

/// Fills `folder` and puts it in its place; gives its bytes. `saved` has everything but the sections; `config` is the content
/// of `config.toml`, `trained_with` what the model's files are to say of the data, as those of the trained model do. Nothing is under way on the device.
///
/// Errors: [`Error::Io`], and then the folder is gone.
pub fn save<B: Backend>(
    source: &mut Source<'_, B>,
    folder: AtomicFolder,
    (mut saved, config, trained_with): (Saved, &str, &TrainedWith),
) -> Result<u64> {
    let (be, state) = (source.be, source.state);
    let mut fill = || {
        let mut bytes = 0;
        for file in files(&state.sections(be), &state.model.table) {
            bytes += write_tensors(source, &file, &folder, &mut saved)?;
        }
        let dtype = if B::MASTER_WEIGHTS { SaveDtype::Bf16 } else { SaveDtype::F32 };
        export_beside_weights(be, &state.model, folder.path(), dtype)?;
        trained_with.write(folder.path())?;
        files::write(&folder.path().join("config.toml"), config.as_bytes())?;
        let text = Manifest::new(saved.clone()).to_text();
        files::write(&folder.path().join(NAME), text.as_bytes())?;
        Ok(bytes)
    };
    let bytes = fill().map_err(|e: Error| folder.as_named(e))?;
    folder.commit()?;
    Ok(bytes)
}

fn write_tensors<B: Backend>(
    source: &mut Source<'_, B>,
    file: &TensorFile,
    folder: &AtomicFolder,
    saved: &mut Saved,
) -> Result<u64> {
    let path = folder.path().join(file.name);
    let table = &source.state.model.table;
    let header = file.header(table, saved.global_step)?;
    // Small tensors together; pieces go through as they are.
    let mut to = BufWriter::with_capacity(BUFFER, AtomicFile::create(&path)?);
    to.write_all(&header).map_err(Error::io(&path, "write"))?;
    let mut piece = Vec::new();
    for s in &file.sections {
        piece.reserve(PIECE.min(table.len) * s.width);
        let mut crc = crc32fast::Hasher::new();
        for range in pieces(table, s.part) {
            piece.clear();
            source.read(s, range, &mut piece)?;
            crc.update(&piece);
            to.write_all(&piece).map_err(Error::io(&path, "write"))?;
        }
        saved.sections.push(SavedSection {
            name: s.name.into(),
            file: file.name.into(),
            dtype: s.dtype.into(),
            elements: elements(table, s.part) as u64,
            crc32: crc.finalize(),
        });
    }
    to.into_inner().map_err(|e| Error::io(&path, "write")(e.into_error()))?.commit()?;
    Ok(header.len() as u64 + file.data_len(table))
}
