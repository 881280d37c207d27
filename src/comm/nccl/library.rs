//! The dozen functions of NCCL that are called, by their own types. Results are plain numbers: which there are differs from version
//! to version.

use crate::comm::World;
use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::mpsc;
use std::time::Duration;

/// Names the library's file.
pub const ENVIRONMENT: &str = "FUSEDPO_NCCL_LIBRARY";

/// The first version in which nothing need wait: `ncclCommInitRankConfig`.
const LEAST: c_int = 21_400;

/// `NCCL_UNIQUE_ID_BYTES`.
pub(super) const ID: usize = 128;

/// `ncclInProgress`.
const IN_PROGRESS: c_int = 7;
/// `ncclUint8`.
const BYTE: c_int = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID]);

/// `ncclConfig_t` as of 2.14: later versions take what is behind it as not given.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// `NCCL_CONFIG_UNDEF_INT`, where a later version has its next field.
    undefined: c_int,
}

type Handle = *mut c_void;

#[derive(Clone, Copy)]
struct Table {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int,
    finalize: unsafe extern "C" fn(Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    state: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    last: unsafe extern "C" fn(Handle) -> *const c_char,
}

/// A library that was opened, and joined nobody. It is never closed: what it began may outlive it.
pub struct Found {
    table: Table,
    line: String,
}

/// Opens the library. Errors: why it does not serve.
pub fn find(env: &dyn Fn(&str) -> Option<String>) -> Result<Found, String> {
    let name = env(ENVIRONMENT).unwrap_or_else(|| "libnccl.so.2".into());
    // SAFETY: runs the initialisers of a library that the user has as NCCL.
    let library = unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| {
        // The system's own words, which name the file.
        std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)
    })?;
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: `ncclGetVersion` has had this type since there is NCCL 2.
    unsafe {
        get::<Version>(&library, "ncclGetVersion").map_err(|_| format!("{name} is no NCCL library"))?(&mut version)
    };
    // Versions up to 2.8 count otherwise.
    let digits = if version >= 10_000 { [10_000, 100] } else { [1_000, 100] };
    let (major, minor, patch) = (version / digits[0], version % digits[0] / digits[1], version % digits[1]);
    let line = format!("NCCL {major}.{minor}.{patch}, {name}");
    if version < LEAST {
        return Err(format!("{line}: 2.14 or newer is needed"));
    }
    let missing = |function: String| format!("{line} has no {function}");
    // SAFETY: the types are those of nccl.h since 2.14.
    let table = unsafe { Table::of(&library) }.map_err(missing)?;
    std::mem::forget(library);
    Ok(Found { table, line })
}

/// # Safety
/// `F` is the type of the function `name` of the library.
unsafe fn get<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller's word.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|_| name.to_owned())
}

impl Table {
    /// # Safety
    /// `library` is NCCL, 2.14 or newer.
    unsafe fn of(library: &Library) -> Result<Self, String> {
        // SAFETY: the caller's word.
        unsafe {
            Ok(Self {
                unique_id: get(library, "ncclGetUniqueId")?,
                init: get(library, "ncclCommInitRankConfig")?,
                finalize: get(library, "ncclCommFinalize")?,
                destroy: get(library, "ncclCommDestroy")?,
                abort: get(library, "ncclCommAbort")?,
                state: get(library, "ncclCommGetAsyncError")?,
                group_start: get(library, "ncclGroupStart")?,
                group_end: get(library, "ncclGroupEnd")?,
                send: get(library, "ncclSend")?,
                receive: get(library, "ncclRecv")?,
                error: get(library, "ncclGetErrorString")?,
                last: get(library, "ncclGetLastError")?,
            })
        }
    }

    /// Whether what was called is done. Errors: in the library's words.
    fn check(&self, code: c_int, of: Handle) -> Result<bool> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(code == 0);
        }
        let text = |at: *const c_char| match at.is_null() {
            true => String::new(),
            // SAFETY: the library gives texts that end with NUL and stay until its next call.
            false => unsafe { CStr::from_ptr(at) }.to_string_lossy().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        // SAFETY: any number, and a communicator that is alive or null.
        let (error, last) = unsafe { (text((self.error)(code)), text((self.last)(of))) };
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Err(Error::Device(format!("NCCL: {error} ({code}){last}")))
    }
}

impl Found {
    /// Version and file.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// What rank 0 makes and all ranks join by.
    pub(super) fn unique_id(&self) -> Result<[u8; ID]> {
        let mut id = UniqueId([0; ID]);
        // SAFETY: there is room for one.
        self.table.check(unsafe { (self.table.unique_id)(&mut id) }, std::ptr::null_mut())?;
        Ok(id.0)
    }

    /// Begins to join the ranks that have the same `id`, with the GPU that is this thread's now.
    pub(super) fn join(&self, id: [u8; ID], world: World) -> Result<Link> {
        let size = size_of::<Config>();
        let mut config =
            Config { size, magic: 0xcafe_beef, version: LEAST as c_uint, blocking: 0, undefined: c_int::MIN };
        let (mut handle, table) = (std::ptr::null_mut(), self.table);
        // SAFETY: room for a handle, and a configuration of the version that it says.
        let code =
            unsafe { (table.init)(&mut handle, world.size as c_int, UniqueId(id), world.rank as c_int, &mut config) };
        table.check(code, handle)?;
        Ok(Link { table, handle })
    }
}

/// Bytes of device memory: address and length.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Of the first byte.
    pub at: u64,
    /// How many.
    pub bytes: usize,
}

/// A communicator. Dropped, it is left to the library.
pub(super) struct Link {
    table: Table,
    handle: Handle,
}
// SAFETY: the library may be called from any thread, by one at a time: a `Link` is not `Sync`.
unsafe impl Send for Link {}

impl Link {
    /// Whether nothing is under way but on the device. Errors: it has failed, here or at another rank.
    pub(super) fn is_ready(&self) -> Result<bool> {
        let mut code = 0;
        // SAFETY: the communicator is alive.
        self.table.check(unsafe { (self.table.state)(self.handle, &mut code) }, self.handle)?;
        self.table.check(code, self.handle)
    }

    /// Enqueues on `stream` what goes to every rank, and what comes from it; those without bytes do not go. Whether it is enqueued
    /// already.
    ///
    /// # Safety
    /// The memory is the GPU's with which this rank joined, and stays as it is until the stream has come past; the stream is one of
    /// that GPU's.
    pub(super) unsafe fn exchange(&self, out: &[Run], into: &[Run], stream: u64) -> Result<bool> {
        let Table { group_start, group_end, send, receive, .. } = self.table;
        let stream = stream as Handle;
        // SAFETY: a group may be begun at any time.
        self.table.check(unsafe { group_start() }, self.handle)?;
        let some = |runs: &[Run]| runs.iter().copied().enumerate().filter(|(_, run)| run.bytes > 0).collect::<Vec<_>>();
        let mut called = Ok(true);
        for (rank, run) in some(out) {
            // SAFETY: the caller's word.
            let code = unsafe { send(run.at as *const c_void, run.bytes, BYTE, rank as c_int, self.handle, stream) };
            called = called.and(self.table.check(code, self.handle));
        }
        for (rank, run) in some(into) {
            // SAFETY: the caller's word.
            let code = unsafe { receive(run.at as *mut c_void, run.bytes, BYTE, rank as c_int, self.handle, stream) };
            called = called.and(self.table.check(code, self.handle));
        }
        // A group that was begun is ended, whatever came in between.
        // SAFETY: it was begun above, by this thread.
        let ended = self.table.check(unsafe { group_end() }, self.handle);
        called.and(ended)
    }

    /// Begins to part in order.
    pub(super) fn finalize(&self) -> Result<bool> {
        // SAFETY: the communicator is alive.
        self.table.check(unsafe { (self.table.finalize)(self.handle) }, self.handle)
    }

    /// Gives it back, where all have parted.
    pub(super) fn destroy(self) -> Result<bool> {
        // SAFETY: the communicator is alive, and nobody has it from here on.
        self.table.check(unsafe { (self.table.destroy)(self.handle) }, std::ptr::null_mut())
    }

    /// Ends it, and what it has on the device, whatever the others do. The library may wait for ever: whether it came back within
    /// `patience`.
    pub(super) fn abort(self, patience: Duration) -> bool {
        let (done, over) = mpsc::channel();
        let thread = std::thread::Builder::new().name("nccl abort".into()).spawn(move || {
            let this = self;
            // SAFETY: the communicator is alive, and nobody has it from here on.
            unsafe { (this.table.abort)(this.handle) };
            // Nobody may wait any more.
            let _ = done.send(());
        });
        thread.is_ok() && over.recv_timeout(patience).is_ok()
    }
}
