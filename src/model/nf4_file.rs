//! Tensors in four bits in safetensors files, by bitsandbytes' names: `NAME` has the codes, `NAME.absmax` and what is beside
//! it the rest. Everything that a file says is checked against the parameter before anything is made of it.

use super::params::Nf4Param;
use super::source::{Source, decode};
use crate::error::{Error, Result};
use crate::quant::nf4::{BLOCK, CODE, blocks};
use crate::quant::tensor::Quantizer;
use crate::quant::{Absmax, Dynamic, Nf4Tensor, Precision, dynamic, state};
use safetensors::tensor::Dtype;
use std::ops::Range;

/// Why a tensor does not fit the configuration.
pub(super) const OTHER_KIND: &str =
    "has magnitudes of another kind than config.json says (`bnb_4bit_use_double_quant`)";
/// What comes after the name of a tensor's state.
pub(super) const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// Longest state: bitsandbytes' have 200 bytes.
const MOST_STATE: usize = 1 << 16;
/// Elements read at a time: whole blocks of blocks.
const PIECE: usize = 1 << 20;

/// Whether the file has that tensor in four bits.
pub(super) fn is_nf4(source: &Source, name: &str) -> bool {
    source.find(name).is_some_and(|(_, info)| info.dtype == Dtype::U8)
}

fn bad(source: &Source, name: &str, why: impl AsRef<str>) -> Error {
    Error::file(&source.dir, format!("tensor `{name}` {}", why.as_ref()))
}

/// Bytes `range` of tensor `name`, which has to have `dtype` and, where given, `len` elements.
fn read(source: &Source, name: &str, dtype: Dtype, len: Option<usize>, range: Option<Range<usize>>) -> Result<Vec<u8>> {
    let (file, info) = source.find(name).ok_or_else(|| bad(source, name, "is missing from the safetensors files"))?;
    if info.dtype != dtype {
        return Err(bad(source, name, format!("has dtype {:?}, expected {dtype:?}", info.dtype)));
    }
    let width = if dtype == Dtype::F32 { 4 } else { 1 };
    let bytes = info.data_offsets.1 - info.data_offsets.0;
    if let Some(len) = len.filter(|len| len.checked_mul(width) != Some(bytes)) {
        return Err(bad(
            source,
            name,
            format!("has {} elements, and the shape of its weight makes it {len}", bytes / width),
        ));
    }
    let range = range.map_or(0..bytes, |r| r.start * width..r.end * width);
    let mut all = Vec::new();
    file.read(info, range, &mut all)?;
    Ok(all)
}

fn floats(source: &Source, name: &str, len: usize, range: Option<Range<usize>>) -> Result<Vec<f32>> {
    Ok(bytemuck::pod_collect_to_vec(&read(source, name, Dtype::F32, Some(len), range)?))
}

/// What the file says of the tensor.
fn state_of(source: &Source, name: &str) -> Result<state::State> {
    let full = format!("{name}{STATE}");
    let Some((_, info)) = source.find(&full) else {
        let other = format!("{name}.quant_state.bitsandbytes__fp4");
        let why = match source.find(&other) {
            Some(_) => "is in FP4: NF4 alone is supported".to_owned(),
            None => format!(
                "has no state (`{full}`): save the model again with bitsandbytes, or use the one that is not quantized"
            ),
        };
        return Err(bad(source, name, why));
    };
    if info.data_offsets.1 - info.data_offsets.0 > MOST_STATE {
        return Err(bad(source, &full, format!("has more than {MOST_STATE} bytes")));
    }
    let bytes = read(source, &full, Dtype::U8, None, None)?;
    state::parse(&bytes).map_err(|why| bad(source, &full, why))
}

/// Checks all that is small of a tensor, and the lengths of the rest.
pub(super) fn check(source: &Source, p: &Nf4Param, double: bool) -> Result<()> {
    let name = &p.name;
    let Some((_, info)) = source.find(name) else {
        return Err(bad(source, name, "is missing from the safetensors files"));
    };
    if info.dtype != Dtype::U8 {
        let why = format!(
            "has dtype {:?} and is not in NF4, and config.json does not say that it stays as it is (`llm_int8_skip_modules`): save the model again, or use the one that is not quantized",
            info.dtype
        );
        return Err(bad(source, name, why));
    }
    let (bytes, wanted) = (info.data_offsets.1 - info.data_offsets.0, p.len.div_ceil(2));
    if bytes != wanted {
        let why = format!("has {bytes} bytes of codes, but config.json makes it {:?}, which takes {wanted}", p.shape);
        return Err(bad(source, name, why));
    }
    let state = state_of(source, name)?;
    if state.shape != p.shape {
        let why = format!("has shape {:?}, but config.json makes it {:?}", state.shape, p.shape);
        return Err(bad(source, name, why));
    }
    let nested = source.find(&format!("{name}.nested_absmax")).is_some();
    if nested != double || state.nested_offset.is_some() != double {
        return Err(bad(source, name, OTHER_KIND));
    }
    let map = floats(source, &format!("{name}.quant_map"), 16, None)?;
    if map != CODE {
        return Err(bad(source, &format!("{name}.quant_map"), "has other values than NF4's"));
    }
    // Nothing of it is kept: what is wrong with its length is said here.
    part(source, p, state, 0..p.len.min(BLOCK))?.map(drop).map_err(|why| bad(source, name, why))
}

/// Elements `range` of a tensor, which begins with a block of blocks.
fn part(source: &Source, p: &Nf4Param, state: state::State, range: Range<usize>) -> Result<Result<Nf4Tensor, String>> {
    let name = &p.name;
    assert!(range.start.is_multiple_of(BLOCK * dynamic::BLOCK) && range.end <= p.len, "{range:?} of {}", p.len);
    let of_blocks = range.start / BLOCK..blocks(range.end);
    let all_blocks = blocks(p.len);
    let codes = read(source, name, Dtype::U8, Some(p.len.div_ceil(2)), Some(range.start / 2..range.end.div_ceil(2)))?;
    let full = format!("{name}.absmax");
    let absmax = match state.nested_offset {
        None => Absmax::Plain(floats(source, &full, all_blocks, Some(of_blocks))?),
        Some(offset) => {
            let of_nested = of_blocks.start / dynamic::BLOCK..of_blocks.end.div_ceil(dynamic::BLOCK);
            let all_nested = all_blocks.div_ceil(dynamic::BLOCK);
            let codes = read(source, &full, Dtype::U8, Some(all_blocks), Some(of_blocks))?;
            let absmax = floats(source, &format!("{name}.nested_absmax"), all_nested, Some(of_nested))?;
            let map = floats(source, &format!("{name}.nested_quant_map"), 256, None)?;
            Absmax::Nested { codes, absmax, map: Box::new(std::array::from_fn(|i| map[i])), offset }
        }
    };
    Ok(Nf4Tensor::of_parts(vec![range.len()], state.dtype, codes, absmax))
}

/// A dtype as four bits remember it.
fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::BF16 => Precision::Bf16,
        _ => Precision::F16,
    }
}

/// What a tensor in four bits was made of.
pub(super) fn dtype(source: &Source, name: &str) -> Result<Dtype> {
    Ok(match state_of(source, name)?.dtype {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::BF16,
        Precision::F16 => Dtype::F16,
    })
}

/// Elements `range` of a tensor that the file has in four bits, as bytes of what it was made of.
pub(super) fn numbers(source: &Source, of: (&str, usize), range: Range<usize>) -> Result<Vec<u8>> {
    let tensor = elements(source, of, range)?;
    let numbers = tensor.values(0..tensor.len());
    Ok(match tensor.dtype {
        Precision::F32 => bytemuck::cast_slice(&numbers).to_vec(),
        Precision::Bf16 => numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Precision::F16 => numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
    })
}

/// Elements `range` of a tensor that the file has in four bits: [`PIECE`]s of it.
fn elements(source: &Source, (name, len): (&str, usize), range: Range<usize>) -> Result<Nf4Tensor> {
    let state = state_of(source, name)?;
    let none = || 0..0;
    let p =
        Nf4Param { name: name.into(), shape: vec![len], len, start: 0, codes: none(), blocks: none(), nested: none() };
    part(source, &p, state, range)?.map_err(|why| bad(source, name, why))
}

/// A parameter in four bits: as the file has it or, with double quantisation where `dynamic` is given, made of what it has.
pub(super) fn tensor(source: &Source, p: &Nf4Param, dynamic: Option<&Dynamic>) -> Result<Nf4Tensor> {
    if is_nf4(source, &p.name) {
        let tensor = elements(source, (&p.name, p.len), 0..p.len)?;
        return Ok(Nf4Tensor { shape: p.shape.clone(), ..tensor });
    }
    let missing = || bad(source, &p.name, "is missing from the safetensors files");
    let (file, info) = source.find(&p.name).ok_or_else(missing)?;
    let width = (info.data_offsets.1 - info.data_offsets.0) / p.len.max(1);
    let wrong = |why: String| bad(source, &p.name, why);
    let mut all = Quantizer::new(&p.shape, precision(info.dtype)).map_err(wrong)?;
    let (mut bytes, mut values) = (Vec::new(), Vec::<f32>::new());
    for start in (0..p.len).step_by(PIECE) {
        let range = start * width..p.len.min(start + PIECE) * width;
        decode(info.dtype, file.read(info, range, &mut bytes)?, &mut values);
        all.push(&values).map_err(wrong)?;
    }
    all.finish(dynamic).map_err(wrong)
}
