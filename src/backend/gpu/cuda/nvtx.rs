//! Names for parts of a step in a profiler's time line (NVTX): stages and layers, as the architecture page has them.
//!
//! The library is a profiler's or a toolkit's; where there is none nothing is named, and it costs a test of a pointer.

use crate::backend::ops::device::Mark;
use libloading::Library;
use std::ffi::{CString, c_char, c_int};

/// CUDA 13's library of NVTX 3 for programs that are not C, and that of CUDA 12 and before.
const LIBRARIES: [&str; 3] = ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1"];

/// The library, open.
pub(super) struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
    _library: Library,
}

impl Nvtx {
    /// `None`: there is no such library.
    pub fn open() -> Option<Nvtx> {
        LIBRARIES.into_iter().find_map(|name| {
            // SAFETY: NVIDIA's library has no requirements on loading; the two functions have these types in nvToolsExt.h of
            // every version, and are called only while the library is held here.
            unsafe {
                let library = Library::new(name).ok()?;
                let push = *library.get(b"nvtxRangePushA\0").ok()?;
                let pop = *library.get(b"nvtxRangePop\0").ok()?;
                Some(Nvtx { push, pop, _library: library })
            }
        })
    }

    /// Begins a range inside the last one of this thread that was not ended.
    pub fn push(&self, mark: Mark) {
        let name = CString::new(mark.to_string()).expect("a mark has no NUL");
        // SAFETY: a string that ends in NUL; the library copies it.
        unsafe { (self.push)(name.as_ptr()) };
    }

    /// Ends the last range of this thread.
    pub fn pop(&self) {
        // SAFETY: without a range it answers with a negative number.
        unsafe { (self.pop)() };
    }
}
