//! Scratch memory that outlives the op that used it, so that steady state allocates nothing.

use super::Real;
use super::gemm::{K_BLOCK, SHARED};
use std::sync::Mutex;

/// A cache line: the alignment of every scratch buffer.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([u64; 8]);

// SAFETY: any bytes are valid u64s, and 64 bytes of 64-byte alignment leave no padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; `repr(C)`, Copy, no references.
unsafe impl bytemuck::Pod for Line {}

/// Free buffers. As many exist as were ever in use at once; each keeps the largest size it was asked for.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<Line>>>);

impl Scratch {
    /// Runs `f` on `len` elements of unspecified content, aligned to 64 bytes.
    pub fn with<T: bytemuck::Pod, R>(&self, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let mut buf = self.take(lines);
        if buf.len() < lines {
            buf.resize(lines, Line::default());
        }
        let r = f(&mut bytemuck::cast_slice_mut(&mut buf)[..len]);
        self.free().push(buf);
        r
    }

    /// Bytes of all free buffers.
    pub fn bytes(&self) -> usize {
        self.free().iter().map(|b| b.len() * size_of::<Line>()).sum()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Vec<Line>>> {
        // A panic elsewhere leaves a valid list behind.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The smallest buffer that is large enough, else the largest.
    fn take(&self, lines: usize) -> Vec<Line> {
        let mut free = self.free();
        let best = (0..free.len()).min_by_key(|i| {
            let len = free[*i].len();
            if len >= lines { (0, len) } else { (1, usize::MAX - len) }
        });
        best.map(|i| free.swap_remove(i)).unwrap_or_default()
    }
}

/// Most that a thread's own task asks for: a block of packed columns that stays in L2, or the tiles of attention.
const TASK_BYTES: usize = 1 << 20;

/// Bytes that [`Scratch`] comes to at most in steps of `rows` slots at a hidden size of `dim`: one operand of a product is
/// packed for all threads, and is the smaller one; the other, and everything else, by task.
pub(super) fn bound<S>(rows: usize, dim: usize) -> usize {
    let block = rows.max(dim).next_multiple_of(64) * K_BLOCK * size_of::<S>();
    block.max(SHARED) + rayon::current_num_threads() * TASK_BYTES
}

/// Cuts the next `len` elements, rounded up to a cache line, off `rest`.
pub(super) fn carve<'a, S: Real>(rest: &mut &'a mut [S], len: usize) -> &'a mut [S] {
    let (head, tail) = std::mem::take(rest).split_at_mut(padded::<S>(len));
    *rest = tail;
    &mut head[..len]
}

/// `len` rounded up to whole cache lines.
pub(super) fn padded<S: Real>(len: usize) -> usize {
    len.next_multiple_of(64 / size_of::<S>())
}
