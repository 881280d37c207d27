//! Libraries that panic on damaged files: the panic becomes an error.
//!
//! A panic is printed by the process's panic hook before anybody can catch it. The hook is the program's own; it may ask
//! [`is_guarded`] and keep silent, as the user gets one line about the file.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; `None` where it panics. What `f` changes must not be used after a panic.
pub(crate) fn guarded<T>(f: impl FnOnce() -> T) -> Option<T> {
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(before);
    result.ok()
}

/// For a panic hook: whether a panic on this thread is caught here and becomes an error, so that there is nothing to say.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_a_hook_can_tell() {
        assert!(!is_guarded());
        assert_eq!(guarded(|| guarded(is_guarded).map(|inner| (inner, is_guarded()))), Some(Some((true, true))));
        assert_eq!(guarded(|| -> u8 { panic!("as libraries do") }), None);
        assert!(!is_guarded());
    }
}
