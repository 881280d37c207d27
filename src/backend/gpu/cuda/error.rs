//! How errors of the driver read.

use crate::error::Error;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};

/// Whether libcuda can be opened.
pub(super) fn libcuda_is_there() -> bool {
    // SAFETY: only tries to open the library.
    unsafe { sys::is_culib_present() }
}

/// For `map_err`: what the driver says about a call that was to do `doing`.
pub(super) fn error(doing: &str) -> impl FnOnce(DriverError) -> Error {
    let doing = doing.to_owned();
    move |e| {
        let text = match libcuda_is_there() {
            true => e.error_string().map_or_else(|_| format!("{:?}", e.0), |s| s.to_string_lossy().into_owned()),
            false => format!("{:?}", e.0),
        };
        let lost = if is_lost(e.0) { LOST } else { "" };
        Error::Device(format!("CUDA: cannot {doing}: {text}{lost}"))
    }
}

/// What to do about a device that is lost.
const LOST: &str = " (the GPU is lost to this run, and what was not saved with it; dmesg names the cause as an Xid; the same \
     command can be given again with a new `out`)";

/// Errors after which no call of this process on the device succeeds.
pub(super) fn is_lost(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_is_called_lost() {
        let text = |code| error("finish what was enqueued")(DriverError(code)).to_string();
        for code in [CUresult::CUDA_ERROR_LAUNCH_FAILED, CUresult::CUDA_ERROR_ECC_UNCORRECTABLE] {
            let line = text(code);
            assert!(
                line.starts_with("CUDA: cannot finish what was enqueued: ") && line.contains("lost to this run"),
                "{line}"
            );
            assert!(!line.contains('\n'), "{line}");
        }
        assert!(!text(CUresult::CUDA_ERROR_INVALID_VALUE).contains("lost"));
        assert_eq!(Error::Device(String::new()).exit_code(), 1);
    }
}
