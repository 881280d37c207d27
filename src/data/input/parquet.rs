//! Parquet through the `parquet` crate's row API: slower than Arrow, but tokenising is slower still, and Arrow
//! would triple the compile time.

use super::raw::{Place, RawBody, RawRow, RowIter, weight};
use super::reading::Gauge;
use crate::error::{Error, Result};
use crate::files;
use crate::guard::guarded;
use parquet::basic::{LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Number, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a Parquet file. Errors name the file: damaged, or a column type that no row shape uses.
pub fn open(path: &Path, size: u64, gauge: Gauge) -> Result<RowIter> {
    let file = files::open(path)?;
    let reader = guarded(|| SerializedFileReader::new(file))
        .ok_or_else(|| damaged(path, "its footer cannot be decoded"))?
        .map_err(|e| damaged(path, &e.to_string()))?;
    let meta = reader.metadata().file_metadata();
    for column in meta.schema_descr().columns() {
        // The row API panics on these; no field of a row is one of them.
        let unusual = matches!(column.logical_type_ref(), Some(LogicalType::Time { .. } | LogicalType::Variant { .. }));
        if unusual && column.physical_type() != Physical::BYTE_ARRAY {
            return Err(Error::file(path, format!("column `{}` has a time type; leave it out", column.path())));
        }
    }
    let rows = u64::try_from(meta.num_rows()).unwrap_or(0);
    let path = Arc::new(path.to_owned());
    Ok(Box::new(Rows { rows: reader.into_iter(), path, next: 0, total: rows.max(1), size, gauge, done: false }))
}

struct Rows {
    rows: parquet::record::reader::RowIter<'static>,
    path: Arc<PathBuf>,
    next: u64,
    total: u64,
    size: u64,
    gauge: Gauge,
    done: bool,
}

impl Iterator for Rows {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let rows = &mut self.rows;
        let row = match guarded(|| rows.next()) {
            Some(row) => row?,
            None => {
                self.done = true;
                return Some(Err(damaged(&self.path, &format!("row {} cannot be decoded", self.next + 1))));
            }
        };
        self.next += 1;
        let share = |n: u64| (self.size as u128 * n as u128 / self.total as u128) as u64;
        self.gauge.took(share(self.next).saturating_sub(share(self.next - 1)));
        let place = Place { path: self.path.clone(), line: self.next, unit: "row" };
        Some(match row {
            Ok(row) => columns(row).map_err(|why| place.error(why)).and_then(|map| {
                let size = map.values().map(weight).sum();
                self.gauge.row(size as u64, &place)?;
                Ok(RawRow { body: RawBody::Columns(map), place, size })
            }),
            Err(e) => {
                self.done = true;
                Err(damaged(&self.path, &e.to_string()))
            }
        })
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::file(path, format!("damaged or unsupported Parquet: {}; fetch or write the file again", why.trim()))
}

fn columns(row: parquet::record::Row) -> Result<Map<String, Value>, String> {
    row.into_columns().into_iter().map(|(name, field)| Ok((name, value(field)?))).collect()
}

/// A Parquet field as the JSON value it stands for; types without one (dates, decimals) become their text.
fn value(field: Field) -> Result<Value, String> {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float16(x) => float(x.into()),
        Field::Float(x) => float(x.into()),
        Field::Double(x) => float(x),
        Field::Str(x) => x.into(),
        Field::Bytes(x) => match String::from_utf8(x.data().to_vec()) {
            Ok(text) => text.into(),
            Err(_) => return Err("a binary column is not UTF-8; convert it to strings".into()),
        },
        Field::Group(row) => Value::Object(columns(row)?),
        Field::ListInternal(list) => {
            list.elements().iter().map(|f| value(f.clone())).collect::<Result<Vec<_>, _>>()?.into()
        }
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, item) in map.entries() {
                let key = match value(key.clone())? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                object.insert(key, value(item.clone())?);
            }
            object.into()
        }
        other => other.to_string().into(),
    })
}
