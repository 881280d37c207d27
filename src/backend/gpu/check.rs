//! Lengths of arguments, checked before anything is launched.

use crate::backend::ops::device::AttnShape;
use crate::error::{Error, Result};

pub(super) use crate::error::expect_len as len;

/// Rows of `width` elements in an argument of `got` elements.
pub(super) fn rows(op: &'static str, name: &'static str, got: usize, width: usize) -> Result<usize> {
    if width > 0 && got.is_multiple_of(width) {
        return Ok(got / width);
    }
    Err(Error::Shape { op, name, got, want: 0, shape: format!("a multiple of {width}") })
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

/// Checks `size <= most`.
pub(super) fn at_most(op: &'static str, name: &'static str, size: usize, most: usize) -> Result<()> {
    if size <= most {
        return Ok(());
    }
    Err(Error::Shape { op, name, got: size, want: most, shape: format!("at most {most}: what the kernel can take") })
}

/// Checks attention geometry.
pub(super) fn attn(op: &'static str, s: &AttnShape) -> Result<()> {
    if s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0 && s.heads.is_multiple_of(s.kv_heads) {
        return Ok(());
    }
    let shape = format!("a multiple of kv_heads={}, head_dim={} of at least 1", s.kv_heads, s.head_dim);
    Err(Error::Shape { op, name: "heads", got: s.heads, want: s.kv_heads, shape })
}

/// Checks that `columns` are some of `out`.
pub(super) fn columns(op: &'static str, columns: &std::ops::Range<usize>, out: usize) -> Result<()> {
    if columns.start < columns.end && columns.end <= out {
        return Ok(());
    }
    let shape = format!("columns {columns:?} within {out}, at least one");
    Err(Error::Shape { op, name: "columns", got: columns.end, want: out, shape })
}
