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

/// The kernels on the host; `None`, said on stderr, where they were built without a C++ compiler or only a GPU is to be
/// tested (`common/device.rs`).
pub fn host_driver(seed: u64) -> Option<HostDriver> {
    Some(fenced(HostDriver::new(compiled()?, seed)))
}

/// [`host_driver`] that runs nothing before somebody waits.
#[allow(dead_code)]
pub fn deferred_driver(seed: u64) -> Option<HostDriver> {
    Some(fenced(HostDriver::deferred(compiled()?, seed)))
}

fn fenced(driver: HostDriver) -> HostDriver {
    if fusedpo_kernels_host::SANITIZED { driver.without_fences() } else { driver }
}

fn compiled() -> Option<Vec<Box<dyn HostKernel>>> {
    if std::env::var("FUSEDPO_REQUIRE_GPU").is_ok_and(|v| v == "only") {
        eprintln!("skipped: kernels on the host (FUSEDPO_REQUIRE_GPU=only)");
        return None;
    }
    let kernels = fusedpo_kernels_host::kernels();
    if kernels.is_empty() {
        eprintln!("skipped: kernels on the host (there was no C++ compiler when this was built)");
        return None;
    }
    Some(kernels.into_iter().map(|k| Box::new(Compiled(k)) as Box<dyn HostKernel>).collect())
}

/// The kernels on the host, those that exist with `fault` planted replaced by their faulty twins.
#[allow(dead_code)]
pub fn host_driver_with_fault(seed: u64, fault: &str) -> Option<HostDriver> {
    struct Faulty(Compiled, String);
    impl HostKernel for Faulty {
        fn name(&self) -> &str {
            &self.1
        }
        fn signature(&self) -> &str {
            self.0.signature()
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
    host_driver(seed)?;
    let mark = format!("_fault_{fault}");
    let (faulty, right): (Vec<_>, Vec<_>) =
        fusedpo_kernels_host::kernels().into_iter().partition(|k| k.name.contains(&mark));
    assert!(!faulty.is_empty(), "no kernel was compiled with the fault `{fault}`");
    let named = |k: fusedpo_kernels_host::HostKernel| (k.name.replace(&mark, ""), k);
    // Later entries replace earlier ones of the same name.
    let all = right.into_iter().map(|k| (k.name.to_owned(), k)).chain(faulty.into_iter().map(named));
    let all = all.map(|(name, k)| Box::new(Faulty(Compiled(k), name)) as Box<dyn HostKernel>);
    Some(HostDriver::new(all, seed))
}
