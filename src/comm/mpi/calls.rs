//! The dozen functions of MPI that are called, whatever the interface.

use crate::comm::{Parts, Staging};
use crate::error::{Error, Result};
use libloading::os::unix::Library;
use std::ffi::{c_char, c_int, c_void};

/// Room for a library's own words: no `MPI_MAX_LIBRARY_VERSION_STRING` or `MPI_MAX_ERROR_STRING` is larger.
pub(super) const LONGEST: usize = 8192;

/// What an interface calls what is needed of it.
pub(super) struct Handles<H> {
    /// `MPI_COMM_WORLD`.
    pub world: H,
    /// `MPI_BYTE`.
    pub byte: H,
    /// `MPI_ERRORS_RETURN`.
    pub errors_return: H,
    /// `MPI_THREAD_SERIALIZED`.
    pub serialized: c_int,
    /// `MPI_STATUS_IGNORE`.
    pub status_ignore: usize,
}

/// What a library wrote into `text`.
pub(super) fn words(text: &[u8], len: c_int) -> String {
    let len = usize::try_from(len).unwrap_or(0).min(text.len());
    String::from_utf8_lossy(&text[..len]).trim_end_matches('\0').to_owned()
}

/// What all ranks do together. Lengths are in bytes, by rank, and less than 2 GiB together.
pub(super) enum Op<'a> {
    Barrier,
    Broadcast(&'a mut Staging),
    Gather { send: &'a mut Staging, receive: &'a mut Staging, lengths: &'a [usize] },
    Exchange { parts: Parts<'a>, rank: usize },
}

/// Why a library does not serve.
pub(super) enum Unfit {
    /// It lacks this function.
    Lacks(String),
    /// It may be called by one thread only.
    OneThread,
}

/// A library that was started. Calls may come from any thread, and do not overlap.
pub(super) trait Calls: Send {
    /// Rank and size.
    fn world(&self) -> Result<[usize; 2]>;

    /// Runs `op` to its end; `waiting` is called between one look and the next. Where it or the library fails the op's memory is
    /// left to the library, which may still write there.
    fn run(&self, op: Op<'_>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Ends the job.
    fn abort(&self, code: i32);

    /// `MPI_Finalize`.
    fn finalize(&self) -> Result<()>;
}

type Out = *mut c_void;
type In = *const c_void;
type Ints = *const c_int;

/// Functions and handles of an interface whose handles are `H`.
pub(super) struct Table<H> {
    handles: Handles<H>,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    rank: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    size: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    test: unsafe extern "C" fn(*mut H, *mut c_int, Out) -> c_int,
    barrier: unsafe extern "C" fn(H, *mut H) -> c_int,
    broadcast: unsafe extern "C" fn(Out, c_int, H, c_int, H, *mut H) -> c_int,
    gather: unsafe extern "C" fn(In, c_int, H, Out, Ints, Ints, H, H, *mut H) -> c_int,
    exchange: unsafe extern "C" fn(In, Ints, Ints, H, Out, Ints, Ints, H, H, *mut H) -> c_int,
}

/// # Safety
/// `F` is the type of the function `name` in the library's interface.
unsafe fn get<F: Copy>(library: &Library, name: &str) -> Result<F, Unfit> {
    // SAFETY: the caller's word.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|_| Unfit::Lacks(name.to_owned()))
}

impl<H: Copy + Default + Send + 'static> Table<H> {
    /// Starts `library`, whose interface has `handles`. It is never closed: what it began may outlive it. Errors: why it does not
    /// serve.
    pub(super) fn start(library: Library, handles: Handles<H>) -> Result<Box<dyn Calls>, Unfit> {
        type Init = unsafe extern "C" fn(*mut c_int, Out, c_int, *mut c_int) -> c_int;
        type SetHandler<H> = unsafe extern "C" fn(H, H) -> c_int;
        // SAFETY: the types are those of MPI 3.1, which the three interfaces share but for `H`. `MPI_Init_thread` takes null for
        // both arguments of `main`, and is called once, as the library was opened just now.
        let table = unsafe {
            let (init, handler) =
                (get::<Init>(&library, "MPI_Init_thread")?, get::<SetHandler<H>>(&library, "MPI_Comm_set_errhandler")?);
            let table = Self {
                abort: get(&library, "MPI_Abort")?,
                finalize: get(&library, "MPI_Finalize")?,
                rank: get(&library, "MPI_Comm_rank")?,
                size: get(&library, "MPI_Comm_size")?,
                error_string: get(&library, "MPI_Error_string")?,
                test: get(&library, "MPI_Test")?,
                barrier: get(&library, "MPI_Ibarrier")?,
                broadcast: get(&library, "MPI_Ibcast")?,
                gather: get(&library, "MPI_Iallgatherv")?,
                exchange: get(&library, "MPI_Ialltoallv")?,
                handles,
            };
            let mut given = table.handles.serialized;
            init(std::ptr::null_mut(), std::ptr::null_mut(), table.handles.serialized, &mut given);
            if given < table.handles.serialized {
                return Err(Unfit::OneThread);
            }
            handler(table.handles.world, table.handles.errors_return);
            table
        };
        std::mem::forget(library);
        Ok(Box::new(table))
    }

    fn check(&self, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let (mut text, mut len) = ([0u8; LONGEST], 0);
        // SAFETY: there is room for any text.
        unsafe { (self.error_string)(code, text.as_mut_ptr().cast(), &mut len) };
        Err(Error::Device(format!("MPI: {}", words(&text, len).split_whitespace().collect::<Vec<_>>().join(" "))))
    }

    /// Looks until `request` is done.
    fn finish(&self, mut request: H, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut done = 0;
        loop {
            // SAFETY: the request was begun by this table, and is not done.
            self.check(unsafe { (self.test)(&mut request, &mut done, self.handles.status_ignore as Out) })?;
            if done != 0 {
                return Ok(());
            }
            waiting()?;
        }
    }
}

/// Lengths and where they begin.
fn layout(lengths: &[usize]) -> [Vec<c_int>; 2] {
    let (mut at, mut begin) = (0, Vec::with_capacity(lengths.len()));
    for n in lengths {
        begin.push(at as c_int);
        at += n;
    }
    assert!(at <= c_int::MAX as usize, "more than a library counts");
    [lengths.iter().map(|n| *n as c_int).collect(), begin]
}

impl<H: Copy + Default + Send + 'static> Calls for Table<H> {
    fn world(&self) -> Result<[usize; 2]> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: the library was started.
        let codes = unsafe { [(self.rank)(self.handles.world, &mut rank), (self.size)(self.handles.world, &mut size)] };
        codes.into_iter().try_for_each(|code| self.check(code))?;
        Ok([rank, size].map(|n| usize::try_from(n).unwrap_or(0)))
    }

    fn run(&self, op: Op<'_>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Handles { world, byte, .. } = self.handles;
        let mut request = H::default();
        // What the library reads and writes until the request is done; left to it where that never comes.
        let mut lists: Vec<Vec<c_int>> = Vec::new();
        let mut memory: [Option<&mut Staging>; 2] = [None, None];
        let code = match op {
            // SAFETY: the library was started.
            Op::Barrier => unsafe { (self.barrier)(world, &mut request) },
            Op::Broadcast(bytes) => {
                let (at, n) = (bytes.bytes_mut().as_mut_ptr(), layout(&[bytes.bytes().len()])[0][0]);
                memory[0] = Some(bytes);
                // SAFETY: `n` bytes are at `at` until the request is done, or for ever.
                unsafe { (self.broadcast)(at.cast(), n, byte, 0, world, &mut request) }
            }
            Op::Gather { send, receive, lengths } => {
                assert!(receive.bytes().len() >= lengths.iter().sum());
                let (from, n) = (send.bytes().as_ptr(), layout(&[send.bytes().len()])[0][0]);
                let to = receive.bytes_mut().as_mut_ptr();
                memory = [Some(send), Some(receive)];
                lists.extend(layout(lengths));
                let [counts, begin] = [lists[0].as_ptr(), lists[1].as_ptr()];
                // SAFETY: `n` bytes are at `from`, and the sum of the counts at `to`; they and the lists stay as above.
                unsafe { (self.gather)(from.cast(), n, byte, to.cast(), counts, begin, byte, world, &mut request) }
            }
            Op::Exchange { parts: Parts { send, to, receive, from }, rank } => {
                let all = [to, from].map(|lengths| lengths.iter().sum::<usize>());
                assert!(send.bytes().len() >= all[0] && receive.bytes().len() >= all[1]);
                let (out, into) = (send.bytes().as_ptr(), receive.bytes_mut().as_mut_ptr());
                memory = [Some(send), Some(receive)];
                lists.extend(layout(to).into_iter().chain(layout(from)));
                // Open MPI 4.1 leaves a rank that has no byte to send or take out of its count of such calls, and its next one
                // never meets the others': whoever has none for itself takes one, for which a `Staging` has room.
                if to[rank] == 0 && from[rank] == 0 {
                    (lists[0][rank], lists[1][rank]) = (1, all[0] as c_int);
                    (lists[2][rank], lists[3][rank]) = (1, all[1] as c_int);
                }
                let [n, at, m, into_at] = [0, 1, 2, 3].map(|i| lists[i].as_ptr());
                // SAFETY: the sums of the counts are at `out` and at `into`; they and the lists stay as above.
                unsafe { (self.exchange)(out.cast(), n, at, byte, into.cast(), m, into_at, byte, world, &mut request) }
            }
        };
        let ended = self.check(code).and_then(|()| self.finish(request, waiting));
        if ended.is_err() {
            memory.into_iter().flatten().for_each(Staging::leak);
            std::mem::forget(lists);
        }
        ended
    }

    fn abort(&self, code: i32) {
        // SAFETY: the library was started; it ends all processes.
        unsafe { (self.abort)(self.handles.world, code) };
    }

    fn finalize(&self) -> Result<()> {
        // SAFETY: the library was started, and no request is open; nobody calls anything after it.
        self.check(unsafe { (self.finalize)() })
    }
}
