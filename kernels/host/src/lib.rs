//! The CUDA kernels of fusedpo as functions of the host: `kernels/*.cu` compiled by the C++ compiler against
//! `cuda_host.h`, one fiber per CUDA thread. A development dependency of `fusedpo`, for its `HostDriver`.

use std::ffi::{CStr, c_char, c_void};

/// Whether the kernels were built with address sanitizer.
pub const SANITIZED: bool = cfg!(sanitized);

/// The kernels as a static library, for tests that link them into something else; `None` without a C++ compiler.
pub const ARCHIVE: Option<&str> = option_env!("FUSEDPO_KERNELS_HOST");

/// A kernel that the host can run.
#[derive(Clone, Copy, Debug)]
pub struct HostKernel {
    /// Exported name, such as `swiglu_fwd_bf16`.
    pub name: &'static str,
    /// Types of its parameters, from the C++ declaration: `bf16*,const bf16*,i32`.
    pub signature: &'static str,
    handle: Handle,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(host_kernels), allow(dead_code))]
struct Handle(*const c_void);
// SAFETY: the pointee is a constant of the program, written by static constructors before main.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

#[cfg(host_kernels)]
mod ffi {
    use super::{c_char, c_void};

    #[repr(C)]
    pub struct Raw {
        pub name: *const c_char,
        pub signature: *const c_char,
        pub kernel: *const c_void,
    }

    unsafe extern "C" {
        pub fn fusedpo_host_kernel(i: usize) -> Raw;
        pub fn fusedpo_host_launch(
            kernel: *const c_void,
            grid: *const u32,
            block: *const u32,
            shared: usize,
            args: *mut *mut c_void,
            seed: u64,
        ) -> *const c_char;
    }
}

/// Every kernel, in no particular order; empty where the crate was built without a C++ compiler.
#[cfg(host_kernels)]
pub fn kernels() -> Vec<HostKernel> {
    // SAFETY: the names are string constants; UTF-8 because C++ identifiers and type names here are ASCII.
    let text = |p: *const c_char| unsafe { CStr::from_ptr(p) }.to_str().expect("ASCII");
    (0..)
        // SAFETY: any index is valid; one past the last gives null names.
        .map(|i| unsafe { ffi::fusedpo_host_kernel(i) })
        .take_while(|raw| !raw.name.is_null())
        .map(|raw| HostKernel { name: text(raw.name), signature: text(raw.signature), handle: Handle(raw.kernel) })
        .collect()
}

/// Every kernel, in no particular order; empty where the crate was built without a C++ compiler.
#[cfg(not(host_kernels))]
pub fn kernels() -> Vec<HostKernel> {
    Vec::new()
}

impl HostKernel {
    /// Runs the kernel to its end on this thread; `seed` draws the order of blocks, warps and lanes. Errors: what
    /// `cuda_host.h` finds wrong.
    ///
    /// # Safety
    /// `args` point at values of the types that `signature` names, and pointers among them at memory that covers
    /// whatever the kernel reads and writes.
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &mut [*mut c_void],
        seed: u64,
    ) -> Result<(), String> {
        #[cfg(host_kernels)]
        {
            // SAFETY: the caller's promise; grid and block are arrays of three.
            let error = unsafe {
                ffi::fusedpo_host_launch(
                    self.handle.0,
                    grid.as_ptr(),
                    block.as_ptr(),
                    shared,
                    args.as_mut_ptr(),
                    seed,
                )
            };
            if error.is_null() {
                return Ok(());
            }
            // SAFETY: a C string that stays until this thread's next launch.
            Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
        }
        #[cfg(not(host_kernels))]
        {
            let _ = (grid, block, shared, args, seed, self.handle);
            Err("built without a C++ compiler".into())
        }
    }
}
