//! The kernels of this binary, loaded, and how they are found by name.

use super::carve_out::{Block, PLENTY};
use super::error::error;
use super::images::{self, BUILT};
use crate::backend::gpu::driver::{Grid, Kernel};
use crate::backend::gpu::lock::lock;
use crate::error::{Error, Result};
use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

/// A kernel as the driver knows it.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may ask for, in bytes.
    shared: usize,
}
// SAFETY: the handle is a name for something that lives as long as its module; the driver API is thread-safe.
unsafe impl Send for Function {}

/// Loaded images of the kernels, unloaded when dropped: nothing may run any more.
struct Modules {
    all: Vec<sys::CUmodule>,
    context: Arc<CudaContext>,
}
// SAFETY: the handles are names for something that lives as long as the driver here; the driver API is thread-safe.
unsafe impl Send for Modules {}
// SAFETY: the handles are names, never changed after loading; the driver API is thread-safe.
unsafe impl Sync for Modules {}

impl Modules {
    fn load(context: &Arc<CudaContext>, name: &str) -> Result<Modules> {
        let mut this = Modules { all: Vec::with_capacity(images::FATBINS.len()), context: context.clone() };
        for image in images::FATBINS {
            // Embedded bytes may start anywhere; the loader wants them aligned, as an allocation is.
            let image = image.to_vec();
            // SAFETY: a fatbin that nvcc wrote, embedded whole; the driver reads its own header for the length.
            let loaded = unsafe { result::module::load_data(image.as_ptr().cast()) };
            this.all.push(loaded.map_err(error(&format!("load the kernels ({BUILT}) on {name}")))?);
        }
        Ok(this)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for module in &self.all {
                // SAFETY: loaded above, unloaded once, and nothing runs any more. A failure leaves nothing to do.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}

/// Functions of loaded modules, found once each.
pub(super) struct Functions {
    known: Mutex<HashMap<Kernel, Function>>,
    modules: Modules,
    /// The most dynamic shared memory that a block may have.
    max_shared: usize,
}

impl Functions {
    /// Loads all kernels on the GPU of that name, whose blocks may have `max_shared` bytes of dynamic shared memory.
    pub fn load(context: &Arc<CudaContext>, name: &str, max_shared: usize) -> Result<Functions> {
        Ok(Functions { known: Mutex::default(), modules: Modules::load(context, name)?, max_shared })
    }

    /// The function of that name, where a module has one. Errors: anything else that the driver says.
    fn find(&self, name: &CString) -> Result<Option<sys::CUfunction>, DriverError> {
        for module in &self.modules.all {
            // SAFETY: the modules stay loaded as long as this driver lives.
            match unsafe { result::module::get_function(*module, name.clone()) } {
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_FOUND => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    /// The function of a kernel, allowed the dynamic shared memory of `grid`.
    pub fn get(&self, kernel: Kernel, grid: &Grid) -> Result<sys::CUfunction> {
        let shared = grid.shared;
        let mut all = lock(&self.known);
        let mut f = match all.get(&kernel) {
            Some(f) => *f,
            None => {
                let name = CString::new(kernel.name()).expect("names have no NUL");
                let handle = self.find(&name).map_err(|e| Error::Launch {
                    kernel: kernel.op,
                    why: error(&format!("find `{}`", kernel.name()))(e).to_string(),
                })?;
                let handle = handle.ok_or_else(|| Error::Launch {
                    kernel: kernel.op,
                    why: format!("no kernel `{}` in this binary ({BUILT})", kernel.name()),
                })?;
                // How much a kernel may have unasked depends on what else it has: it is asked for.
                Function { handle, shared: 0 }
            }
        };
        if shared > f.shared {
            let threads = grid.threads.iter().product();
            // SAFETY: a live function; the bytes were checked against the device's limit.
            unsafe { self.give_shared(f.handle, threads, shared) }.map_err(|e| Error::Launch {
                kernel: kernel.op,
                why: error(&format!("give a block {shared} bytes of shared memory"))(e).to_string(),
            })?;
            f.shared = shared;
        }
        all.insert(kernel, f);
        Ok(f.handle)
    }

    /// Allows a kernel that much dynamic shared memory. Where it is plenty, also asks for as much on a multiprocessor as the blocks
    /// need that its registers allow; the rest is L1.
    ///
    /// # Safety
    ///
    /// The function is alive; a block may have that much.
    unsafe fn give_shared(&self, f: sys::CUfunction, threads: usize, shared: usize) -> Result<(), DriverError> {
        use CUfunction_attribute::*;
        // SAFETY: the caller's promise.
        let set = |attribute, value| unsafe { result::function::set_function_attribute(f, attribute, value) };
        // SAFETY: the caller's promise.
        let get = |attribute| unsafe { result::function::get_function_attribute(f, attribute) };
        set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32)?;
        if shared >= PLENTY {
            let fixed = get(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as usize;
            let block = Block { registers: get(CU_FUNC_ATTRIBUTE_NUM_REGS)? as usize, threads, shared: shared + fixed };
            set(CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, block.carve_out(self.max_shared))?;
        }
        Ok(())
    }
}
