//! Locks that outlive a panic elsewhere: what they guard is valid at any time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
