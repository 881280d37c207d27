//! What a machine must have for the CUDA backend.

use super::error::{error, libcuda_is_there};
use super::images;
use crate::error::Result;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute};

/// Oldest compute capability that kernels are written for.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// Oldest driver, by the CUDA version that it serves: older ones lack a call (cuEventElapsedTime_v2).
const LEAST_DRIVER: i32 = 12_080;
/// Oldest cuBLASLt: the calls used here have been the same since. Versions count 12.x as 12xxxx.
const LEAST_CUBLASLT: usize = 120_000;
/// Oldest cuBLASLt with products for compute capability 10.0 and newer.
const LEAST_CUBLASLT_BLACKWELL: usize = 120_800;

/// What is asked of a machine; a trait, so that machines can be made up.
pub(super) trait Machine {
    /// CUDA version of the compiler that made the kernels, as 13000 for 13.0; 0 where the binary has none.
    fn toolkit(&self) -> i32;
    /// What the kernels were compiled for.
    fn targets(&self) -> &[&str];
    /// Whether libcuda can be opened.
    fn has_driver(&self) -> bool;
    /// Whether cuBLASLt can be opened.
    fn has_cublaslt(&self) -> bool;
    /// CUDA version that the driver serves, counted as the toolkit's.
    fn driver(&self) -> Result<i32>;
    /// Version of cuBLASLt.
    fn cublaslt(&self) -> usize;
    /// GPUs.
    fn gpus(&self) -> Result<usize>;
    /// Name and compute capability of a GPU.
    fn gpu(&self, ordinal: usize) -> Result<(String, (i32, i32))>;
}

/// Why GPU number `ordinal` of `machine` cannot be used, or nothing: everything that is missing in one line, or the first
/// thing that is there but will not do.
pub(super) fn refusal(machine: &impl Machine, ordinal: usize) -> Option<String> {
    let missing = [
        (!machine.has_driver()).then_some("no NVIDIA driver on this machine (libcuda.so was not found)"),
        (!machine.has_cublaslt()).then_some(
            "libcublasLt.so was not found: install CUDA 13's cuBLAS (or pip's nvidia-cublas) and put it on LD_LIBRARY_PATH",
        ),
        (machine.toolkit() == 0).then_some(
            "this binary has no CUDA kernels, as no nvcc was found when it was built: scripts/install_nvcc.sh DIR gets \
             one; then build again with FUSEDPO_NVCC=DIR/nvidia/cu13/bin/nvcc",
        ),
    ];
    let missing: Vec<&str> = missing.into_iter().flatten().collect();
    match missing.is_empty() {
        true => unsuitable(machine, ordinal).unwrap_or_else(|e| Some(e.to_string())),
        false => Some(missing.join("; and ")),
    }
}

fn unsuitable(machine: &impl Machine, ordinal: usize) -> Result<Option<String>> {
    let (driver, toolkit) = (machine.driver()?, machine.toolkit());
    // Code for a major version of CUDA runs on every driver of that major version.
    let least = (toolkit / 1000 * 1000).max(LEAST_DRIVER);
    if driver < least {
        let show = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Ok(Some(format!(
            "the NVIDIA driver is too old: it serves CUDA {}, the kernels need {} (driver 580 or newer for CUDA 13)",
            show(driver),
            show(least)
        )));
    }
    let gpus = machine.gpus()?;
    if ordinal >= gpus {
        let hidden = "CUDA_VISIBLE_DEVICES may hide some";
        return Ok(Some(format!("GPU {ordinal} was asked for, this machine has {gpus} ({hidden})")));
    }
    let (name, (major, minor)) = machine.gpu(ordinal)?;
    if (major, minor) < LEAST_CAPABILITY {
        return Ok(Some(format!(
            "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer: use `device` cpu"
        )));
    }
    let targets = machine.targets();
    if !images::serves(targets, (major, minor)) {
        return Ok(Some(format!(
            "{name} has compute capability {major}.{minor}; this binary has kernels for {} alone: build it again with \
             FUSEDPO_CUDA_ARCHS={major}{minor}, or use `device` cpu",
            targets.join(", ")
        )));
    }
    let (least, version) = if major >= 10 { (LEAST_CUBLASLT_BLACKWELL, "12.8") } else { (LEAST_CUBLASLT, "12.0") };
    Ok((machine.cublaslt() < least).then(|| {
        format!(
            "cuBLASLt {} is too old for {name}: {version} or newer is needed (a libcublasLt.so without a number is opened \
             before libcublasLt.so.13: put the newer one's folder first on LD_LIBRARY_PATH)",
            machine.cublaslt()
        )
    }))
}

/// How many GPUs this process sees; none without a driver. Errors: the driver's.
pub fn gpus() -> Result<usize> {
    if !libcuda_is_there() {
        return Ok(0);
    }
    result::init().map_err(error("start the driver"))?;
    ThisMachine.gpus()
}

/// Why this machine or this binary cannot use a GPU, or nothing: for `--device auto`.
pub fn unavailable() -> Option<String> {
    unavailable_at(0)
}

/// Why GPU number `ordinal` cannot be used, or nothing.
pub fn unavailable_at(ordinal: usize) -> Option<String> {
    refusal(&ThisMachine, ordinal)
}

/// CUDA version that the driver serves, as 13000 for 13.0.
pub(super) fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(error("ask for the driver's version"))?;
    Ok(version)
}

/// The machine that this runs on.
pub(super) struct ThisMachine;

impl Machine for ThisMachine {
    fn toolkit(&self) -> i32 {
        if images::FATBINS.is_empty() { 0 } else { images::TOOLKIT }
    }
    fn targets(&self) -> &[&str] {
        images::TARGETS
    }
    fn has_driver(&self) -> bool {
        libcuda_is_there()
    }
    fn has_cublaslt(&self) -> bool {
        // SAFETY: only tries to open the library.
        unsafe { cudarc::cublaslt::sys::is_culib_present() }
    }
    fn driver(&self) -> Result<i32> {
        result::init().map_err(error("start the driver"))?;
        driver_version()
    }
    fn cublaslt(&self) -> usize {
        // SAFETY: takes nothing; asked only where the library is there.
        unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() }
    }
    fn gpus(&self) -> Result<usize> {
        Ok(result::device::get_count().map_err(error("count the GPUs"))?.max(0) as usize)
    }
    fn gpu(&self, ordinal: usize) -> Result<(String, (i32, i32))> {
        let device = result::device::get(ordinal as i32).map_err(error("find the GPU"))?;
        let name = result::device::get_name(device).map_err(error("ask for the GPU's name"))?;
        let attribute = |which| {
            // SAFETY: a device that was found just now.
            unsafe { result::device::get_attribute(device, which) }.map_err(error("ask for the GPU's architecture"))
        };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok((name, (major, attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::driver::result::DriverError;
    use cudarc::driver::sys::CUresult;

    /// A machine on which everything is right.
    struct Made {
        toolkit: i32,
        targets: &'static [&'static str],
        libraries: [bool; 2],
        driver: Result<i32, CUresult>,
        cublaslt: usize,
        gpus: Vec<(&'static str, (i32, i32))>,
    }

    fn good() -> Made {
        let gpus = vec![("NVIDIA H100 80GB HBM3", (9, 0))];
        let targets = &["80", "90a", "100", "120", "ptx80"];
        Made { toolkit: 13000, targets, libraries: [true; 2], driver: Ok(13020), cublaslt: 130100, gpus }
    }

    impl Machine for Made {
        fn toolkit(&self) -> i32 {
            self.toolkit
        }
        fn targets(&self) -> &[&str] {
            self.targets
        }
        fn has_driver(&self) -> bool {
            self.libraries[0]
        }
        fn has_cublaslt(&self) -> bool {
            self.libraries[1]
        }
        fn driver(&self) -> Result<i32> {
            assert!(self.libraries[0], "asked without a driver");
            self.driver.map_err(|code| error("start the driver")(DriverError(code)))
        }
        fn cublaslt(&self) -> usize {
            assert!(self.libraries[1], "asked without the library");
            self.cublaslt
        }
        fn gpus(&self) -> Result<usize> {
            Ok(self.gpus.len())
        }
        fn gpu(&self, ordinal: usize) -> Result<(String, (i32, i32))> {
            Ok((self.gpus[ordinal].0.to_owned(), self.gpus[ordinal].1))
        }
    }

    #[test]
    fn a_good_machine_is_taken() {
        for capability in [(8, 0), (8, 6), (9, 0), (10, 0), (11, 0), (12, 0)] {
            assert_eq!(refusal(&Made { gpus: vec![("a GPU", capability)], ..good() }, 0), None);
        }
        assert_eq!(refusal(&Made { driver: Ok(13000), ..good() }, 0), None);
    }

    #[test]
    fn bad_machines_are_refused_in_one_line() {
        let no_driver = "no NVIDIA driver on this machine (libcuda.so was not found)";
        let cases = [
            (Made { libraries: [false, true], ..good() }, 0, no_driver),
            (
                Made { libraries: [false; 2], ..good() },
                0,
                "(libcuda.so was not found); and libcublasLt.so was not found",
            ),
            (Made { libraries: [true, false], ..good() }, 0, "libcublasLt.so was not found: install CUDA 13's cuBLAS"),
            (Made { toolkit: 0, ..good() }, 0, "this binary has no CUDA kernels, as no nvcc was found"),
            (
                Made { driver: Ok(12080), ..good() },
                0,
                "the NVIDIA driver is too old: it serves CUDA 12.8, the kernels need 13.0 (driver 580",
            ),
            (Made { driver: Err(CUresult::CUDA_ERROR_NO_DEVICE), ..good() }, 0, "CUDA: cannot start the driver: "),
            (
                Made { toolkit: 12040, driver: Ok(12060), ..good() },
                0,
                "the NVIDIA driver is too old: it serves CUDA 12.6, the kernels need 12.8",
            ),
            (
                Made { cublaslt: 110_904, ..good() },
                0,
                "cuBLASLt 110904 is too old for NVIDIA H100 80GB HBM3: 12.0 or newer is needed",
            ),
            (
                Made { cublaslt: 120_703, gpus: vec![("NVIDIA B200", (10, 0))], ..good() },
                0,
                "cuBLASLt 120703 is too old for NVIDIA B200: 12.8 or newer is needed (a libcublasLt.so without a number",
            ),
            (Made { gpus: vec![], ..good() }, 0, "GPU 0 was asked for, this machine has 0 (CUDA_VISIBLE_DEVICES may"),
            (good(), 3, "GPU 3 was asked for, this machine has 1"),
            (
                Made { gpus: vec![("Tesla V100-SXM2-16GB", (7, 0))], ..good() },
                0,
                "Tesla V100-SXM2-16GB has compute capability 7.0; the kernels need 8.0 (Ampere) or newer: use `device` cpu",
            ),
            (
                Made { targets: &["90a", "100"], gpus: vec![("NVIDIA A100", (8, 0))], ..good() },
                0,
                "NVIDIA A100 has compute capability 8.0; this binary has kernels for 90a, 100 alone: build it again with \
                 FUSEDPO_CUDA_ARCHS=80, or use `device` cpu",
            ),
        ];
        for (machine, ordinal, want) in cases {
            let why = refusal(&machine, ordinal).expect(want);
            assert!(why.contains(want) && !why.contains('\n'), "{why}, not {want}");
        }
    }
}
