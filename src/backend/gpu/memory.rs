//! Device memory: buffers, and the arena that a planned run takes as one piece.

use super::driver::{Driver, View, ViewMut};
use super::lock::lock;
use crate::backend::ops::element::Storage;
use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Where buffers in an arena start, in bytes: what [`Driver::alloc`] promises for one by itself.
const ALIGN: usize = 256;

/// Bytes of all pieces: now, and most so far.
#[derive(Debug, Default)]
struct Taken {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// One piece of device memory; freed when dropped.
struct Piece<D: Driver> {
    driver: Arc<D>,
    taken: Arc<Taken>,
    at: u64,
    bytes: usize,
}

impl<D: Driver> Piece<D> {
    fn new(driver: &Arc<D>, taken: &Arc<Taken>, bytes: usize) -> Result<Self> {
        let at = driver.alloc(bytes)?;
        let now = taken.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        taken.most.fetch_max(now, Ordering::Relaxed);
        Ok(Piece { driver: driver.clone(), taken: taken.clone(), at, bytes })
    }
}

impl<D: Driver> Drop for Piece<D> {
    fn drop(&mut self) {
        self.taken.now.fetch_sub(self.bytes, Ordering::Relaxed);
        // SAFETY: `at` came from this driver's `alloc`, and whoever has a view of the piece holds the piece.
        unsafe { self.driver.free(self.at) };
    }
}

/// Memory of a device; freed when dropped, an arena's when the last of its buffers is.
pub struct Buf<D: Driver, T> {
    /// What keeps the memory alive; nothing where it was only counted.
    _home: Option<Arc<Piece<D>>>,
    /// Counts buffers given back.
    freed: Arc<AtomicU64>,
    pub(super) at: u64,
    pub(super) len: usize,
    element: PhantomData<T>,
}

impl<D: Driver, T> Drop for Buf<D, T> {
    fn drop(&mut self) {
        self.freed.fetch_add(1, Ordering::Release);
    }
}

impl<D: Driver, T: Storage> Buf<D, T> {
    /// Elements `range`. Panics when out of range.
    pub fn view(&self, range: Range<usize>) -> View<'_, T> {
        View { at: self.at, len: self.len, life: PhantomData }.part(range)
    }
    /// Elements `range`, to write. Panics when out of range.
    pub fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        let View { at, len, .. } = self.view(range);
        ViewMut { at, len, life: PhantomData }
    }
    /// Every element.
    pub fn all(&self) -> View<'_, T> {
        self.view(0..self.len)
    }
    /// Every element, to write.
    pub fn all_mut(&mut self) -> ViewMut<'_, T> {
        self.view_mut(0..self.len)
    }
}

/// An arena that has not been handed out whole.
struct Open<D: Driver> {
    piece: Arc<Piece<D>>,
    used: usize,
}

/// Where buffers come from, and the table of all that were handed out.
pub(super) struct Heap<D: Driver> {
    driver: Arc<D>,
    table: Mutex<Vec<(String, usize)>>,
    arena: Mutex<Option<Open<D>>>,
    taken: Arc<Taken>,
    /// Buffers given back so far: recorded addresses are good while it stands still.
    pub freed: Arc<AtomicU64>,
    /// Buffers are counted, not made.
    pub counting: bool,
}

impl<D: Driver> Heap<D> {
    pub fn new(driver: &Arc<D>, counting: bool) -> Self {
        Heap {
            driver: driver.clone(),
            table: Mutex::default(),
            arena: Mutex::default(),
            taken: Arc::default(),
            freed: Arc::default(),
            counting,
        }
    }

    pub fn table(&self) -> Vec<(String, usize)> {
        lock(&self.table).clone()
    }

    /// Most bytes that were taken from the device at a time.
    pub fn peak(&self) -> usize {
        self.taken.most.load(Ordering::Relaxed)
    }

    /// `len` zeros, from the arena where it has room.
    pub fn alloc<T: Storage>(&self, name: &str, len: usize) -> Result<Buf<D, T>> {
        let bytes =
            len.checked_mul(size_of::<T>()).ok_or_else(|| Error::Device(format!("`{name}`: {len} elements")))?;
        let (home, at) = match self.counting {
            true => (None, 0),
            false => {
                let (piece, at) =
                    self.piece(bytes).map_err(|e| Error::Device(format!("`{name}` ({bytes} bytes): {e}")))?;
                (Some(piece), at)
            }
        };
        lock(&self.table).push((name.to_owned(), bytes));
        Ok(Buf { _home: home, freed: self.freed.clone(), at, len, element: PhantomData })
    }

    fn piece(&self, bytes: usize) -> Result<(Arc<Piece<D>>, u64)> {
        let mut arena = lock(&self.arena);
        if let Some(open) = arena.as_mut().filter(|open| bytes <= open.piece.bytes - open.used) {
            let (piece, at) = (open.piece.clone(), open.piece.at + open.used as u64);
            // The arena's length is a multiple of this too. Nothing is handed out twice, so all of it is still zero.
            open.used += bytes.next_multiple_of(ALIGN);
            if open.used == open.piece.bytes {
                *arena = None;
            }
            return Ok((piece, at));
        }
        let piece = Arc::new(Piece::new(&self.driver, &self.taken, bytes)?);
        let at = piece.at;
        Ok((piece, at))
    }

    /// Takes an arena for everything in `table`. What is left of an earlier one is given up.
    pub fn reserve(&self, table: &[(String, usize)]) -> Result<()> {
        let mut arena = lock(&self.arena);
        *arena = None;
        let bytes = arena_bytes(table);
        if bytes > 0 && !self.counting {
            *arena = Some(Open { piece: Arc::new(Piece::new(&self.driver, &self.taken, bytes)?), used: 0 });
        }
        Ok(())
    }
}

/// Bytes of an arena that holds everything in `table`.
fn arena_bytes(table: &[(String, usize)]) -> usize {
    table.iter().map(|(_, bytes)| bytes.next_multiple_of(ALIGN)).sum()
}
