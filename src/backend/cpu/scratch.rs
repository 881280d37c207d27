//! Scratch memory that outlives the op that used it, so that steady state allocates nothing.

use super::scalar::Scalar;
use std::sync::Mutex;

/// Bytes of a cache line: the alignment of every scratch buffer.
const LINE: usize = 64;
/// Words of a cache line.
const WORDS: usize = LINE / size_of::<u64>();

/// Free buffers. As many exist as were ever in use at once; each keeps the largest size it was asked for.
#[derive(Default)]
pub struct Scratch(Mutex<Vec<Vec<u64>>>);

impl Scratch {
    /// Runs `f` on `len` elements of unspecified content, aligned to 64 bytes.
    pub fn with<T: bytemuck::Pod, R>(&self, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let words = (len * size_of::<T>()).div_ceil(LINE) * WORDS;
        // The words before the first whole line are left alone.
        let mut buf = self.take(words + WORDS - 1);
        if buf.len() < words + WORDS - 1 {
            buf.resize(words + WORDS - 1, 0);
        }
        let first = buf.as_ptr().align_offset(LINE);
        let r = f(&mut bytemuck::cast_slice_mut(&mut buf[first..first + words])[..len]);
        self.free().push(buf);
        r
    }

    /// Bytes of all free buffers.
    pub fn bytes(&self) -> usize {
        self.free().iter().map(|b| b.len() * size_of::<u64>()).sum()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u64>>> {
        // A panic elsewhere leaves a valid list behind.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The smallest buffer that is large enough, else the largest.
    fn take(&self, words: usize) -> Vec<u64> {
        let mut free = self.free();
        let best = (0..free.len()).min_by_key(|i| {
            let len = free[*i].len();
            if len >= words { (0, len) } else { (1, usize::MAX - len) }
        });
        best.map(|i| free.swap_remove(i)).unwrap_or_default()
    }
}

/// Cuts the next `len` elements, rounded up to a cache line, off `rest`.
pub(super) fn carve<'a, S: Scalar>(rest: &mut &'a mut [S], len: usize) -> &'a mut [S] {
    let (head, tail) = std::mem::take(rest).split_at_mut(padded::<S>(len));
    *rest = tail;
    &mut head[..len]
}

/// `len` rounded up to whole cache lines.
pub(super) fn padded<S: Scalar>(len: usize) -> usize {
    len.next_multiple_of(LINE / size_of::<S>())
}
