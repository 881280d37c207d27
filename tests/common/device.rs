//! Where the tests of the kernels run: the host driver under several schedules (the host column) and a GPU, twice (the cuda
//! column). A column's runs must agree to the bit.
//!
//! `FUSEDPO_REQUIRE_GPU`: unset, the cuda column runs where a GPU can be used and says "skipped" where not; `1`, a test
//! without a GPU fails; `only`, the same, and the host column is left out.
#![allow(dead_code)]

use fusedpo::backend::gpu::cuda::{CudaDriver, unavailable};
use fusedpo::backend::gpu::{Gpu, GpuFloat};
use std::any::Any;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};

/// Where a body runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host driver, with the seed of its schedule.
    Host(u64),
    /// A GPU, with the number of the run.
    Cuda(u64),
}

impl Place {
    /// Whether both are in one column, so that bits must agree.
    fn beside(self, other: Place) -> bool {
        matches!(self, Place::Host(_)) == matches!(other, Place::Host(_))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Host(seed) => write!(f, "host, schedule {seed}"),
            Place::Cuda(run) => write!(f, "cuda, run {run}"),
        }
    }
}

/// The first result of each column, for the others to equal.
pub struct SameBits<T>(Vec<(Place, T)>);

impl<T: PartialEq> SameBits<T> {
    pub fn new() -> Self {
        SameBits(Vec::new())
    }
    /// Panics where `got` is not what the column gave first.
    #[track_caller]
    pub fn see(&mut self, what: &str, place: Place, got: T) {
        match self.0.iter().find(|(first, _)| first.beside(place)) {
            Some((first, bits)) => assert!(*bits == got, "{what}: other bits ({place}) than before ({first})"),
            None => self.0.push((place, got)),
        }
    }
}

fn asked() -> Option<String> {
    std::env::var("FUSEDPO_REQUIRE_GPU").ok().filter(|v| !v.is_empty() && v != "0")
}

/// A GPU of the caller's own, or nothing, said once a process. Panics where one is required.
pub fn cuda_driver() -> Option<CudaDriver> {
    static SAID: Once = Once::new();
    let Some(why) = unavailable() else { return Some(CudaDriver::open(0).expect("the GPU opens")) };
    assert!(asked().is_none(), "FUSEDPO_REQUIRE_GPU is set, but: {why}");
    // Past the capture of tests' output: what was not run is to be seen.
    SAID.call_once(|| drop(writeln!(std::io::stderr(), "skipped: no GPU for the cuda column: {why}")));
    None
}

/// The GPU that all tests of a storage type share, as opening one takes longer than most of them.
pub fn cuda<A: GpuFloat>() -> Option<&'static Gpu<CudaDriver, A>> {
    static OPEN: Mutex<Vec<&'static (dyn Any + Send + Sync)>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = open.iter().find_map(|g| g.downcast_ref()) {
        return Some(gpu);
    }
    let gpu: &'static Gpu<CudaDriver, A> = Box::leak(Box::new(Gpu::new(cuda_driver()?).expect("device memory")));
    open.push(gpu);
    Some(gpu)
}

/// `on_devices!(A, seeds, |gpu, place| { ... })`: the body on `&Gpu<HostDriver, A>` under each schedule, then on the GPU twice.
#[macro_export]
macro_rules! on_devices {
    ($A:ty, $seeds:expr, |$gpu:ident, $place:ident| $body:block) => {
        for seed in $seeds {
            let Some(driver) = $crate::host::host_driver(seed) else { break };
            let $gpu = &fusedpo::backend::gpu::Gpu::<_, $A>::new(driver).unwrap();
            let $place = $crate::device::Place::Host(seed);
            $body
        }
        if let Some($gpu) = $crate::device::cuda::<$A>() {
            for run in 1..=2 {
                let $place = $crate::device::Place::Cuda(run);
                $body
            }
        }
    };
}
