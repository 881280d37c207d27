//! The safetensors files of a model directory, single or sharded: mapped into memory and checked before use.
//!
//! The files stay mapped while a [`super::ModelDir`] or a model made from one lives (identity, master weights and export
//! come from them): they must not be modified in place meanwhile: writes show through, and a page that a truncation took
//! away kills the process (`SIGBUS`). Each later use asks the file system first whether the file is as long as it was, which
//! turns all but a truncation in that very moment into an error. Replacing files by rename, as this crate does, is safe.
//!
//! What was read is given back to the system page by page: a mapped file does not count towards the process's memory
//! beside the copy on the device.

use super::config::ModelConfig;
use super::json::parse_json;
use super::params::{ParamSpec, ParamTable};
use crate::backend::Float;
use crate::error::{Error, Result};
use crate::files::Map;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of unsharded weights.
pub(super) const SINGLE: &str = "model.safetensors";
/// Name of a sharded checkpoint's index.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Weights as they are stored, in files or in memory.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    /// The files of a directory.
    Files(&'a Source),
    /// Values in the table's layout.
    Values(&'a [f32]),
}

impl<'a> Stored<'a> {
    /// Fails where a mapped file was cut short since it was opened.
    pub fn check_whole(self) -> Result<()> {
        match self {
            Stored::Files(source) => source.files.iter().try_for_each(SourceFile::check_whole),
            Stored::Values(_) => Ok(()),
        }
    }

    /// A tensor's dtype and little-endian bytes. Present: [`Source::open`] found every tensor of the table.
    pub fn bytes(self, spec: &ParamSpec) -> (Dtype, &'a [u8]) {
        match self {
            Stored::Files(source) => {
                let (file, info) = source.find(&spec.name).expect("checked by Source::open");
                (info.dtype, file.bytes(info))
            }
            Stored::Values(values) => (Dtype::F32, bytemuck::cast_slice(&values[spec.at.clone()])),
        }
    }

    /// Says that `range` of a tensor's bytes will not be read again soon.
    pub fn release(self, spec: &ParamSpec, range: Range<usize>) {
        if let Stored::Files(source) = self {
            let (file, info) = source.find(&spec.name).expect("checked by Source::open");
            file.release(info, range);
        }
    }

    /// What a tensor with NaN or infinity means.
    pub fn not_finite(self, spec: &ParamSpec) -> Error {
        let why = format!("tensor `{}` holds NaN or infinity; the checkpoint is damaged", spec.name);
        match self {
            Stored::Files(source) => Error::file(&source.dir, why),
            Stored::Values(_) => Error::usage(why),
        }
    }
}

/// One safetensors file.
pub(super) struct SourceFile {
    /// Name within the directory.
    pub name: String,
    path: PathBuf,
    file: std::fs::File,
    map: Map,
    /// Bytes before the tensors: length field and header.
    pub head: usize,
    /// Its header.
    pub meta: Metadata,
}

impl SourceFile {
    fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let file = std::fs::File::open(&path).map_err(Error::io(&path, "open"))?;
        let map = Map::new(&path, &file)?;
        let (n, meta) = safetensors::SafeTensors::read_metadata(&map)
            .map_err(|e| Error::file(&path, format!("damaged safetensors file ({e}); download or export it again")))?;
        Ok(Self { name: name.to_owned(), path, file, map, head: 8 + n, meta })
    }

    /// Fails where the file is shorter than its map: reading the pages that are gone would kill the process. (A change
    /// of time alone is no reason to lose a trained model at its export.)
    fn check_whole(&self) -> Result<()> {
        let stat = self.file.metadata().map_err(Error::io(&self.path, "read the length of"))?;
        if stat.len() >= self.map.len() as u64 {
            return Ok(());
        }
        let why = "was cut short while in use: leave a model's files alone during a run, and start it again";
        Err(Error::file(&self.path, why))
    }

    /// The file's first bytes: length field and header.
    pub fn header(&self) -> &[u8] {
        &self.map[..self.head]
    }

    /// A tensor's bytes. `info` is of this file, whose offsets were validated on opening.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[self.head + info.data_offsets.0..self.head + info.data_offsets.1]
    }

    /// Gives the pages under `range` of a tensor's bytes back to the system; read again, they come from its cache.
    fn release(&self, info: &TensorInfo, range: Range<usize>) {
        let at = self.head + info.data_offsets.0;
        self.map.release(at + range.start..at + range.end);
    }
}

/// The safetensors files of a directory.
pub(super) struct Source {
    /// The directory.
    pub dir: PathBuf,
    /// In index order (by name), or the single one.
    pub files: Vec<SourceFile>,
    /// The index of sharded weights, as it was read.
    pub index: Option<Vec<u8>>,
}

impl Source {
    /// Maps the files and checks that they hold exactly the tensors of `table`.
    pub fn open(dir: &Path, config: &ModelConfig, table: &ParamTable) -> Result<Self> {
        let (names, index) = file_names(dir)?;
        let files = names.iter().map(|n| SourceFile::open(dir, n)).collect::<Result<_>>()?;
        let source = Self { dir: dir.to_owned(), files, index };
        for spec in &table.specs {
            source.check(spec)?;
        }
        source.check_others(config, table)?;
        Ok(source)
    }

    /// The tensor of that name: its file and entry.
    pub fn find(&self, name: &str) -> Option<(&SourceFile, &TensorInfo)> {
        self.files.iter().find_map(|f| f.meta.info(name).map(|i| (f, i)))
    }

    fn check(&self, spec: &ParamSpec) -> Result<()> {
        let Some((file, info)) = self.find(&spec.name) else {
            return Err(Error::file(
                &self.dir,
                format!("tensor `{}` is missing from the safetensors files", spec.name),
            ));
        };
        if info.shape != spec.shape {
            return Err(Error::file(
                &file.path,
                format!("tensor `{}` has shape {:?}, but config.json makes it {:?}", spec.name, info.shape, spec.shape),
            ));
        }
        match info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => Err(Error::file(
                &file.path,
                format!("tensor `{}` has dtype {other:?}; supported: F32, F16, BF16", spec.name),
            )),
        }
    }

    /// Refuses tensors that the model does not have, except what old exporters add: `*.rotary_emb.inv_freq`, and a copy
    /// of a tied head.
    fn check_others(&self, config: &ModelConfig, table: &ParamTable) -> Result<()> {
        let known: std::collections::HashSet<&str> = table.specs.iter().map(|s| s.name.as_str()).collect();
        for file in &self.files {
            for name in file.meta.offset_keys() {
                if known.contains(name.as_str()) || name.ends_with(".rotary_emb.inv_freq") {
                    continue;
                }
                if name == "lm_head.weight" && config.tie_word_embeddings {
                    self.check_tied_copy(file)?;
                    continue;
                }
                return Err(Error::file(
                    &file.path,
                    format!(
                        "tensor `{name}` is not part of a {} model of this config.json",
                        config.architecture.model_type()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn check_tied_copy(&self, file: &SourceFile) -> Result<()> {
        let bytes = |name| self.find(name).map(|(f, i)| (i.dtype, f.bytes(i)));
        if bytes("lm_head.weight") == bytes("model.embed_tokens.weight") {
            return Ok(());
        }
        Err(Error::file(
            &file.path,
            "`lm_head.weight` differs from `model.embed_tokens.weight`, but config.json ties them; set \
             `tie_word_embeddings` to false if the head is its own",
        ))
    }
}

/// The safetensors files of a directory, and the index if that names them: as transformers does, the single file first.
fn file_names(dir: &Path) -> Result<(Vec<String>, Option<Vec<u8>>)> {
    if dir.join(SINGLE).exists() {
        return Ok((vec![SINGLE.to_owned()], None));
    }
    let path = dir.join(INDEX);
    if !path.exists() {
        let other = ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|n| dir.join(n).exists());
        let hint = other.map_or(String::new(), |n| format!(" ({n} is not read: save the model as safetensors)"));
        return Err(Error::file(dir, format!("neither {SINGLE} nor {INDEX}{hint}")));
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
    let index = parse_json(&path, &bytes)?;
    let Some(map) = index.get("weight_map").and_then(|v| v.as_object()).filter(|m| !m.is_empty()) else {
        return Err(Error::file(&path, "no `weight_map`"));
    };
    let mut names = BTreeMap::new();
    for (tensor, name) in map {
        match name.as_str() {
            // A name, not a path: an index must not reach outside its directory.
            Some(n) if Path::new(n).file_name().is_some_and(|f| f == n) => names.insert(n.to_owned(), ()),
            _ => {
                return Err(Error::file(
                    &path,
                    format!("`weight_map` gives {name} for `{tensor}`, expected a file name"),
                ));
            }
        };
    }
    Ok((names.into_keys().collect(), Some(bytes)))
}

/// Bytes per element of a weight dtype.
pub(super) fn dtype_bytes(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Converts little-endian elements of F32, F16 or BF16.
pub(super) fn decode<T: Float>(dtype: Dtype, bytes: &[u8], out: &mut Vec<T>) {
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        Dtype::F32 => bytes
            .par_chunks_exact(4)
            .with_min_len(4096)
            .map(|b| T::from_f64(f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()))
            .collect_into_vec(out),
        Dtype::BF16 => bytes
            .par_chunks_exact(2)
            .with_min_len(4096)
            .map(|b| T::from_f64(half::bf16::from_bits(half(b)).into()))
            .collect_into_vec(out),
        _ => bytes
            .par_chunks_exact(2)
            .with_min_len(4096)
            .map(|b| T::from_f64(half::f16::from_bits(half(b)).into()))
            .collect_into_vec(out),
    }
}
