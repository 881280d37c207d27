//! A trained model as a Hugging Face directory: the source's tensor names, order, sharding and dtypes; its configuration
//! and tokenizer files copied through. Every file appears whole or not at all.

use super::config::{CONFIG, GENERATION};
use super::dir::{ModelDir, NAMED_TEMPLATES, SideFiles, side_files};
use super::json::{parse_json, set_total_size};
use super::load::{Model, Origin};
use super::params::{ParamSpec, is_adapter};
use super::peft;
use super::save_dtype::SaveDtype;
use super::source::{BESIDE_NF4, INDEX, SINGLE, Source, SourceFile, decode, dtype_bytes};
use crate::backend::{Backend, Float};
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile, Inside, MOST_JSON};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Elements converted at a time.
const PIECE: usize = 1 << 20;

/// What an export did. An update smaller than the spacing of the saved dtype vanishes: compare the two counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Weights written, a tied head counted once.
    pub weights: u64,
    /// Weights that training left different from the source's, before rounding to the saved dtype.
    pub updated: u64,
    /// Weights whose saved value differs from the source's, saved in the same dtype.
    pub changed: u64,
    /// Why the two counts are not known: the source's weights could not be read any more. The model is whole all the same.
    pub not_compared: Option<String>,
    /// Bytes of safetensors files.
    pub bytes: u64,
    /// Files written, by name.
    pub files: Vec<String>,
}

impl ExportReport {
    /// Share of weights that training updated; NaN where it is not known.
    pub fn updated_share(&self) -> f64 {
        if self.not_compared.is_some() {
            return f64::NAN;
        }
        self.updated as f64 / self.weights.max(1) as f64
    }
    /// Share of weights that the saved files really changed; NaN where it is not known.
    pub fn changed_share(&self) -> f64 {
        if self.not_compared.is_some() {
            return f64::NAN;
        }
        self.changed as f64 / self.weights.max(1) as f64
    }
}

/// Writes `model` to `out`, from the `master` weights where given, else from its own.
///
/// A loaded model's other files are copied from where it was loaded. For a model made from scratch, config.json is
/// written, and the tokenizer's files are copied from `side_files`, if given.
///
/// Errors: [`Error::Io`]; [`Error::File`] where `out` holds weights of another layout, or a weight is not finite or
/// does not fit the dtype. Weights of the source that are gone meanwhile are none: see [`ExportReport::not_compared`].
pub fn export<B: Backend>(
    be: &B,
    model: &Model<B>,
    master: Option<&B::Buf<B::Acc>>,
    side_files: Option<&Path>,
    out: &Path,
    save: SaveDtype,
) -> Result<ExportReport> {
    files::make_folder(out)?;
    let not_compared = model.origin.stored().check_whole().err().map(|e| e.to_string());
    let report = ExportReport { not_compared, ..Default::default() };
    let mut e = Exporter { be, model, master, out, save, report };
    if model.config.adapter.is_some() {
        e.adapter(side_files)?;
        return Ok(e.report);
    }
    if model.nf4.is_some() {
        let why = "weights in four bits are written dense by what `ModelDir::dequantized` gives, and as they are by `export_nf4`";
        return Err(Error::usage(why));
    }
    e.refuse_other_layout()?;
    match &model.origin {
        Origin::Dir(dir, source) => {
            for file in &source.files {
                e.source_file(source, file)?;
            }
            match side_files {
                Some(other) => e.side_files_of(other)?,
                None => e.side_files(dir.files().generation.as_deref(), dir.side_files()?)?,
            }
            e.index(source)?;
            e.config(dir)?;
        }
        Origin::Values(_) => {
            let tensors: Vec<_> = model
                .table
                .specs
                .iter()
                .map(|s| Tensor { spec: Some(s), ..Tensor::named(&s.name, s.shape.clone()) })
                .collect();
            e.tensors(SINGLE, &tensors, None, json!({"format": "pt"}))?;
            if let Some(dir) = side_files {
                e.side_files_of(dir)?;
            }
            e.new_config()?;
        }
    }
    Ok(e.report)
}

/// Writes what makes a folder with the model's weights in `save` a model directory: configuration, tokenizer, and whatever
/// else travels with them. As [`export`] writes them.
pub fn export_beside_weights<B: Backend>(be: &B, model: &Model<B>, out: &Path, save: SaveDtype) -> Result<()> {
    let mut e = Exporter { be, model, master: None, out, save, report: ExportReport::default() };
    match &model.origin {
        _ if model.config.adapter.is_some() => e.adapter_config(None),
        Origin::Dir(dir, _) => {
            e.side_files(dir.files().generation.as_deref(), dir.side_files()?)?;
            e.config(dir)
        }
        Origin::Values(_) => e.new_config(),
    }
}

/// A tensor to write: a parameter, or bytes copied as they are.
struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    spec: Option<&'a ParamSpec>,
    /// In the source.
    dtype: Dtype,
    bytes: &'a [u8],
}

impl Tensor<'_> {
    fn named(name: &str, shape: Vec<usize>) -> Self {
        Self { name: name.to_owned(), shape, spec: None, dtype: Dtype::F32, bytes: &[] }
    }
}

/// What pieces of tensors are converted in, kept from one tensor to the next: fresh memory for each takes longer than its
/// conversion.
#[derive(Default)]
struct Room {
    /// Values of either type.
    words: Vec<u64>,
    /// Of the source: values, and bytes as they were read.
    before: Vec<f32>,
    source: Vec<u8>,
    /// As they are saved: now, and before.
    bytes: Vec<u8>,
    bytes_before: Vec<u8>,
}

struct Exporter<'a, B: Backend> {
    be: &'a B,
    model: &'a Model<B>,
    master: Option<&'a B::Buf<B::Acc>>,
    out: &'a Path,
    save: SaveDtype,
    report: ExportReport,
}

impl<B: Backend> Exporter<'_, B> {
    /// A reader would mix ours with files that we do not replace.
    fn refuse_other_layout(&self) -> Result<()> {
        let sharded = matches!(&self.model.origin, Origin::Dir(_, s) if s.index.is_some());
        let other = self.out.join(if sharded { SINGLE } else { INDEX });
        match other.exists() {
            true => Err(Error::file(other, "weights of another model are in the way; choose an empty directory")),
            false => Ok(()),
        }
    }

    /// The adapter alone, in PEFT's form; f32 where nothing else is asked for.
    fn adapter(&mut self, side_files: Option<&Path>) -> Result<()> {
        let specs = self.model.table.specs.iter().filter(|s| is_adapter(&s.name));
        let named = |s: &'_ ParamSpec| format!("{}{}", peft::PREFIX, s.name);
        let tensors: Vec<_> =
            specs.map(|s| Tensor { spec: Some(s), ..Tensor::named(&named(s), s.shape.clone()) }).collect();
        self.tensors(peft::WEIGHTS, &tensors, None, json!({"format": "pt"}))?;
        self.adapter_config(side_files)
    }

    /// What lies beside an adapter's weights: its configuration, tokenizer and end tokens, and no model's configuration.
    fn adapter_config(&mut self, side_files: Option<&Path>) -> Result<()> {
        let Some(shape) = &self.model.config.adapter else { return Ok(()) };
        let mut base = peft::Base::default();
        match (&self.model.origin, side_files) {
            (_, Some(other)) => self.side_files_of(other)?,
            (Origin::Dir(dir, _), None) => {
                self.side_files(dir.files().generation.as_deref(), dir.side_files()?)?;
                base = peft::Base::of(dir.base().path())?;
            }
            (Origin::Values(_), None) => {}
        }
        self.file(peft::CONFIG, peft::config_text(shape, &base).as_bytes())
    }

    fn source_file(&mut self, source: &Source, file: &SourceFile) -> Result<()> {
        let names = file.meta.offset_keys();
        let in_nf4 = |name: &str| source.find(name).is_some_and(|(_, info)| info.dtype == Dtype::U8);
        // What is beside weights in four bits, perhaps in another file, is not beside dense ones.
        let beside = |name: &&String| BESIDE_NF4.iter().filter_map(|b| name.strip_suffix(*b)).any(in_nf4);
        let dense = names.iter().filter(|name| !beside(name));
        let tensors: Vec<_> = dense.map(|name| source_tensor(self.model, (source, file), name)).collect();
        let same = |t: &Tensor| t.spec.is_none() || self.save.of(t.dtype) == t.dtype && !in_nf4(&t.name);
        let same = tensors.len() == names.len() && tensors.iter().all(same);
        let metadata = json!(file.meta.metadata());
        self.tensors(&file.name, &tensors, same.then_some(&file.header[..]), metadata)
    }

    /// Writes one safetensors file. `header`: the source's, where every dtype stays as it was.
    fn tensors(&mut self, name: &str, tensors: &[Tensor], header: Option<&[u8]>, metadata: Value) -> Result<()> {
        let path = self.out.join(name);
        let header = match header {
            Some(header) => header.to_vec(),
            None => self.header(tensors, metadata),
        };
        let mut report = std::mem::take(&mut self.report);
        let (mut bytes, mut room) = (header.len() as u64, Room::default());
        make_file(&path, |w| {
            w.write_all(&header).map_err(Error::io(&path, "write"))?;
            for t in tensors {
                bytes += self.tensor(w, &path, t, (&mut report, &mut room))?;
            }
            Ok(())
        })?;
        report.bytes += bytes;
        report.files.push(name.to_owned());
        self.report = report;
        Ok(())
    }

    fn header(&self, tensors: &[Tensor], metadata: Value) -> Vec<u8> {
        let mut map = Map::new();
        if metadata.is_object() {
            map.insert("__metadata__".into(), metadata);
        }
        let mut at = 0;
        for t in tensors {
            let (dtype, len) = match t.spec {
                Some(spec) => (self.save.of(t.dtype), spec.at.len() * dtype_bytes(self.save.of(t.dtype))),
                None => (t.dtype, t.bytes.len()),
            };
            map.insert(t.name.clone(), json!({"dtype": dtype, "shape": t.shape, "data_offsets": [at, at + len]}));
            at += len;
        }
        let mut text = Value::Object(map).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes()[..], &text].concat()
    }

    /// Writes one tensor's data; returns its bytes.
    fn tensor(
        &self,
        w: &mut dyn Write,
        path: &Path,
        t: &Tensor,
        (report, room): (&mut ExportReport, &mut Room),
    ) -> Result<u64> {
        let Some(spec) = t.spec else {
            w.write_all(t.bytes).map_err(Error::io(path, "write"))?;
            return Ok(t.bytes.len() as u64);
        };
        let count = spec.name == t.name || is_adapter(&spec.name);
        let to = (count.then_some(report), room);
        if !spec.trains {
            return self.frozen(w, path, spec, t.dtype, to);
        }
        match self.master {
            Some(master) => self.weights(w, path, (spec, &spec.grad), t.dtype, master, to),
            None => self.weights(w, path, (spec, &spec.at), t.dtype, &self.model.weights, to),
        }
    }

    fn weights<T: Float>(
        &self,
        w: &mut dyn Write,
        path: &Path,
        (spec, place): (&ParamSpec, &Range<usize>),
        source_dtype: Dtype,
        from: &B::Buf<T>,
        (mut report, room): (Option<&mut ExportReport>, &mut Room),
    ) -> Result<u64> {
        let dtype = self.save.of(source_dtype);
        let origin = self.model.origin.stored();
        let stored = origin.dtype(spec);
        let Room { words, before, source, bytes, bytes_before } = room;
        for start in spec.at.clone().step_by(PIECE) {
            let end = spec.at.end.min(start + PIECE);
            words.resize((end - start).div_ceil(size_of::<u64>() / size_of::<T>()), 0);
            let values = &mut bytemuck::cast_slice_mut::<u64, T>(words)[..end - start];
            let place = place.start + start - spec.at.start..place.start + end - spec.at.start;
            self.be.download(values, self.be.view(from, place))?;
            if !encode(dtype, values, bytes) {
                return Err(not_representable(path, spec, dtype));
            }
            w.write_all(bytes).map_err(Error::io(path, "write"))?;
            let Some(report) = report.as_deref_mut() else { continue };
            report.weights += values.len() as u64;
            let at = (start - spec.at.start) * dtype_bytes(stored)..(end - spec.at.start) * dtype_bytes(stored);
            // What was trained is worth more than the comparison: a source that is gone by now ends that alone.
            match report.not_compared.is_none().then(|| origin.bytes(spec, at, source)) {
                Some(Ok(bytes)) => decode(stored, bytes, before),
                Some(Err(e)) => report.not_compared = Some(e.to_string()),
                None => {}
            }
            if report.not_compared.is_some() {
                continue;
            }
            encode(dtype, before, bytes_before);
            let width = dtype_bytes(dtype);
            let differ = bytes.par_chunks(width).zip(bytes_before.par_chunks(width)).with_min_len(4096);
            report.changed += differ.filter(|(a, b)| a != b).count() as u64;
            let differ = values.par_iter().zip(&before[..]).with_min_len(4096);
            report.updated += differ.filter(|(a, b)| a.to_f64() != f64::from(**b)).count() as u64;
        }
        Ok((spec.at.len() * dtype_bytes(dtype)) as u64)
    }

    /// A tensor that was not trained: what it was, unrounded by the precision of the passes.
    fn frozen(
        &self,
        w: &mut dyn Write,
        path: &Path,
        spec: &ParamSpec,
        source_dtype: Dtype,
        (report, room): (Option<&mut ExportReport>, &mut Room),
    ) -> Result<u64> {
        let (dtype, origin) = (self.save.of(source_dtype), self.model.origin.stored());
        let (stored, Room { source, before, bytes, .. }) = (origin.dtype(spec), room);
        for start in (0..spec.at.len()).step_by(PIECE) {
            let end = spec.at.len().min(start + PIECE);
            let at = start * dtype_bytes(stored)..end * dtype_bytes(stored);
            decode(stored, origin.bytes(spec, at, source)?, before);
            if !encode(dtype, before, bytes) {
                return Err(not_representable(path, spec, dtype));
            }
            w.write_all(bytes).map_err(Error::io(path, "write"))?;
        }
        if let Some(report) = report {
            report.weights += spec.at.len() as u64;
        }
        Ok((spec.at.len() * dtype_bytes(dtype)) as u64)
    }

    /// Copies the generation configuration and tokenizer files of `from`.
    fn side_files_of(&mut self, from: &Path) -> Result<()> {
        let folder = Inside::new(from)?;
        self.side_files(folder.read(GENERATION, MOST_JSON)?.as_deref(), &side_files(&folder)?)
    }

    /// Writes configuration and tokenizer files as they were read.
    fn side_files(&mut self, generation: Option<&[u8]>, others: &SideFiles) -> Result<()> {
        let all = generation.map(|bytes| (GENERATION, bytes)).into_iter();
        all.chain(others.iter().map(|(n, b)| (n.as_str(), b.as_slice())))
            .try_for_each(|(name, bytes)| self.file(name, bytes))
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.out.join(name);
        if name.starts_with(NAMED_TEMPLATES) {
            files::make_folder(&self.out.join(NAMED_TEMPLATES))?;
        }
        make_file(&path, |w| w.write_all(bytes).map_err(Error::io(&path, "write")))?;
        self.report.files.push(name.to_owned());
        Ok(())
    }

    /// The index of a sharded source, its total size brought up to date.
    fn index(&mut self, source: &Source) -> Result<()> {
        let Some(bytes) = &source.index else { return Ok(()) };
        let mut index = parse_json(&source.dir.join(INDEX), bytes)?;
        let was_nf4 = |name: &str| source.find(name).is_some_and(|(_, info)| info.dtype == Dtype::U8);
        let before = index.get("weight_map").and_then(Value::as_object).map_or(0, Map::len);
        if let Some(Value::Object(map)) = index.get_mut("weight_map") {
            map.retain(|name, _| !BESIDE_NF4.iter().filter_map(|b| name.strip_suffix(*b)).any(was_nf4));
        }
        let after = index.get("weight_map").and_then(Value::as_object).map_or(0, Map::len);
        if self.save == SaveDtype::Source && before == after {
            return self.file(INDEX, bytes);
        }
        let sizes = self.model.table.specs.iter().map(|s| {
            let dtype = self.model.origin.stored().dtype(s);
            s.at.len() * dtype_bytes(self.save.of(dtype))
        });
        let total: usize = sizes.sum();
        set_total_size(&mut index, total);
        self.file(INDEX, pretty(&Value::Object(index)).as_bytes())
    }

    /// The source's config.json, its dtype brought up to date.
    fn config(&mut self, dir: &ModelDir) -> Result<()> {
        let bytes = &dir.files().config;
        let dtype = self.save.torch();
        if dtype.is_none() && !dir.is_stored_quantized() {
            return self.file(CONFIG, bytes);
        }
        let mut config = parse_json(&dir.path().join(CONFIG), bytes)?;
        // Dense weights have none.
        config.shift_remove("quantization_config");
        // The first name is transformers 5's, the second 4's.
        for name in ["dtype", "torch_dtype"] {
            if let Some(dtype) = dtype {
                config.insert(name.to_owned(), json!(dtype));
            }
        }
        self.file(CONFIG, pretty(&Value::Object(config)).as_bytes())
    }

    /// config.json and generation_config.json of a model made from scratch.
    fn new_config(&mut self) -> Result<()> {
        let config = &self.model.config;
        let dtype = self.save.torch().unwrap_or("float32");
        let mut json = config.to_json(dtype);
        for name in ["dtype", "torch_dtype"] {
            json[name] = json!(dtype);
        }
        self.file(CONFIG, pretty(&json).as_bytes())?;
        if !config.eos_token_ids.is_empty() && !self.report.files.iter().any(|f| f == GENERATION) {
            let text = pretty(&json!({"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids}));
            self.file(GENERATION, text.as_bytes())?;
        }
        Ok(())
    }
}

/// A tensor of a source file, and the parameter that it holds.
fn source_tensor<'a, B: Backend>(
    model: &'a Model<B>,
    (source, file): (&'a Source, &SourceFile),
    name: &str,
) -> Tensor<'a> {
    let info: &TensorInfo = file.meta.info(name).expect("offset_keys lists what the file has");
    // An old exporter's copy of a tied head follows the embedding.
    let tied = name == "lm_head.weight" && model.config.tie_word_embeddings;
    let spec = model.table.spec(if tied { "model.embed_tokens.weight" } else { name });
    let bytes = source.others.get(name).map_or(&[][..], Vec::as_slice);
    // Of one in four bits, what it was made of.
    let (shape, dtype) = match spec.filter(|_| info.dtype == Dtype::U8) {
        Some(spec) => (spec.shape.clone(), model.origin.stored().dtype(spec)),
        None => (info.shape.clone(), info.dtype),
    };
    Tensor { name: name.to_owned(), shape, spec, dtype, bytes }
}

/// As transformers writes it: two spaces, a newline at the end.
pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Little-endian elements of F32, F16 or BF16, rounded to nearest even; false where one is not finite in that dtype.
fn encode<T: Float>(dtype: Dtype, values: &[T], out: &mut Vec<u8>) -> bool {
    let width = dtype_bytes(dtype);
    out.resize(values.len() * width, 0);
    let pairs = out.par_chunks_exact_mut(width).zip(values).with_min_len(4096);
    pairs
        .map(|(out, v)| match dtype {
            Dtype::F32 => {
                let v = v.to_f64() as f32;
                out.copy_from_slice(&v.to_le_bytes());
                v.is_finite()
            }
            Dtype::BF16 => {
                let v = half::bf16::from_f32(v.to_f64() as f32);
                out.copy_from_slice(&v.to_le_bytes());
                v.is_finite()
            }
            _ => {
                let v = half::f16::from_f32(v.to_f64() as f32);
                out.copy_from_slice(&v.to_le_bytes());
                v.is_finite()
            }
        })
        .reduce(|| true, |a, b| a && b)
}

fn not_representable(path: &Path, spec: &ParamSpec, dtype: Dtype) -> Error {
    Error::file(
        path,
        format!(
            "tensor `{}` has a weight that is not finite in {dtype:?}; use another `options.save_dtype`, or check the training",
            spec.name
        ),
    )
}

/// A file of the model, whole or not at all.
pub(super) fn make_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut buffered = std::io::BufWriter::with_capacity(1 << 20, AtomicFile::create(path)?);
    write(&mut buffered)?;
    buffered.into_inner().map_err(|e| Error::io(path, "write")(e.into_error()))?.commit()
}
