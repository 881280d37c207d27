//! Libraries and their binary interfaces.
//!
//! - Open MPI's (`libmpi.so.40`): a handle is the address of an object that the library exports.
//! - MPICH's (`libmpi.so.12`, Debian's `libmpich.so.12`; Intel MPI, MVAPICH and Cray's too): a handle is a C `int`.
//! - That of the MPI 5.0 standard, chapter 20 (`libmpi_abi.so.1`): a handle is a pointer, and small values of it are constants.

use super::calls::{Calls, Handles, LONGEST, Table, Unfit, words};
use crate::comm::launch::Launcher;
use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_char, c_int, c_void};

/// Names a library file, whatever the launcher is.
pub const ENVIRONMENT: &str = "FUSEDPO_MPI_LIBRARY";

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Abi {
    OpenMpi,
    Mpich,
    Standard,
}

/// A library that was opened, and not started.
pub struct Found {
    library: Library,
    file: String,
    version: String,
    abi: Abi,
}

/// Opens the first library that there is, those of `launcher` first: another's would make every process a world of its own.
/// Errors: why none serves.
pub fn find(launcher: Option<Launcher>, env: &dyn Fn(&str) -> Option<String>) -> Result<Found, String> {
    let mpich = ["libmpi_abi.so.1", "libmpi.so.12", "libmpich.so.12"];
    let open_mpi = ["libmpi.so.40"];
    let pmix = launcher == Some(Launcher::Slurm) && env("PMIX_RANK").is_some();
    let names: Vec<String> = match env(ENVIRONMENT) {
        Some(file) => vec![file],
        None if pmix || launcher == Some(Launcher::OpenMpi) => {
            open_mpi.iter().chain(&mpich).map(|n| (*n).into()).collect()
        }
        None => mpich.iter().chain(&open_mpi).map(|n| (*n).into()).collect(),
    };
    let mut why = Vec::new();
    for name in names {
        match open(&name) {
            Ok(found) => return Ok(found),
            Err(e) => why.push(e),
        }
    }
    Err(why.join("; "))
}

fn open(name: &str) -> Result<Found, String> {
    // SAFETY: runs the initialisers of a library that the user has as MPI. Plug-ins of Open MPI look for its symbols globally.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| {
        // The system's own words, which name the file.
        std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)
    })?;
    type Version = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;
    let (mut text, mut len) = ([0u8; LONGEST], 0);
    // SAFETY: `MPI_Get_library_version` has this type in all three interfaces, may be called before all others, and has room.
    let version = unsafe {
        let get =
            library.get::<Version>(b"MPI_Get_library_version").map_err(|_| format!("{name} is no MPI library"))?;
        get(text.as_mut_ptr().cast(), &mut len);
        words(&text, len)
    };
    let version = version.split([',', '\n']).next().unwrap_or_default().replace('\t', " ").trim().to_owned();
    let abi = match () {
        () if address(&library, "ompi_mpi_comm_world").is_some() => Abi::OpenMpi,
        () if name.contains("mpi_abi") => Abi::Standard,
        () if ["MPICH", "Intel", "MVAPICH", "CRAY"].iter().any(|of| version.contains(of)) => Abi::Mpich,
        () => return Err(format!("{name} (`{version}`) has a binary interface that this program does not know")),
    };
    Ok(Found { library, file: name.to_owned(), version, abi })
}

/// Where the library has the object `name`.
fn address(library: &Library, name: &str) -> Option<usize> {
    // SAFETY: the address is taken, nothing is read there.
    unsafe { library.get::<*const c_void>(name.as_bytes()) }.ok().map(|symbol| symbol.as_raw_ptr() as usize)
}

impl Found {
    /// Version and file.
    pub fn line(&self) -> String {
        format!("{}, {}", self.version, self.file)
    }

    /// Starts it: `MPI_Init_thread`. From here on the process is one of the launcher's.
    pub(super) fn start(self) -> Result<Box<dyn Calls>> {
        let Self { library, file, abi, .. } = self;
        let unfit = |why: Unfit| {
            Error::usage(match why {
                Unfit::Lacks(name) => format!("{file} has no {name}: it is older than MPI 3.1; use a newer one"),
                Unfit::OneThread => {
                    format!("{file} lets no second thread call it (MPI_THREAD_SERIALIZED): use one that was built to")
                }
            })
        };
        match abi {
            Abi::Mpich => {
                let handles = Handles::<c_int> {
                    world: 0x4400_0000,
                    byte: 0x4c00_010d,
                    errors_return: 0x5400_0001,
                    serialized: 2,
                    status_ignore: 1,
                };
                Table::start(library, handles).map_err(unfit)
            }
            Abi::Standard => {
                let handles = Handles::<usize> {
                    world: 0x101,
                    byte: 0x247,
                    errors_return: 0x143,
                    serialized: 2048,
                    status_ignore: 0,
                };
                Table::start(library, handles).map_err(unfit)
            }
            Abi::OpenMpi => {
                let of = |name: &str| address(&library, name).ok_or_else(|| unfit(Unfit::Lacks(name.to_owned())));
                let [world, byte] = [of("ompi_mpi_comm_world")?, of("ompi_mpi_byte")?];
                let errors_return = of("ompi_mpi_errors_return")?;
                Table::start(library, Handles { world, byte, errors_return, serialized: 2, status_ignore: 0 })
                    .map_err(unfit)
            }
        }
    }
}
