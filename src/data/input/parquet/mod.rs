//! Parquet: the footer through the `parquet` crate, pages within bounds of our own ([`page`]), their values through the crate
//! again, and rows put together here ([`tree`]). The crate's rows are not used: they panic on types that a row may have
//! beside those that it needs, and ask for as much memory as a file says. Nor is Arrow: it would add half to the build.
//!
//! Columns that no row shape uses are not read.

mod codec;
mod column;
mod delta;
mod page;
mod room;
mod thrift;
mod tree;
mod value;

use super::fields::used;
use super::python_json::mark;
use super::raw::{Place, RawBody, RawRow, RowIter, content, weight};
use super::reading::{Gauge, Reading};
use crate::error::{Error, Result};
use crate::guard::guarded;
use column::Column;
use page::{Pages, Shared};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use room::{Room, Trouble};
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::Node;

/// Rows read at a time, unless they are long.
const ROWS: usize = 256;
/// Values of a column that are long.
const LONG: usize = 1 << 16;
/// Most bytes of a footer.
const FOOTER: u64 = 32 << 20;

/// Rows of a Parquet file. Errors name the file: damaged, encrypted, or without a column that a row can use.
pub fn open(path: &Path, file: File, size: u64, how: &Reading, gauge: Gauge) -> Result<RowIter> {
    check_footer(&file, size).map_err(|why| damaged(path, &why))?;
    let meta = guarded(|| ParquetMetaDataReader::new().parse_and_finish(&file))
        .ok_or_else(|| damaged(path, "its footer cannot be decoded"))?
        .map_err(|e| damaged(path, &reason(&e)))?;
    let schema = meta.file_metadata().schema_descr();
    let mut fields = Vec::new();
    let mut first = 0;
    for field in schema.root_schema().get_fields() {
        let node = Node::new(field, first).map_err(|why| damaged(path, &why))?;
        first = node.columns.end;
        fields.push((field.name().to_owned(), used(field.name(), &how.map).then_some(node)));
    }
    if first != schema.num_columns() {
        return Err(damaged(path, "its columns do not make a row"));
    }
    let total = meta.row_groups().iter().map(|g| u64::try_from(g.num_rows()).unwrap_or(0)).fold(0, u64::saturating_add);
    if total > 0 && fields.iter().all(|(_, node)| node.is_none()) {
        let names = super::fields::names(&fields.into_iter().map(|(name, _)| (name, Value::Null)).collect());
        return Err(Error::file(
            path,
            format!("no row can be made of its columns, {names}; rename them with `options.map` FIELD=COLUMN"),
        ));
    }
    let (file, path) = (Arc::new(file), Arc::new(path.to_owned()));
    let group = Group { columns: Vec::new(), left: 0 };
    Ok(Box::new(Rows {
        meta,
        fields,
        file,
        path,
        gauge,
        size,
        total,
        group,
        groups: 0,
        rows: 0,
        ready: VecDeque::new(),
        ask: 1,
        done: false,
    }))
}

/// Checks what decoding a footer would take for granted.
fn check_footer(mut file: &File, size: u64) -> Result<(), String> {
    let mut read = |at: u64, len: usize| -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    if size < 12 {
        return Err("it is cut short".into());
    }
    let tail = read(size - 8, 8)?;
    let len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    match &tail[4..] {
        b"PAR1" => {}
        b"PARE" => return Err("it is encrypted; write it without".into()),
        _ => return Err("it is cut short: it does not end as it begins".into()),
    }
    if len > size - 12 {
        return Err("its footer is longer than the file".into());
    }
    if len > FOOTER {
        return Err(format!("its footer of {len} bytes is more than {FOOTER}"));
    }
    let sound = thrift::schema_is_sound(&read(size - 8 - len, len as usize)?);
    if sound { Ok(()) } else { Err("its schema cannot be decoded".into()) }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::file(path, format!("damaged or unsupported Parquet: {}; fetch or write the file again", why.trim()))
}

fn reason(e: &parquet::errors::ParquetError) -> String {
    let text = e.to_string();
    text.strip_prefix("Parquet error: ").unwrap_or(&text).to_owned()
}

/// A row group that is read.
struct Group {
    /// Of the fields that are used, in order.
    columns: Vec<Column>,
    /// Rows to come.
    left: u64,
}

struct Rows {
    meta: ParquetMetaData,
    /// Fields of a row; those that nobody uses have no node.
    fields: Vec<(String, Option<Node>)>,
    file: Arc<File>,
    path: Arc<PathBuf>,
    gauge: Gauge,
    size: u64,
    total: u64,
    group: Group,
    /// Row groups begun.
    groups: usize,
    /// Rows made.
    rows: u64,
    ready: VecDeque<RawRow>,
    /// Rows to ask for next.
    ask: usize,
    done: bool,
}

impl Iterator for Rows {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.done {
            match guarded(|| self.read()) {
                Some(Ok(more)) => self.done = !more,
                Some(Err(e)) => {
                    self.done = true;
                    return Some(Err(e));
                }
                None => {
                    self.done = true;
                    return Some(Err(damaged(&self.path, &format!("row {} cannot be decoded", self.rows + 1))));
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

impl Rows {
    fn damaged(&self, why: &str) -> Error {
        damaged(&self.path, &format!("near row {}: {why}", self.rows + 1))
    }

    /// Makes a few rows ready; false at the end.
    fn read(&mut self) -> Result<bool> {
        while self.group.left == 0 {
            if self.groups == self.meta.num_row_groups() {
                return Ok(false);
            }
            self.begin_group().map_err(|e| self.damaged(&reason(&e)))?;
        }
        let ask = (self.ask as u64).min(self.group.left) as usize;
        let mut longest = 0;
        for i in 0..self.group.columns.len() {
            let column = &mut self.group.columns[i];
            let got = column.fill(ask);
            longest = longest.max(column.len());
            match got {
                Ok(got) if got == ask => {}
                Ok(_) => return Err(self.damaged("a column has fewer values than rows")),
                Err(e) => return Err(self.damaged(&reason(&e))),
            }
        }
        for _ in 0..ask {
            let row = self.row()?;
            self.ready.push_back(row);
        }
        self.group.left -= ask as u64;
        let bytes: usize = self.ready.iter().map(|row| row.size).sum();
        // As many as are not long all together.
        self.ask = if longest > LONG || bytes > 1 << 20 { (ask / 2).max(1) } else { (ask * 2).min(ROWS) };
        Ok(true)
    }

    fn begin_group(&mut self) -> parquet::errors::Result<()> {
        let group = self.meta.row_group(self.groups);
        self.groups += 1;
        let shared = Arc::new(Shared::default());
        let mut columns = Vec::new();
        for node in self.fields.iter().filter_map(|(_, node)| node.as_ref()) {
            for i in node.columns.clone() {
                let meta = group
                    .columns()
                    .get(i)
                    .ok_or_else(|| parquet::errors::ParquetError::General("a column is missing".into()))?;
                let run = Arc::default();
                let pages = Pages::new(self.file.clone(), self.size, meta, shared.clone(), Arc::clone(&run))?;
                columns.push(Column::new(meta.column_descr_ptr(), Box::new(pages), run));
            }
        }
        self.group = Group { columns, left: u64::try_from(group.num_rows()).unwrap_or(0) };
        Ok(())
    }

    fn row(&mut self) -> Result<RawRow> {
        let place = Place { path: self.path.clone(), line: self.rows + 1, unit: "row" };
        let mut room = Room(self.gauge.room());
        let mut map = Map::with_capacity(self.fields.len());
        let mut before = 0;
        for (name, node) in &self.fields {
            let Some(node) = node else {
                map.insert(name.clone(), mark("a column that is not read"));
                continue;
            };
            let base = node.columns.start - before;
            let mine = before..before + node.columns.len();
            before = mine.end;
            let columns = &mut self.group.columns;
            let (value, read) = match node.read(columns, base, &mut room) {
                Ok(value) => (value, true),
                Err(Trouble::Strange(what)) => (mark(&what), false),
                Err(Trouble::TooLong) => return Err(self.gauge.too_long(&place)),
                Err(Trouble::Damaged(why)) => return Err(self.damaged(&why)),
            };
            for column in &mut columns[mine] {
                if let Err(Trouble::Damaged(why)) = column.end_row(read) {
                    return Err(self.damaged(&why));
                }
            }
            map.insert(name.clone(), value);
        }
        self.rows += 1;
        let share = |n: u64| (u128::from(self.size) * u128::from(n) / u128::from(self.total.max(1))) as u64;
        self.gauge.took(share(self.rows) - share(self.rows - 1));
        self.gauge.row(map.values().map(content).sum::<usize>() as u64, &place)?;
        let size = map.values().map(weight).sum();
        Ok(RawRow { place, body: RawBody::Columns(map), size })
    }
}
