//! Lengths of arguments, checked before anything is computed.

use crate::backend::ops::device::AttnShape;
use crate::error::{Error, Result};

pub(super) use crate::error::expect_len as len;

/// Rows of `width` elements in an argument of `got` elements.
pub(super) fn rows(op: &'static str, name: &'static str, got: usize, width_name: &str, width: usize) -> Result<usize> {
    if width > 0 && got.is_multiple_of(width) {
        return Ok(got / width);
    }
    let want = if width == 0 { 0 } else { got.next_multiple_of(width) };
    Err(Error::Shape { op, name, got, want, shape: format!("rows * {width_name}={width}") })
}

/// Checks that an argument has at least the product of `dims`.
pub(super) fn at_least(op: &'static str, name: &'static str, got: usize, dims: &[(&str, usize)]) -> Result<()> {
    let want = dims.iter().try_fold(1usize, |n, (_, d)| n.checked_mul(*d)).unwrap_or(usize::MAX);
    if got >= want {
        return Ok(());
    }
    let shape = dims.iter().map(|(n, d)| format!("{n}={d}")).collect::<Vec<_>>().join(" * ");
    Err(Error::Shape { op, name, got, want, shape: format!("at least {shape}") })
}

/// Checks a size that must not be 0.
pub(super) fn nonzero(op: &'static str, name: &'static str, size: usize) -> Result<()> {
    if size > 0 {
        return Ok(());
    }
    Err(Error::Shape { op, name, got: 0, want: 1, shape: format!("{name} of at least 1") })
}

/// Checks attention geometry.
pub(super) fn attn(op: &'static str, shape: &AttnShape) -> Result<()> {
    nonzero(op, "heads", shape.heads)?;
    nonzero(op, "kv_heads", shape.kv_heads)?;
    nonzero(op, "head_dim", shape.head_dim)?;
    if shape.heads.is_multiple_of(shape.kv_heads) {
        return Ok(());
    }
    let want = shape.heads.next_multiple_of(shape.kv_heads);
    Err(Error::Shape {
        op,
        name: "heads",
        got: shape.heads,
        want,
        shape: format!("a multiple of kv_heads={}", shape.kv_heads),
    })
}

/// Checks that `columns` are some of `out`.
pub(super) fn columns(op: &'static str, columns: &std::ops::Range<usize>, out: usize) -> Result<()> {
    if columns.start < columns.end && columns.end <= out {
        return Ok(());
    }
    let shape = format!("columns {columns:?} within {out}, at least one");
    Err(Error::Shape { op, name: "columns", got: columns.end, want: out, shape })
}
