//! The safetensors files of a model directory, single or sharded: opened and checked before use, read where they are needed.
//!
//! The files stay open while a [`super::ModelDir`] or a model made from one lives (identity, master weights and export
//! come from them): they must not be modified in place meanwhile, as writes show through. One that is cut short is an error
//! of whoever reads it next, and harms nothing else. Replacing files by rename, as this crate does, is safe.
//!
//! Weights are read piece by piece, never mapped: a file does not count towards the process's memory beside the copy on the
//! device, and a page that a truncation took away cannot kill the process.

use super::config::ModelConfig;
use super::json::parse_json;
use super::params::{ParamSpec, ParamTable};
use crate::backend::Float;
use crate::error::{Error, Result};
use crate::files::{self, Inside, MOST_JSON, cut_short, read_at};
use rayon::prelude::*;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of unsharded weights.
pub(super) const SINGLE: &str = "model.safetensors";
/// Name of a sharded checkpoint's index.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// What bitsandbytes puts beside a tensor in four bits.
pub(super) const BESIDE_NF4: [&str; 5] =
    [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"];
/// Longest header, as of the safetensors crate.
const MOST_HEADER: u64 = 100_000_000;
/// Bytes compared at a time.
const PIECE: usize = 4 << 20;

/// One safetensors file.
pub(super) struct SourceFile {
    /// Name within the directory.
    pub name: String,
    path: PathBuf,
    file: File,
    /// Its first bytes: length field and header.
    pub header: Vec<u8>,
    /// Its header, understood.
    pub meta: Metadata,
}

impl SourceFile {
    /// Opens it and checks its header.
    pub fn open(folder: &Inside, name: &str) -> Result<Self> {
        let path = folder.path(name);
        if !folder.has(name) {
            return Err(folder.missing(name));
        }
        // Weights are numbers, never copied as they stand: a link may lead to wherever large files are kept.
        let file = files::open(&path)?;
        let len = file.metadata().map_err(Error::io(&path, "read the length of"))?.len();
        let damaged = |why: &dyn std::fmt::Display| {
            Error::file(&path, format!("damaged safetensors file ({why}); download or export it again"))
        };
        if len < 8 {
            return Err(damaged(&SafeTensorError::HeaderTooSmall));
        }
        let mut header = vec![0; 8];
        read_at(&path, &file, &mut header, 0)?;
        let n = u64::from_le_bytes(std::array::from_fn(|i| header[i]));
        if n > MOST_HEADER {
            return Err(damaged(&SafeTensorError::HeaderTooLarge));
        }
        if n > len - 8 {
            return Err(damaged(&SafeTensorError::InvalidHeaderLength));
        }
        header.resize(8 + n as usize, 0);
        read_at(&path, &file, &mut header[8..], 8)?;
        // Checks shapes and offsets too.
        let meta: Metadata = serde_json::from_slice(&header[8..]).map_err(|e| damaged(&e))?;
        if header.len() as u64 + meta.data_len() as u64 != len {
            return Err(damaged(&SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { name: name.to_owned(), path, file, header, meta })
    }

    /// Fails where the file is shorter than it was. (A change of time alone is no reason to lose a trained model at its
    /// export.)
    pub fn check_whole(&self) -> Result<()> {
        let stat = self.file.metadata().map_err(Error::io(&self.path, "read the length of"))?;
        match stat.len() >= (self.header.len() + self.meta.data_len()) as u64 {
            true => Ok(()),
            false => Err(cut_short(&self.path)),
        }
    }

    /// Bytes `range` of a tensor, read into `buf`. `info` is of this file, whose offsets were validated on opening.
    pub fn read<'b>(&self, info: &TensorInfo, range: Range<usize>, buf: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        let (start, end) = info.data_offsets;
        assert!(range.end <= end - start, "bytes {range:?} of a tensor of {}", end - start);
        buf.resize(range.len(), 0);
        read_at(&self.path, &self.file, buf, (self.header.len() + start + range.start) as u64)?;
        Ok(buf)
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
    /// The bytes of tensors that are no parameters and are copied by an export.
    pub others: HashMap<String, Vec<u8>>,
}

impl Source {
    /// Opens the files and checks that they hold exactly the tensors of `table`; of those in four bits, that nothing else is
    /// there: [`super::nf4_file::check`] is for what they are.
    pub fn open(folder: &Inside, config: &ModelConfig, table: &ParamTable) -> Result<Self> {
        let (names, index) = file_names(folder)?;
        let files = names.iter().map(|n| SourceFile::open(folder, n)).collect::<Result<_>>()?;
        let dir = folder.path("");
        let (bytes, map) = index.map_or((None, None), |(bytes, map)| (Some(bytes), Some(map)));
        let mut source = Self { dir: dir.components().collect(), files, index: bytes, others: HashMap::new() };
        source.check_places(map.as_ref(), &folder.path(INDEX))?;
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

    /// Refuses a tensor that stands in two files, and one that is not in the file that the index names: which of them is
    /// meant would be a guess.
    fn check_places(&self, weight_map: Option<&Map<String, Value>>, index: &Path) -> Result<()> {
        let mut place: HashMap<String, &SourceFile> = HashMap::new();
        for file in &self.files {
            for name in file.meta.offset_keys() {
                let named = weight_map.and_then(|m| m.get(&name)).and_then(Value::as_str);
                if let Some(named) = named.filter(|n| *n != file.name) {
                    let why = format!("holds tensor `{name}`, which {INDEX} puts into {named}; download both again");
                    return Err(Error::file(&file.path, why));
                }
                if let Some(other) = place.insert(name.clone(), file) {
                    let why = format!("holds tensor `{name}`, and so does {}; download both again", other.name);
                    return Err(Error::file(&file.path, why));
                }
            }
        }
        match weight_map.into_iter().flatten().find(|(name, _)| !place.contains_key(*name)) {
            Some((name, file)) => {
                let file = file.as_str().unwrap_or_default();
                let why = format!("puts tensor `{name}` into {file}, which does not have it; download both again");
                Err(Error::file(index, why))
            }
            None => Ok(()),
        }
    }

    fn check(&self, spec: &ParamSpec) -> Result<()> {
        let Some((file, info)) = self.find(&spec.name) else {
            return Err(Error::file(
                &self.dir,
                format!("tensor `{}` is missing from the safetensors files", spec.name),
            ));
        };
        if info.dtype == Dtype::U8 && self.find(&format!("{}{}", spec.name, BESIDE_NF4[4])).is_some() {
            let module = spec.name.trim_end_matches(".weight");
            let why = match module {
                "lm_head" => "linear layers of blocks alone can be: quantize the model with `lm_head` among `llm_int8_skip_modules`".to_owned(),
                _ => format!("config.json says that it stays as it is (`llm_int8_skip_modules`): take what names {module} out there"),
            };
            return Err(Error::file(&file.path, format!("tensor `{}` is in NF4, and {why}", spec.name)));
        }
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
    fn check_others(&mut self, config: &ModelConfig, table: &ParamTable) -> Result<()> {
        let known: HashSet<&str> = table.specs.iter().map(|s| s.name.as_str()).collect();
        let nf4: HashSet<&str> = table.nf4.iter().map(|p| p.name.as_str()).collect();
        let in_nf4 = |name: &str| {
            let of = BESIDE_NF4.iter().find_map(|beside| name.strip_suffix(*beside)).unwrap_or(name);
            nf4.contains(of)
        };
        let mut others = HashMap::new();
        for file in &self.files {
            for name in file.meta.offset_keys() {
                if known.contains(name.as_str()) || in_nf4(&name) {
                    continue;
                }
                if name.ends_with(".rotary_emb.inv_freq") {
                    let bytes = small_tensor(file, &name)?;
                    others.insert(name, bytes);
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
        self.others = others;
        Ok(())
    }

    fn check_tied_copy(&self, file: &SourceFile) -> Result<()> {
        let both = [self.find("lm_head.weight"), self.find("model.embed_tokens.weight")];
        if let [Some((file_a, a)), Some((file_b, b))] = both
            && a.dtype == b.dtype
            && equal((file_a, a), (file_b, b))?
        {
            return Ok(());
        }
        Err(Error::file(
            &file.path,
            "`lm_head.weight` differs from `model.embed_tokens.weight`, but config.json ties them; set \
             `tie_word_embeddings` to false if the head is its own",
        ))
    }
}

/// Whether two tensors have the same bytes.
fn equal((file_a, a): (&SourceFile, &TensorInfo), (file_b, b): (&SourceFile, &TensorInfo)) -> Result<bool> {
    let len = |info: &TensorInfo| info.data_offsets.1 - info.data_offsets.0;
    if len(a) != len(b) {
        return Ok(false);
    }
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for start in (0..len(a)).step_by(PIECE) {
        let range = start..len(a).min(start + PIECE);
        if file_a.read(a, range.clone(), &mut of_a)? != file_b.read(b, range, &mut of_b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes of a table that old exporters add: a few hundred.
fn small_tensor(file: &SourceFile, name: &str) -> Result<Vec<u8>> {
    let info = file.meta.info(name).expect("offset_keys lists what the file has");
    let len = info.data_offsets.1 - info.data_offsets.0;
    if len > 1 << 20 {
        return Err(Error::file(
            &file.path,
            format!("tensor `{name}` has {len} bytes; no table of its kind is that long"),
        ));
    }
    let mut bytes = Vec::new();
    file.read(info, 0..len, &mut bytes)?;
    Ok(bytes)
}

/// An index: its bytes, and its `weight_map`.
type Index = (Vec<u8>, Map<String, Value>);

/// The safetensors files of a directory, and the index if that names them: as transformers does, the single file first.
fn file_names(folder: &Inside) -> Result<(Vec<String>, Option<Index>)> {
    if folder.has(SINGLE) {
        return Ok((vec![SINGLE.to_owned()], None));
    }
    let path = folder.path(INDEX);
    let Some(bytes) = folder.read(INDEX, MOST_JSON)? else {
        let other = ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|n| folder.has(n));
        let hint = other.map_or(String::new(), |n| format!(" ({n} is not read: save the model as safetensors)"));
        let dir: PathBuf = folder.path("").components().collect();
        return Err(Error::file(dir, format!("neither {SINGLE} nor {INDEX}{hint}")));
    };
    let (names, map) = shards_of(&path, parse_json(&path, &bytes)?)?;
    Ok((names, Some((bytes, map))))
}

/// The files that an index names, and its `weight_map`.
pub(super) fn shards_of(path: &Path, mut index: Map<String, Value>) -> Result<(Vec<String>, Map<String, Value>)> {
    let map = match index.shift_remove("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        _ => return Err(Error::file(path, "no `weight_map`")),
    };
    let mut names = Vec::new();
    for (tensor, name) in &map {
        // A name, not a path: an index must not reach outside its directory.
        let bad = |want| Error::file(path, format!("`weight_map` gives {name} for `{tensor}`, expected {want}"));
        let Some(name) = name.as_str().filter(|n| Path::new(n).file_name().is_some_and(|f| f == *n)) else {
            return Err(bad("a file name"));
        };
        // An export writes a file of that name, which must not be one that a run writes.
        if !name.ends_with(".safetensors") {
            return Err(bad("a name that ends in .safetensors"));
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    names.dedup();
    Ok((names, map))
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
