//! One column of a row group: its values and their levels, a few rows at a time.

use super::room::{Room, Trouble};
use super::value::{Kind, Raw, json};
use parquet::column::page::PageReader;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{
    BoolType, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type, Int96Type,
};
use parquet::errors::Result;
use parquet::schema::types::ColumnDescPtr;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A column and its place in it.
pub struct Column {
    values: Box<dyn Values>,
    kind: Kind,
    /// Highest definition and repetition levels.
    max: (i16, i16),
    levels: Levels,
    /// The next level and the next value.
    at: (usize, usize),
    /// Those at the start of the row at hand.
    row: (usize, usize),
    /// Counts the values of pages since rows were asked for.
    run: Arc<AtomicU64>,
}

#[derive(Default)]
struct Levels {
    def: Vec<i16>,
    rep: Vec<i16>,
    count: usize,
}

trait Values: Send {
    /// Replaces what is there by the next `rows` rows, or fewer at the end; answers how many.
    fn fill(&mut self, rows: usize, levels: &mut Levels) -> Result<usize>;
    fn get(&self, at: usize) -> Option<Raw<'_>>;
}

struct Typed<T: DataType> {
    reader: ColumnReaderImpl<T>,
    values: Vec<T::T>,
    raw: for<'a> fn(&'a T::T) -> Raw<'a>,
}

impl<T: DataType> Values for Typed<T> {
    fn fill(&mut self, rows: usize, levels: &mut Levels) -> Result<usize> {
        self.values.clear();
        levels.def.clear();
        levels.rep.clear();
        let (def, rep) = (Some(&mut levels.def), Some(&mut levels.rep));
        let (rows, _, count) = self.reader.read_records(rows, def, rep, &mut self.values)?;
        levels.count = count;
        Ok(rows)
    }

    fn get(&self, at: usize) -> Option<Raw<'_>> {
        self.values.get(at).map(self.raw)
    }
}

fn typed<T: DataType>(reader: ColumnReaderImpl<T>, raw: for<'a> fn(&'a T::T) -> Raw<'a>) -> Box<dyn Values> {
    Box::new(Typed::<T> { reader, values: Vec::new(), raw })
}

impl Column {
    pub fn new(descr: ColumnDescPtr, pages: Box<dyn PageReader>, run: Arc<AtomicU64>) -> Self {
        let kind = Kind::of(&descr);
        let max = (descr.max_def_level(), descr.max_rep_level());
        let values = match get_column_reader(descr, pages) {
            ColumnReader::BoolColumnReader(r) => typed::<BoolType>(r, |x| Raw::Bool(*x)),
            ColumnReader::Int32ColumnReader(r) => typed::<Int32Type>(r, |x| Raw::Int(i64::from(*x))),
            ColumnReader::Int64ColumnReader(r) => typed::<Int64Type>(r, |x| Raw::Int(*x)),
            ColumnReader::Int96ColumnReader(r) => typed::<Int96Type>(r, |x| Raw::Int96(x.data())),
            ColumnReader::FloatColumnReader(r) => typed::<FloatType>(r, |x| Raw::Float(f64::from(*x))),
            ColumnReader::DoubleColumnReader(r) => typed::<DoubleType>(r, |x| Raw::Float(*x)),
            ColumnReader::ByteArrayColumnReader(r) => typed::<ByteArrayType>(r, |x| Raw::Bytes(x.data())),
            ColumnReader::FixedLenByteArrayColumnReader(r) => {
                typed::<FixedLenByteArrayType>(r, |x| Raw::Bytes(x.data()))
            }
        };
        Self { values, kind, max, levels: Levels::default(), at: (0, 0), row: (0, 0), run }
    }

    /// Reads the next `rows` rows, or fewer at the end; answers how many.
    pub fn fill(&mut self, rows: usize) -> Result<usize> {
        self.run.store(0, Ordering::Relaxed);
        (self.at, self.row) = ((0, 0), (0, 0));
        self.values.fill(rows, &mut self.levels)
    }

    /// Values, nulls included, of the rows that were read.
    pub fn len(&self) -> usize {
        self.levels.count
    }

    /// The definition level of what comes next; `None` at the end of what was read.
    pub fn def(&self) -> Option<i16> {
        let there = self.at.0 < self.levels.count;
        if self.max.0 == 0 { there.then_some(0) } else { self.levels.def.get(self.at.0).copied() }
    }

    /// The repetition level of what comes next; 0 is a new row.
    pub fn rep(&self) -> Option<i16> {
        let there = self.at.0 < self.levels.count;
        if self.max.1 == 0 { there.then_some(0) } else { self.levels.rep.get(self.at.0).copied() }
    }

    /// Goes on by one value or null.
    pub fn pass(&mut self) {
        self.at.1 += usize::from(self.def() == Some(self.max.0));
        self.at.0 += 1;
    }

    /// What comes next, which is no null.
    pub fn value(&self, room: &mut Room) -> std::result::Result<Value, Trouble> {
        match self.values.get(self.at.1) {
            Some(raw) if self.def() == Some(self.max.0) => json(&self.kind, raw, room),
            _ => Err(Trouble::Damaged("a value is missing where none may be".into())),
        }
    }

    /// Goes to the start of the next row, wherever in this one it is. Errors: the row is read to its end or beyond, and
    /// the next value belongs to it still.
    pub fn end_row(&mut self, read: bool) -> std::result::Result<(), Trouble> {
        if !read {
            self.at = self.row;
            self.pass();
            while self.rep().is_some_and(|rep| rep > 0) {
                self.pass();
            }
        }
        if self.rep().is_some_and(|rep| rep > 0) || self.at.0 == self.row.0 {
            return Err(Trouble::Damaged("columns of one field end at different places".into()));
        }
        self.row = self.at;
        Ok(())
    }
}
