//! CSV and TSV (RFC 4180): the first line names the columns, a cell is text, an empty one is null.
//!
//! A table has no lists, so writers put them into cells as JSON, or as Python prints them (pandas and `datasets` do):
//! cells of columns that hold dialogues, lists or numbers are read as such ([`Cells`]).

use super::cells::Cells;
use super::fields::{FieldMap, used};
use super::raw::{Place, RawBody, RawRow};
use super::reading::Gauge;
use crate::error::{Error, Result};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the first line of a text says of it: the delimiter, if it looks like a table's header. `named` says that the file's
/// name is a table's, and which delimiter that means.
pub(super) fn delimiter(head: &[u8], named: Option<u8>, map: &FieldMap) -> Option<u8> {
    let line = std::str::from_utf8(head.trim_ascii_start().split(|b| *b == b'\n').next()?).ok()?;
    if line.trim_start().starts_with(['{', '[']) {
        return None;
    }
    // The delimiter that makes the most columns of use; the name's own among equals.
    let useful = |delimiter: u8| {
        let cells = line.trim_end().split(char::from(delimiter)).map(|c| c.trim_matches('"'));
        cells.filter(|c| used(c, map)).count()
    };
    let (first, others) = (named.unwrap_or(b','), [b',', b'\t', b';', b'|']);
    let best = std::iter::once(first)
        .chain(others)
        .fold((first, useful(first)), |best, d| if useful(d) > best.1 { (d, useful(d)) } else { best });
    (named.is_some() || best.1 > 0).then_some(best.0)
}

/// The delimiter that a file's name means: `.csv` or `.tsv`, perhaps packed.
pub(super) fn named(path: &Path) -> Option<u8> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let name = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    let ends = [(".csv", b','), (".tsv", b'\t'), (".tab", b'\t')];
    ends.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, delimiter)| delimiter)
}

/// Rows of a table.
pub(super) struct Rows<R> {
    reader: ::csv::Reader<Sentinel<R>>,
    names: Arc<Vec<String>>,
    fields: Arc<Vec<String>>,
    path: Arc<PathBuf>,
    gauge: Gauge,
    /// Bytes given to the reader since it began the row.
    given: Arc<AtomicU64>,
    chunk: Arc<Mutex<Chunk>>,
    done: bool,
}

/// What is put after the text's end: a row of it is none, and a cell that holds it has no end.
const END: &str = "\u{1}end of the table\u{1}";

/// Text with [`END`] after it, which counts the bytes that it gives, and gives no more than a row may have.
struct Sentinel<R> {
    text: R,
    end: &'static [u8],
    last: u8,
    given: Arc<AtomicU64>,
    most: u64,
    chunk: Arc<Mutex<Chunk>>,
}

/// The bytes that the reader was given last, and where in the text they begin: what ended a row is among them.
#[derive(Default)]
struct Chunk {
    start: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    fn next(&mut self, bytes: &[u8]) {
        self.start += self.bytes.len() as u64;
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether the byte before `end` is a line feed.
    fn ends_line(&self, end: u64) -> bool {
        let at = end.checked_sub(self.start + 1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.bytes.get(at)) == Some(&b'\n')
    }
}

impl<R: Read> Read for Sentinel<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.text.read(buf)?;
        if n > 0 {
            self.last = buf[n - 1];
            if self.given.fetch_add(n as u64, Ordering::Relaxed) > self.most {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            self.given_now(&buf[..n]);
            return Ok(n);
        }
        let mut at = 0;
        if self.end.len() == END.len() && !matches!(self.last, b'\n' | b'\r') {
            self.last = b'\n';
            buf[0] = b'\n';
            at = 1;
        }
        let n = self.end.len().min(buf.len() - at);
        buf[at..at + n].copy_from_slice(&self.end[..n]);
        self.end = &self.end[n..];
        self.given_now(&buf[..at + n]);
        Ok(at + n)
    }
}

impl<R> Sentinel<R> {
    fn given_now(&self, bytes: &[u8]) {
        self.chunk.lock().unwrap_or_else(PoisonError::into_inner).next(bytes);
    }
}

/// Rows of the table in `text`. Errors: a header that cannot be one.
pub(super) fn open<R: BufRead + Send>(
    path: PathBuf,
    text: R,
    delimiter: u8,
    map: &FieldMap,
    gauge: Gauge,
) -> Result<Rows<R>> {
    let (given, chunk) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Chunk::default())));
    // The reader takes its own buffer's bytes ahead.
    let most = gauge.room().saturating_add(1 << 17);
    let text = Sentinel { text, end: END.as_bytes(), last: b'\n', given: given.clone(), most, chunk: chunk.clone() };
    let reader = ::csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(text);
    let path = Arc::new(path);
    let (names, fields) = Default::default();
    let mut rows = Rows { reader, names, fields, path, gauge, given, chunk, done: false };
    let Some((header, place)) = rows.record()? else { return Ok(rows) };
    let names: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    for (i, name) in names.iter().enumerate() {
        if !name.is_empty() && names[..i].contains(name) {
            return Err(place.error(format!("two columns are named `{name}`; the first line names the columns")));
        }
    }
    let field =
        |name: &String| map.0.iter().find(|(_, column)| column == name).map_or(name, |(field, _)| field).clone();
    rows.fields = Arc::new(names.iter().map(field).collect());
    rows.names = Arc::new(names);
    Ok(rows)
}

impl<R: Read> Rows<R> {
    /// The next record that is one, and its place.
    fn record(&mut self) -> Result<Option<(::csv::StringRecord, Place)>> {
        let mut record = ::csv::StringRecord::new();
        self.given.store(0, Ordering::Relaxed);
        let before = self.reader.position().line();
        let got = self.reader.read_record(&mut record);
        // The reader counts line feeds as it takes them: those before the row are blank lines, or end the row before.
        let inside = record.as_slice().bytes().filter(|b| *b == b'\n').count() as u64;
        let passed = (self.reader.position().line() - before).saturating_sub(inside);
        // A row that a carriage return ends leaves the line feed behind it for later.
        let end = self.reader.position().byte();
        let taken = self.chunk.lock().unwrap_or_else(PoisonError::into_inner).ends_line(end);
        let line = before + passed.saturating_sub(u64::from(taken));
        let place = Place { path: self.path.clone(), line, unit: "line" };
        match got {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(e) => return Err(self.trouble(&e, &place)),
        }
        if record.len() == 1 && record.get(0) == Some(END) {
            return Ok(None);
        }
        if record.iter().next_back().is_some_and(|cell| cell.ends_with(END)) {
            return Err(place.error("the table ends within a quoted cell; a quote (\") is open"));
        }
        self.gauge.row(record.as_slice().len() as u64, &place)?;
        Ok(Some((record, place)))
    }

    fn trouble(&self, e: &::csv::Error, place: &Place) -> Error {
        match e.kind() {
            ::csv::ErrorKind::Io(e) if e.kind() == std::io::ErrorKind::FileTooLarge => self.gauge.too_long(place),
            ::csv::ErrorKind::Utf8 { pos, .. } => {
                let line = pos.as_ref().map_or(place.line, ::csv::Position::line);
                let why = "not UTF-8 (a spreadsheet's own encoding?); convert the file to UTF-8";
                Place { line, ..place.clone() }.error(why)
            }
            ::csv::ErrorKind::Io(e) => place.error(format!("cannot be read ({e}); fetch the file again")),
            _ => place.error(e),
        }
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.record() {
            Ok(Some((record, place))) => {
                let size = record.as_slice().len() + 64;
                let cells = Cells { names: self.names.clone(), fields: self.fields.clone(), record };
                Some(Ok(RawRow { place, body: RawBody::Cells(cells), size }))
            }
            Ok(None) => {
                self.done = true;
                None
            }
            Err(e) => {
                self.done = true;
                Some(Err(e))
            }
        }
    }
}
