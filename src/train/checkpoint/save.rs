//! Writing a checkpoint.

use super::layout::{BUFFER, PIECE, TensorFile, elements, files, pieces};
use super::manifest::{Manifest, NAME, Saved, SavedSection};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile, AtomicFolder};
use crate::model::{SaveDtype, export_beside_weights};
use crate::train::state::State;
use crate::train::trained_with::TrainedWith;
use std::io::{BufWriter, Write};

/// Fills `folder` and puts it in its place; gives its bytes. `saved` has everything but the sections; `config` is the content
/// of `config.toml`, `trained_with` what the model's files are to say of the data, as those of the trained model do. Nothing is under way on the device.
///
/// Errors: [`Error::Io`], and then the folder is gone.
pub fn save<B: Backend>(
    be: &B,
    state: &State<B>,
    folder: AtomicFolder,
    (mut saved, config, trained_with): (Saved, &str, &TrainedWith),
) -> Result<u64> {
    let fill = || {
        let mut bytes = 0;
        for file in files(&state.sections(be), &state.model.table) {
            bytes += write_tensors(be, state, &file, &folder, &mut saved)?;
        }
        let dtype = if B::MASTER_WEIGHTS { SaveDtype::Bf16 } else { SaveDtype::F32 };
        export_beside_weights(be, &state.model, folder.path(), dtype)?;
        trained_with.write(folder.path())?;
        files::write(&folder.path().join("config.toml"), config.as_bytes())?;
        let text = Manifest::new(saved).to_text();
        files::write(&folder.path().join(NAME), text.as_bytes())?;
        Ok(bytes)
    };
    let bytes = fill().map_err(|e: Error| folder.as_named(e))?;
    folder.commit()?;
    Ok(bytes)
}

fn write_tensors<B: Backend>(
    be: &B,
    state: &State<B>,
    file: &TensorFile,
    folder: &AtomicFolder,
    saved: &mut Saved,
) -> Result<u64> {
    let path = folder.path().join(file.name);
    let table = &state.model.table;
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
            state.read(be, s.part, range, &mut piece)?;
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
