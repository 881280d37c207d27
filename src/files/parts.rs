//! Items of one size, each in the part that its hash names: what is too much for memory is worked through part by part.

use crate::error::Result;
use crate::files::records::Words;
use std::path::Path;

/// Parts of a [`Parts`].
pub const PARTS: usize = 256;

/// Items of `item` words in [`PARTS`] parts. They lie in one scratch file, in blocks; of each part one block is in memory.
#[derive(Debug)]
pub struct Parts {
    item: usize,
    /// Words of a block.
    block: usize,
    open: Vec<Vec<u32>>,
    /// Where the full blocks of each part begin.
    full: Vec<Vec<u64>>,
    file: Words,
}

impl Parts {
    /// Empty ones whose open blocks take `limit` words of memory together; the file lies on the disk of `folder`.
    pub fn new(folder: &Path, item: usize, limit: usize) -> Result<Self> {
        let block = (limit / PARTS / item).clamp(1, (1 << 14) / item) * item;
        Ok(Self {
            item,
            block,
            open: vec![Vec::new(); PARTS],
            full: vec![Vec::new(); PARTS],
            file: Words::new(folder)?,
        })
    }

    /// Adds an item to part `part` (below [`PARTS`]), behind those that are there.
    pub fn push(&mut self, part: usize, item: &[u32]) -> Result<()> {
        debug_assert_eq!(item.len(), self.item);
        let open = &mut self.open[part];
        open.extend_from_slice(item);
        if open.len() >= self.block {
            self.full[part].push(self.file.len());
            self.file.push(open)?;
            open.clear();
        }
        Ok(())
    }

    /// Call once all items are in, before they are read.
    pub fn seal(&mut self) -> Result<()> {
        self.file.flush()
    }

    /// The items of part `part` in the order in which they came.
    pub fn read(&self, part: usize) -> PartReader<'_> {
        PartReader { parts: self, part, block: 0, held: Vec::new(), next: 0 }
    }
}

/// Reads one part of a [`Parts`].
#[derive(Debug)]
pub struct PartReader<'a> {
    parts: &'a Parts,
    part: usize,
    /// The next block.
    block: usize,
    held: Vec<u32>,
    next: usize,
}

impl PartReader<'_> {
    /// The next item.
    #[allow(clippy::should_implement_trait)] // lends what it returns
    pub fn next(&mut self) -> Result<Option<&[u32]>> {
        if self.next == self.held.len() {
            let Parts { block, open, full, file, .. } = self.parts;
            self.next = 0;
            match full[self.part].get(self.block) {
                Some(&at) => {
                    self.held.resize(*block, 0);
                    file.read(at, &mut self.held)?;
                }
                None if self.block == full[self.part].len() => self.held.clone_from(&open[self.part]),
                None => self.held.clear(),
            }
            self.block += 1;
            if self.held.is_empty() {
                return Ok(None);
            }
        }
        self.next += self.parts.item;
        Ok(Some(&self.held[self.next - self.parts.item..self.next]))
    }
}
