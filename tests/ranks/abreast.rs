//! Jobs side by side. A job waits most of the time, for its launcher and for ranks that let another speak first.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Does `f` with each of `all`, in order, up to `most` at a time.
pub fn abreast<T: Sync>(most: usize, all: &[T], f: impl Fn(&T) + Sync) {
    let (next, f) = (AtomicUsize::new(0), &f);
    std::thread::scope(|scope| {
        for _ in 0..most.min(all.len()) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    f(one);
                }
            });
        }
    });
}

/// Every one of the first with every one of the second.
#[allow(dead_code)] // standin has no use for it
pub fn pairs<A: Clone, B: Clone>(first: &[A], second: &[B]) -> Vec<(A, B)> {
    first.iter().flat_map(|a| second.iter().map(move |b| (a.clone(), b.clone()))).collect()
}
