//! Just enough of Thrift's compact protocol to look at a footer and at page headers before anything is allocated for them.
//! Every function answers `None` where the bytes end or mean nothing.

const BOOL: [u8; 2] = [1, 2];
const LIST: u8 = 9;
const STRUCT: u8 = 12;
/// Structures within structures; Parquet has five.
const DEPTH: u8 = 16;

/// Reads from the start of `bytes`.
pub struct Thrift<'a> {
    bytes: &'a [u8],
    /// Bytes read.
    pub at: usize,
    depth: u8,
}

impl<'a> Thrift<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn pass(&mut self, n: usize) -> Option<()> {
        (n <= self.left()).then(|| self.at += n)
    }

    /// An unsigned number.
    pub fn unsigned(&mut self) -> Option<u64> {
        let mut x = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            x |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(x);
            }
        }
        None
    }

    /// A signed number.
    pub fn signed(&mut self) -> Option<i64> {
        let x = self.unsigned()?;
        Some((x >> 1) as i64 ^ -((x & 1) as i64))
    }

    /// A number that counts or measures something.
    pub fn count(&mut self) -> Option<u64> {
        u64::try_from(self.signed()?).ok()
    }

    /// Reads a structure: `field` is handed each field's id and kind and reads or skips it.
    pub fn structure(&mut self, field: &mut dyn FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return None;
        }
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                self.depth -= 1;
                return Some(());
            }
            id = if head >> 4 == 0 { self.signed()? } else { id + i64::from(head >> 4) };
            field(self, id, head & 15)?;
        }
    }

    /// The number of elements of a list and their kind.
    pub fn list(&mut self) -> Option<(usize, u8)> {
        let head = self.byte()?;
        let len = if head >> 4 == 15 { usize::try_from(self.unsigned()?).ok()? } else { usize::from(head >> 4) };
        // An element takes a byte at least.
        (len <= self.left()).then_some((len, head & 15))
    }

    /// Passes over a value of a field.
    pub fn skip(&mut self, kind: u8) -> Option<()> {
        if BOOL.contains(&kind) { Some(()) } else { self.skip_element(kind) }
    }

    fn skip_element(&mut self, kind: u8) -> Option<()> {
        match kind {
            1..=3 => self.pass(1),
            4..=6 => self.unsigned().map(|_| ()),
            7 => self.pass(8),
            8 => {
                let len = usize::try_from(self.unsigned()?).ok()?;
                self.pass(len)
            }
            LIST | 10 => {
                let (len, kind) = self.list()?;
                (0..len).try_for_each(|_| self.skip_element(kind))
            }
            STRUCT => self.structure(&mut |t, _, kind| t.skip(kind)),
            13 => self.pass(16),
            _ => None, // maps: Parquet has none
        }
    }
}

/// Whether the schema in a footer (`FileMetaData`) holds together: every group's children are there, and it is not deep.
pub fn schema_is_sound(footer: &[u8]) -> bool {
    let mut children = Vec::new();
    let read = Thrift::new(footer).structure(&mut |t, id, kind| {
        if (id, kind) != (2, LIST) {
            return t.skip(kind);
        }
        let (len, STRUCT) = t.list()? else { return None };
        for _ in 0..len {
            let mut n = 0;
            t.structure(&mut |t, id, kind| match (id, kind) {
                (5, 5) => t.count().map(|x| n = x),
                _ => t.skip(kind),
            })?;
            children.push(n);
        }
        Some(())
    });
    read.is_some() && is_tree(&children)
}

/// Whether numbers of children in depth-first order make one tree of a depth that recursion bears.
fn is_tree(children: &[u64]) -> bool {
    let mut open: Vec<u64> = vec![1];
    for n in children {
        while open.last() == Some(&0) {
            open.pop();
        }
        match open.last_mut() {
            Some(left) => *left -= 1,
            None => return false,
        }
        if *n > children.len() as u64 || open.len() > 100 {
            return false;
        }
        open.push(*n);
    }
    open.iter().all(|left| *left == 0)
}

/// A page's header, in sizes and numbers.
#[derive(Default, Debug, PartialEq)]
pub struct PageHeader {
    /// 0 data, 1 index, 2 dictionary, 3 data of version 2.
    pub kind: u64,
    /// Bytes of the page, decompressed.
    pub size: u64,
    /// Bytes of the page in the file.
    pub stored: u64,
    /// Values, nulls included.
    pub values: u64,
    pub encoding: u64,
    /// Encodings of definition and repetition levels (version 1).
    pub levels: (u64, u64),
    /// Bytes of definition and repetition levels (version 2).
    pub level_bytes: (u64, u64),
    pub nulls: u64,
    pub rows: u64,
    /// Version 2 may leave a page as it is.
    pub plain: bool,
}

impl PageHeader {
    /// The header at the start of `bytes`, and its length.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut t = Thrift::new(bytes);
        let mut h = PageHeader::default();
        let mut seen = [false; 3];
        t.structure(&mut |t, id, kind| match (id, kind) {
            (1, 5) => t.count().map(|x| (h.kind, seen[0]) = (x, true)),
            (2, 5) => t.count().map(|x| (h.size, seen[1]) = (x, true)),
            (3, 5) => t.count().map(|x| (h.stored, seen[2]) = (x, true)),
            (5 | 7 | 8, STRUCT) => {
                let v2 = id == 8;
                t.structure(&mut |t, id, kind| match (id, kind, v2) {
                    (1, 5, _) => t.count().map(|x| h.values = x),
                    (2, 5, false) | (4, 5, true) => t.count().map(|x| h.encoding = x),
                    (3, 5, false) => t.count().map(|x| h.levels.0 = x),
                    (4, 5, false) => t.count().map(|x| h.levels.1 = x),
                    (2, 5, true) => t.count().map(|x| h.nulls = x),
                    (3, 5, true) => t.count().map(|x| h.rows = x),
                    (5, 5, true) => t.count().map(|x| h.level_bytes.0 = x),
                    (6, 5, true) => t.count().map(|x| h.level_bytes.1 = x),
                    (7, 1 | 2, true) => {
                        h.plain = kind == 2;
                        Some(())
                    }
                    _ => t.skip(kind),
                })
            }
            _ => t.skip(kind),
        })?;
        seen.iter().all(|s| *s).then_some((h, t.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_told_from_what_only_says_so() {
        for (children, sound) in [
            (vec![0], true),
            (vec![2, 0, 1, 0], true),
            (vec![], false),
            (vec![1], false),
            (vec![0, 0], false),
            (vec![1 << 31, 0], false),
            ([vec![1; 98], vec![0]].concat(), true),
            ([vec![1; 100], vec![0]].concat(), false),
        ] {
            assert_eq!(is_tree(&children), sound, "{children:?}");
        }
    }

    #[test]
    fn headers_end_where_they_end() {
        // type 0, 10 bytes, 7 stored, crc, data page {3 values, PLAIN, RLE, RLE}
        let bytes = [0x15, 0, 0x15, 20, 0x15, 14, 0x15, 1, 0x1c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0, 99];
        let (header, len) = PageHeader::read(&bytes).unwrap();
        assert_eq!((header.size, header.stored, header.values, header.levels, len), (10, 7, 3, (3, 3), 19));
        for cut in 0..19 {
            assert!(PageHeader::read(&bytes[..cut]).is_none());
        }
        assert!(PageHeader::read(&[0x15, 0, 0x15, 19, 0x15, 14, 0]).is_none(), "a negative size");
    }
}
