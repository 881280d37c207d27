//! The host driver over the kernels that `kernels/host` compiled.

use fusedpo::backend::gpu::host::{HostDriver, HostKernel};
use std::ffi::c_void;

struct Compiled(fusedpo_kernels_host::HostKernel);

impl HostKernel for Compiled {
    fn name(&self) -> &str {
        self.0.name
    }
    fn signature(&self) -> &str {
        self.0.signature
    }
    unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &mut [*mut c_void],
        seed: u64,
    ) -> Result<(), String> {
        // SAFETY: the same contract, word for word.
        unsafe { self.0.launch(grid, block, shared, args, seed) }
    }
}

/// The kernels on the host; `None`, said on stderr, where they were built without a C++ compiler.
pub fn host_driver(seed: u64) -> Option<HostDriver> {
    let kernels = fusedpo_kernels_host::kernels();
    if kernels.is_empty() {
        eprintln!("skipped: kernels on the host (there was no C++ compiler when this was built)");
        return None;
    }
    Some(HostDriver::new(kernels.into_iter().map(|k| Box::new(Compiled(k)) as Box<dyn HostKernel>), seed))
}
