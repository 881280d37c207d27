//! Weights as they are stored: in a directory's files, with an adapter beside them, or in memory.

use super::adapter::AdapterWeights;
use super::nf4_file;
use super::params::{Nf4Param, ParamSpec};
use super::source::{Source, SourceFile, dtype_bytes};
use crate::error::{Error, Result};
use crate::quant::{Dynamic, Nf4Tensor};
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::ops::Range;

/// Weights as they are stored, in files or in memory.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    /// The files of a directory, and an adapter beside them.
    Files(&'a Source, Option<&'a AdapterWeights>),
    /// Values in the table's layout.
    Values(&'a [f32]),
}

impl<'a> Stored<'a> {
    /// Fails where a file was cut short since it was opened: said before the work, not in the middle of it.
    pub fn check_whole(self) -> Result<()> {
        match self {
            Stored::Files(source, _) => source.files.iter().try_for_each(SourceFile::check_whole),
            Stored::Values(_) => Ok(()),
        }
    }

    /// A tensor's dtype. Present: [`Source::open`] found every tensor of the table.
    /// Of one in four bits, what it was made of.
    pub fn dtype(self, spec: &ParamSpec) -> Dtype {
        match self {
            Stored::Files(_, Some(adapter)) if adapter.has(&spec.name) => Dtype::F32,
            Stored::Files(source, _) => match source.find(&spec.name).expect("checked by Source::open").1.dtype {
                Dtype::U8 => nf4_file::dtype(source, &spec.name).unwrap_or(Dtype::F32),
                dtype => dtype,
            },
            Stored::Values(_) => Dtype::F32,
        }
    }

    /// Bytes `range` of a tensor, little-endian; read into `buf` where they lie in a file. What is there in four bits is made
    /// numbers of, in pieces that begin with a block of blocks.
    pub fn bytes<'b>(self, spec: &ParamSpec, range: Range<usize>, buf: &'b mut Vec<u8>) -> Result<&'b [u8]>
    where
        'a: 'b,
    {
        match self {
            Stored::Files(_, Some(adapter)) if adapter.has(&spec.name) => {
                let elements = range.start / size_of::<f32>()..range.end / size_of::<f32>();
                Ok(match adapter.get(&spec.name, Some(elements)) {
                    Some(Cow::Borrowed(values)) => bytemuck::cast_slice(values),
                    made => {
                        buf.clear();
                        made.iter().for_each(|values| buf.extend_from_slice(bytemuck::cast_slice(values)));
                        buf
                    }
                })
            }
            Stored::Files(source, _) => {
                let (file, info) = source.find(&spec.name).expect("checked by Source::open");
                if info.dtype == Dtype::U8 {
                    let width = dtype_bytes(self.dtype(spec));
                    let elements = range.start / width..range.end / width;
                    *buf = nf4_file::numbers(source, (&spec.name, spec.at.len()), elements)?;
                    return Ok(buf);
                }
                file.read(info, range, buf)
            }
            Stored::Values(values) => Ok(&bytemuck::cast_slice(&values[spec.at.clone()])[range]),
        }
    }

    /// A parameter in four bits: as it is stored or, with double quantisation where `dynamic` is given, made of that.
    pub fn nf4(self, p: &Nf4Param, dynamic: Option<&Dynamic>) -> Result<Nf4Tensor> {
        match self {
            Stored::Files(source, _) => nf4_file::tensor(source, p, dynamic),
            Stored::Values(_) => {
                Err(Error::usage("weights in four bits are made of a directory's, not of values that are given"))
            }
        }
    }

    /// An error about a tensor.
    pub fn bad(self, name: &str, why: &str) -> Error {
        let why = format!("tensor `{name}` {why}");
        match self {
            Stored::Files(source, _) => Error::file(&source.dir, why),
            Stored::Values(_) => Error::usage(why),
        }
    }

    /// What a tensor with NaN or infinity means.
    pub fn not_finite(self, spec: &ParamSpec) -> Error {
        self.bad(&spec.name, "holds NaN or infinity; the checkpoint is damaged")
    }
}
