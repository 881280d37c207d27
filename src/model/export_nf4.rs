//! A model directory in four bits, as transformers with bitsandbytes writes and reads it: the source's files, in which linear
//! weights of blocks are NF4 with what is beside them, and everything else is what it was.

use super::config::{CONFIG, GENERATION, quantization_json};
use super::dir::ModelDir;
use super::export::{make_file, pretty};
use super::json::{parse_json, set_total_size};
use super::nf4_file::STATE;
use super::params::Nf4Param;
use super::source::{INDEX, Source, SourceFile};
use super::stored::Stored;
use crate::error::{Error, Result};
use crate::files;
use crate::quant::{Absmax, Dynamic, Nf4Tensor, nf4, state};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Bytes copied at a time.
const PIECE: usize = 4 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nf4Report {
    /// Weights in four bits.
    pub quantized: u64,
    /// Weights that are what they were.
    pub others: u64,
    /// Bytes of safetensors files.
    pub bytes: u64,
}

/// Writes `dir`, a model that [`ModelDir::quantized`] gave, to `out`.
///
/// Errors: [`Error::Usage`] for a model that is not quantized, or is stored so, or has an adapter; [`Error::File`] for weights
/// that are damaged; [`Error::Io`].
pub fn export_nf4(dir: &ModelDir, out: &Path) -> Result<Nf4Report> {
    let Some(how) = dir.config().quantized.filter(|_| !dir.is_stored_quantized() && dir.adapter().is_none()) else {
        return Err(Error::usage(
            "a model without adapter, whose weights this program quantized, can be written in NF4",
        ));
    };
    files::make_folder(out)?;
    let side_files = dir.side_files()?;
    let weights = dir.weights()?;
    let params = weights.table.nf4.iter().map(|p| (p.name.as_str(), p)).collect();
    let dynamic = how.double.then(Dynamic::new);
    let mut writer =
        Writer { source: &weights.source, params, dynamic, report: Nf4Report::default(), total: 0, map: Map::new() };
    for file in &weights.source.files {
        writer.file(file, out)?;
    }
    let Writer { report, total, map, .. } = writer;
    if let Some(bytes) = &weights.source.index {
        let mut index = parse_json(&weights.source.dir.join(INDEX), bytes)?;
        index.insert("weight_map".into(), Value::Object(map));
        set_total_size(&mut index, total);
        write(out, INDEX, pretty(&Value::Object(index)).as_bytes())?;
    }
    let others = dir.files().generation.as_deref().map(|bytes| (GENERATION, bytes)).into_iter();
    let others = others.chain(side_files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    others.into_iter().try_for_each(|(name, bytes)| write(out, name, bytes))?;
    let mut config = parse_json(&dir.path().join(CONFIG), &dir.files().config)?;
    config.insert("quantization_config".into(), quantization_json(how));
    write(out, CONFIG, pretty(&Value::Object(config)).as_bytes())?;
    Ok(report)
}

fn write(out: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = out.join(name);
    if let Some(folder) = path.parent().filter(|folder| *folder != out) {
        files::make_folder(folder)?;
    }
    make_file(&path, |w| w.write_all(bytes).map_err(Error::io(&path, "write")))
}

/// A tensor to write, and where its bytes come from.
struct Entry<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    of: &'a str,
}

struct Writer<'a> {
    source: &'a Source,
    params: HashMap<&'a str, &'a Nf4Param>,
    dynamic: Option<Dynamic>,
    report: Nf4Report,
    /// Bytes of tensors, and which file each is in.
    total: u64,
    map: Map<String, Value>,
}

impl Writer<'_> {
    fn file(&mut self, file: &SourceFile, out: &Path) -> Result<()> {
        let names = file.meta.offset_keys();
        let mut entries = Vec::new();
        for name in &names {
            self.entries(file, name, &mut entries)?;
        }
        let header = self.header(&entries, file);
        self.report.bytes += header.len() as u64;
        let path = out.join(&file.name);
        make_file(&path, |w| {
            w.write_all(&header).map_err(Error::io(&path, "write"))?;
            for name in &names {
                self.tensor(file, name, w, &path)?;
            }
            Ok(())
        })
    }

    fn quantized(&self, name: &str) -> Option<Result<Nf4Tensor>> {
        let p = self.params.get(name)?;
        Some(Stored::Files(self.source, None).nf4(p, self.dynamic.as_ref()))
    }

    /// What tensor `name` of the source becomes.
    fn entries<'n>(&mut self, file: &SourceFile, name: &'n str, to: &mut Vec<Entry<'n>>) -> Result<()> {
        let info = file.meta.info(name).expect("offset_keys lists what the file has");
        let mut add = |suffix: &str, dtype: Dtype, shape: Vec<usize>, bytes: usize| {
            to.push(Entry { name: format!("{name}{suffix}"), dtype, shape, bytes, of: name });
        };
        match self.quantized(name).transpose()? {
            None => {
                add("", info.dtype, info.shape.clone(), info.data_offsets.1 - info.data_offsets.0);
                self.report.others += info.shape.iter().product::<usize>() as u64;
            }
            Some(t) => {
                self.report.quantized += t.len() as u64;
                for (suffix, dtype, shape, bytes) in parts(&t) {
                    add(suffix, dtype, shape, bytes.len());
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, entries: &[Entry<'_>], file: &SourceFile) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut at = 0;
        for e in entries {
            debug_assert!(e.name.starts_with(e.of));
            map.insert(e.name.clone(), json!({"dtype": e.dtype, "shape": e.shape, "data_offsets": [at, at + e.bytes]}));
            self.map.insert(e.name.clone(), json!(file.name));
            at += e.bytes;
        }
        self.total += at as u64;
        self.report.bytes += at as u64;
        let mut text = Value::Object(map).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes()[..], &text].concat()
    }

    fn tensor(&self, file: &SourceFile, name: &str, w: &mut dyn Write, path: &Path) -> Result<()> {
        let put = |w: &mut dyn Write, bytes: &[u8]| w.write_all(bytes).map_err(Error::io(path, "write"));
        if let Some(t) = self.quantized(name).transpose()? {
            return parts(&t).into_iter().try_for_each(|(.., bytes)| put(w, &bytes));
        }
        let info = file.meta.info(name).expect("offset_keys lists what the file has");
        let (len, mut buf) = (info.data_offsets.1 - info.data_offsets.0, Vec::new());
        for start in (0..len).step_by(PIECE) {
            put(w, file.read(info, start..len.min(start + PIECE), &mut buf)?)?;
        }
        Ok(())
    }
}

/// A tensor in files: what comes after its name, and each part. Those of four bytes come first. Nothing behind a
/// state is aligned: readers copy.
fn parts(t: &Nf4Tensor) -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
    let floats = |x: &[f32]| bytemuck::cast_slice::<f32, u8>(x).to_vec();
    let state = state::text(t).into_bytes();
    let mut all = vec![(".quant_map", Dtype::F32, vec![nf4::CODE.len()], floats(&nf4::CODE))];
    let mut bytes = vec![("", Dtype::U8, vec![t.codes.len(), 1], t.codes.clone())];
    match &t.absmax {
        Absmax::Plain(absmax) => all.push((".absmax", Dtype::F32, vec![absmax.len()], floats(absmax))),
        Absmax::Nested { codes, absmax, map, .. } => {
            all.push((".nested_absmax", Dtype::F32, vec![absmax.len()], floats(absmax)));
            all.push((".nested_quant_map", Dtype::F32, vec![map.len()], floats(&map[..])));
            bytes.push((".absmax", Dtype::U8, vec![codes.len()], codes.clone()));
        }
    }
    bytes.push((STATE, Dtype::U8, vec![state.len()], state));
    all.extend(bytes);
    all
}
