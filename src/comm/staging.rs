//! Memory that a transfer reads or fills.

use crate::error::{Error, Result};
use bytemuck::Pod;

/// Bytes that are aligned for any number, with room for one more behind them. A transfer that failed keeps them: whoever still
/// writes there writes nowhere else.
#[derive(Clone, Debug)]
pub struct Staging {
    words: Vec<u64>,
    len: usize,
}

impl Default for Staging {
    fn default() -> Self {
        Self { words: vec![0], len: 0 }
    }
}

impl Staging {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut this = Self::default();
        this.resize(bytes.len());
        this.bytes_mut().copy_from_slice(bytes);
        this
    }

    /// Makes it `len` bytes long. What is within both lengths stays.
    pub fn resize(&mut self, len: usize) {
        self.words.resize(len / 8 + 1, 0);
        self.len = len;
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    /// Its bytes as numbers; panics unless they are whole ones.
    pub fn numbers<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    /// [`Staging::numbers`], to be changed.
    pub fn numbers_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Leaves its memory to whoever may still write there, and is empty from here on.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.words));
        self.len = 0;
    }
}

/// Refuses lengths that are not one for each of `size` ranks, or more in all than a library can count.
pub(super) fn check(to: &[usize], from: &[usize], size: usize) -> Result<()> {
    for (name, lengths) in [("to", to), ("from", from)] {
        if lengths.len() != size {
            let (got, shape) = (lengths.len(), "ranks".to_owned());
            return Err(Error::Shape { op: "exchange", name, got, want: size, shape });
        }
        let sum = lengths.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)).unwrap_or(usize::MAX);
        if sum > i32::MAX as usize {
            return Err(Error::Device(format!("exchange: {sum} bytes at once, and a library counts to {}", i32::MAX)));
        }
    }
    Ok(())
}
