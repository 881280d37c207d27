//! The kernels on a machine without a GPU: the same `.cu`, compiled by the C++ compiler and run on fibers
//! (`kernels/host`). For tests: it finds what a GPU would not tell, and is slow.

use super::driver::{Arg, Driver, Dtype, Grid, Kernel, MatMul, Matrix};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A kernel compiled for the host; `kernels/host` has them.
pub trait HostKernel: Send + Sync {
    /// Exported name: `swiglu_fwd_bf16`.
    fn name(&self) -> &str;
    /// Parameter types: `bf16*,const bf16*,i32`.
    fn signature(&self) -> &str;
    /// Runs to the end; `seed` draws the order of blocks, warps and lanes. Errors: what went wrong.
    ///
    /// # Safety
    /// `args` point at values of the types in [`HostKernel::signature`]; pointers among them cover what is accessed.
    unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &mut [*mut c_void],
        seed: u64,
    ) -> Result<(), String>;
}

/// Alignment of an allocation, and bytes of [`FENCE`] on either side of it.
const FENCE_BYTES: usize = 256;
/// NaN as bf16, f32 and f64: what is read past an end spoils the result, what is written there is found.
const FENCE: u8 = 0xff;

/// Runs kernels on the calling thread; see the [module](self).
pub struct HostDriver {
    kernels: HashMap<String, Box<dyn HostKernel>>,
    seed: u64,
    /// Bytes on either side of an allocation.
    fence: usize,
    launches: AtomicU64,
    /// Address handed out -> bytes.
    allocations: Mutex<BTreeMap<u64, usize>>,
}

impl HostDriver {
    /// A driver over `kernels`; every launch draws its schedule from `seed` and the launches before it. Seed 0 runs
    /// blocks in order.
    pub fn new(kernels: impl IntoIterator<Item = Box<dyn HostKernel>>, seed: u64) -> HostDriver {
        HostDriver {
            kernels: kernels.into_iter().map(|k| (k.name().to_owned(), k)).collect(),
            seed,
            fence: FENCE_BYTES,
            launches: AtomicU64::new(0),
            allocations: Mutex::default(),
        }
    }

    /// Allocations without fences: for address sanitizer, which sees reads too and whose own fences then lie at the
    /// very end of each.
    pub fn without_fences(self) -> HostDriver {
        HostDriver { fence: 0, ..self }
    }

    /// Launches so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    fn allocations(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `bytes` bytes from `at` are inside one allocation.
    fn covers(&self, at: u64, bytes: usize) -> bool {
        let all = self.allocations();
        let Some((start, len)) = all.range(..=at).next_back() else { return false };
        (at - start) as usize + bytes <= *len
    }

    fn check_args(&self, kernel: &Kernel, found: &dyn HostKernel, args: &[Arg]) -> Result<()> {
        let given: Vec<String> = args.iter().map(Arg::type_name).collect();
        let given = given.join(",");
        if given != found.signature() {
            let why = format!("arguments are `{given}`, the kernel takes `{}`", found.signature());
            return Err(Error::Launch { kernel: kernel.op, why });
        }
        for (i, arg) in args.iter().enumerate() {
            if let Arg::Memory { at, bytes, .. } = *arg
                && bytes > 0
                && !self.covers(at, bytes)
            {
                let why = format!("argument {i} points at {bytes} bytes that are not in one allocation");
                return Err(Error::Launch { kernel: kernel.op, why });
            }
        }
        Ok(())
    }

    /// The address of an allocation into which a write went astray.
    fn broken_fence(&self) -> Option<u64> {
        self.allocations().iter().map(|(at, bytes)| (*at, *bytes)).find_map(|(at, bytes)| {
            let intact = |from: u64| {
                // SAFETY: both fences belong to a live allocation of this driver (made in `alloc`).
                let fence = unsafe { std::slice::from_raw_parts(from as *const u8, self.fence) };
                fence.iter().all(|b| *b == FENCE)
            };
            (!intact(at - self.fence as u64) || !intact(at + bytes as u64)).then_some(at)
        })
    }

    fn layout(&self, bytes: usize) -> Layout {
        let size = (bytes + 2 * self.fence).max(1);
        Layout::from_size_align(size, FENCE_BYTES).expect("a length that was allocated before")
    }
}

impl Driver for HostDriver {
    fn fingerprint(&self) -> String {
        "kernels on the host".into()
    }

    fn description(&self) -> String {
        format!("CUDA kernels on the host, {} of them, schedule {}", self.kernels.len(), self.seed)
    }

    fn max_shared(&self) -> usize {
        99 * 1024 // compute capability 8.6, the least of the supported
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // Whole fences: rounding the length up would hide writes behind the end.
        if bytes > isize::MAX as usize / 2 {
            return Err(Error::Device(format!("cannot allocate {bytes} bytes")));
        }
        // SAFETY: the layout's size is not 0; the fences are within it.
        let start = unsafe { alloc_zeroed(self.layout(bytes)) };
        if start.is_null() {
            return Err(Error::Device(format!("out of memory for {bytes} bytes")));
        }
        // SAFETY: as above.
        unsafe {
            start.write_bytes(FENCE, self.fence);
            start.add(self.fence + bytes).write_bytes(FENCE, self.fence);
        }
        let at = start as u64 + self.fence as u64;
        self.allocations().insert(at, bytes);
        Ok(at)
    }

    unsafe fn free(&self, at: u64) {
        if let Some(bytes) = self.allocations().remove(&at) {
            // SAFETY: `alloc` made it with this layout; it is no longer listed, so it is freed once.
            unsafe { dealloc((at - self.fence as u64) as *mut u8, self.layout(bytes)) };
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise that `to` covers the length; host and "device" buffers are distinct.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; `copy` allows overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { (at as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let fail = |why: String| Error::Launch { kernel: kernel.op, why };
        grid.check(&kernel, self.max_shared())?;
        let name = kernel.name();
        let found = self.kernels.get(&name).ok_or_else(|| fail(format!("no kernel `{name}` was compiled")))?;
        self.check_args(&kernel, &**found, args)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let mut values: Vec<u64> = args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let nth = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = if self.seed == 0 { 0 } else { self.seed.wrapping_mul(1 << 32) ^ (nth + 1) };
        let (blocks, threads) = (grid.blocks.map(|n| n as u32), grid.threads.map(|n| n as u32));
        // SAFETY: the types were compared with the declaration just now, the ranges with the allocations; that the
        // kernel stays inside them is the caller's promise.
        unsafe { found.launch(blocks, threads, grid.shared, &mut pointers, seed) }.map_err(fail)?;
        match self.broken_fence() {
            None => Ok(()),
            Some(at) => Err(fail(format!("wrote outside the allocation at {at:#x}"))),
        }
    }

    unsafe fn matmul(&self, p: &MatMul) -> Result<()> {
        // SAFETY: the caller's promise that the operands cover their shapes.
        unsafe { matmul(p) };
        Ok(())
    }
}

/// Element `i` of a matrix.
///
/// # Safety
/// `i` is inside the allocation.
unsafe fn get(m: &Matrix, i: usize) -> f32 {
    match m.dtype {
        // SAFETY: the caller's promise.
        Dtype::Bf16 => f32::from(unsafe { *(m.at as *const half::bf16).add(i) }),
        // SAFETY: the caller's promise.
        Dtype::F32 => unsafe { *(m.at as *const f32).add(i) },
    }
}

/// Products whose f32 sum is added to the total at once: keeps rounding near that of a tensor core.
const BLOCK: usize = 32;

/// The definition, row by row: sums over blocks of k in order, so a row does not depend on the others.
///
/// # Safety
/// As [`Driver::matmul`].
unsafe fn matmul(p: &MatMul) {
    // SAFETY: the operands cover their shapes, by the caller's promise.
    let b: Vec<f32> = (0..p.k * p.n)
        .map(|i| (i / p.n, i % p.n))
        .map(|(k, j)| unsafe { get(&p.b, if p.b_transposed { j * p.b.ld + k } else { k * p.b.ld + j }) })
        .collect();
    (0..p.m).into_par_iter().for_each(|i| {
        let (mut sum, mut block) = (vec![0.0f32; p.n], vec![0.0f32; p.n]);
        for k in 0..p.k {
            // SAFETY: as above.
            let a = unsafe { get(&p.a, if p.a_transposed { k * p.a.ld + i } else { i * p.a.ld + k }) };
            block.iter_mut().zip(&b[k * p.n..][..p.n]).for_each(|(s, b)| *s += a * b);
            if (k + 1) % BLOCK == 0 || k + 1 == p.k {
                sum.iter_mut().zip(&mut block).for_each(|(s, b)| *s += std::mem::take(b));
            }
        }
        for (j, s) in sum.iter().enumerate() {
            let at = i * p.d.ld + j;
            // SAFETY: as above; every task writes a row of its own.
            unsafe {
                let c = p.c.map_or(0.0, |c| get(&Matrix { at: c, ..p.d }, at));
                match p.d.dtype {
                    Dtype::Bf16 => *(p.d.at as *mut half::bf16).add(at) = half::bf16::from_f32(s + c),
                    Dtype::F32 => *(p.d.at as *mut f32).add(at) = s + c,
                }
            }
        }
    });
}
