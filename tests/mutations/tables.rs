//! Parquet of nested, optional and numeric columns.

use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use std::sync::Arc;

/// A column: values of one type, with their definition and repetition levels.
enum Column {
    Text(Vec<&'static str>, Vec<i16>, Vec<i16>),
    Double(Vec<f64>, Vec<i16>),
    Float(Vec<f32>, Vec<i16>),
    Int32(Vec<i32>, Vec<i16>),
    Int64(Vec<i64>, Vec<i16>),
    Bool(Vec<bool>, Vec<i16>),
}

/// Every table: plain ones made here, and those of `tests/formats`, of every codec, by three other programs.
pub fn all() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "parquet"));
    files.sort();
    let others = files.iter().map(|path| std::fs::read(path).unwrap());
    [scored(), dialogues()].into_iter().chain(others).collect()
}

fn file(schema: &str, columns: Vec<Column>) -> Vec<u8> {
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut w = group.next_column().unwrap().unwrap();
        match column {
            Column::Text(values, def, rep) => {
                let values: Vec<ByteArray> = values.into_iter().map(Into::into).collect();
                let rep = (!rep.is_empty()).then_some(&rep[..]);
                w.typed::<ByteArrayType>().write_batch(&values, Some(&def), rep).unwrap()
            }
            Column::Double(values, def) => w.typed::<DoubleType>().write_batch(&values, Some(&def), None).unwrap(),
            Column::Float(values, def) => w.typed::<FloatType>().write_batch(&values, Some(&def), None).unwrap(),
            Column::Int32(values, def) => w.typed::<Int32Type>().write_batch(&values, Some(&def), None).unwrap(),
            Column::Int64(values, def) => w.typed::<Int64Type>().write_batch(&values, Some(&def), None).unwrap(),
            Column::Bool(values, def) => w.typed::<BoolType>().write_batch(&values, Some(&def), None).unwrap(),
        };
        w.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

/// Optional numbers beside text.
fn scored() -> Vec<u8> {
    let schema = "message m { optional binary prompt (UTF8); optional binary chosen (UTF8); optional binary rejected (UTF8);
        optional double weight; optional float score; optional int32 rank; optional int64 id; optional boolean label; }";
    let text = |v: [&'static str; 2]| Column::Text(v.into(), vec![1, 0, 1], vec![]);
    file(
        schema,
        vec![
            Column::Text(vec!["w3", "w4", "w3"], vec![1, 1, 1], vec![]),
            text([" w5", " w6"]),
            text([" w7", " w8"]),
            Column::Double(vec![1.0, f64::NAN], vec![1, 0, 1]),
            Column::Float(vec![0.5], vec![0, 0, 1]),
            Column::Int32(vec![i32::MIN, 7], vec![1, 1, 0]),
            Column::Int64(vec![i64::MAX], vec![1, 0, 0]),
            Column::Bool(vec![true, false, true], vec![1, 1, 1]),
        ],
    )
}

/// Lists of messages.
fn dialogues() -> Vec<u8> {
    let schema = "message m { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } optional binary source (UTF8); }";
    let text = |v: Vec<&'static str>, def: [i16; 5]| Column::Text(v, def.into(), vec![0, 1, 1, 0, 1]);
    file(
        schema,
        vec![
            text(vec!["system", "user", "assistant", "user", "assistant"], [4, 4, 4, 4, 4]),
            text(vec!["w3", "w4", "w5", "w6"], [3, 4, 4, 4, 4]),
            Column::Text(vec!["a"], vec![1, 0], vec![]),
        ],
    )
}
