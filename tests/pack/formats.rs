//! Files of every format, as the programs that people use write them, against the rows that pyarrow reads from them:
//! `tests/scripts/make_formats.py tests/formats --small --seed 1` made those that are checked always. Without `--small` it
//! makes many more, which are checked too where `FUSEDPO_FORMATS` names their folder.

use fusedpo::data::input::{FieldMap, Reading, open};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Rows of `path` with columns `names`.
fn rows(path: &Path, names: Option<&Map<String, Value>>) -> Vec<Map<String, Value>> {
    let names = names.into_iter().flat_map(|row| row.keys()).map(|name| (name.clone(), name.clone()));
    let how = Reading { map: FieldMap(names.collect()), ..Reading::default() };
    let rows = open(path, how).unwrap_or_else(|e| panic!("{e}"));
    rows.map(|row| {
        let mut row = row.and_then(|row| row.fields()).unwrap_or_else(|e| panic!("{e}"));
        row.retain(|name, _| !name.starts_with("unused"));
        row
    })
    .collect()
}

/// Files in `folder` beside which lie their rows.
fn files(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    let beside =
        |path: &PathBuf| Some((path.clone(), path.with_extension("rows"))).filter(|(a, b)| a != b && b.exists());
    all.iter().filter_map(beside).collect()
}

fn check(folder: &Path) -> usize {
    let files = files(folder);
    let mut values = 0;
    for (path, want) in &files {
        let text = std::fs::read_to_string(want).unwrap();
        let want: Vec<Map<String, Value>> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let got = rows(path, want.first());
        assert_eq!(got.len(), want.len(), "{}", path.display());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{} row {i}", path.display());
            for (name, value) in want {
                assert_eq!(&got[name], value, "{} row {i} column {name}", path.display());
                values += 1;
            }
        }
    }
    println!("{}: {} files, {values} values equal pyarrow's", folder.display(), files.len());
    files.len()
}

#[test]
fn rows_are_those_that_pyarrow_reads() {
    let codecs = ["none", "snappy", "gzip", "brotli", "lz4", "zstd"].len();
    assert!(check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")) >= 2 * codecs);
    if let Some(folder) = std::env::var_os("FUSEDPO_FORMATS") {
        assert!(check(Path::new(&folder)) > 0);
    }
}

/// Values of a column, with their definition and repetition levels.
enum Column<'a> {
    Text(&'a [&'a [u8]]),
    Int(&'a [i32]),
    Long(&'a [i64]),
    Bool(&'a [bool]),
}

type Levels<'a> = (&'a [i16], &'a [i16]);

/// A Parquet file of one row group.
fn parquet(
    schema: &str,
    columns: &[(Column<'_>, Levels<'_>)],
    properties: WriterProperties,
) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let schema = parse_message_type(schema).unwrap();
    let mut writer = SerializedFileWriter::new(file.reopen().unwrap(), schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (values, (def, rep)) in columns {
        let (def, rep) = (Some(*def).filter(|d| !d.is_empty()), Some(*rep).filter(|r| !r.is_empty()));
        let mut column = group.next_column().unwrap().unwrap();
        match values {
            Column::Text(x) => {
                let x: Vec<ByteArray> = x.iter().map(|x| x.to_vec().into()).collect();
                column.typed::<ByteArrayType>().write_batch(&x, def, rep).unwrap();
            }
            Column::Int(x) => drop(column.typed::<Int32Type>().write_batch(x, def, rep).unwrap()),
            Column::Long(x) => drop(column.typed::<Int64Type>().write_batch(x, def, rep).unwrap()),
            Column::Bool(x) => drop(column.typed::<BoolType>().write_batch(x, def, rep).unwrap()),
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    file
}

fn columns_of(file: &tempfile::NamedTempFile) -> Vec<String> {
    rows(file.path(), None).into_iter().map(|row| Value::Object(row).to_string()).collect()
}

#[test]
fn lists_of_every_age_are_lists() {
    let check = |field: &str, def: &[i16], want: &str| {
        let schema = format!("message m {{ {field} }}");
        let file = parquet(&schema, &[(Column::Int(&[1, 2, 3]), (def, &[0, 1, 0]))], Default::default());
        assert_eq!(columns_of(&file).join(" "), want, "{field}");
    };
    let plain = r#"{"scores":[1,2]} {"scores":[3]}"#;
    check("optional group scores (LIST) { repeated group list { optional int32 element; } }", &[3, 3, 3], plain);
    check("required group scores (LIST) { repeated group bag { required int32 array_element; } }", &[1, 1, 1], plain);
    check("optional group scores (LIST) { repeated int32 element; }", &[2, 2, 2], plain);
    check("repeated int32 scores;", &[1, 1, 1], plain);
    let of_structures = r#"{"scores":[{"x":1},{"x":2}]} {"scores":[{"x":3}]}"#;
    check("optional group scores (LIST) { repeated group array { required int32 x; } }", &[2, 2, 2], of_structures);
    check(
        "optional group scores (LIST) { repeated group scores_tuple { required int32 x; } }",
        &[2, 2, 2],
        of_structures,
    );
    check("repeated group scores { required int32 x; }", &[1, 1, 1], of_structures);
    let of_lists = r#"{"scores":[[1],[2]]} {"scores":[[3]]}"#;
    check(
        "optional group scores (LIST) { repeated group array (LIST) { repeated int32 array; } }",
        &[3, 3, 3],
        of_lists,
    );
    check(
        "required group scores (LIST) { repeated group list { repeated int32 x; } }",
        &[2, 2, 2],
        r#"{"scores":[{"x":[1]},{"x":[2]}]} {"scores":[{"x":[3]}]}"#,
    );
}

#[test]
fn what_no_row_needs_may_be_anything_and_what_one_needs_is_named() {
    let schema = "message m { required binary prompt; required int64 when (TIME(NANOS, true)); required int32 label (INTEGER(8,false));
        required group embedding (LIST) { repeated group list { required boolean element; } } }";
    let file = |prompt: &[u8]| {
        let flat: Levels<'_> = (&[], &[]);
        let columns = [
            (Column::Text(&[prompt]), flat),
            (Column::Long(&[-1]), flat),
            (Column::Int(&[-1]), flat),
            (Column::Bool(&[true, false]), (&[1, 1][..], &[0, 1][..])),
        ];
        parquet(schema, &columns, Default::default())
    };
    let got = rows(file(b"p").path(), None).remove(0);
    assert_eq!((&got["prompt"], &got["label"]), (&"p".into(), &255.into()));
    let got = rows(file(b"\xff").path(), None).remove(0);
    assert!(got["prompt"].to_string().contains("binary data that is not UTF-8"), "{got:?}");
    assert_eq!(got["label"], 255);
}

#[test]
fn a_dictionary_that_stands_for_gigabytes_is_refused_before_they_are_made() {
    let (long, schema) =
        (vec![b'x'; 1 << 18], "message m { required binary prompt (STRING); required binary completion (STRING); }");
    let text: Vec<&[u8]> = vec![&long; 2000];
    let short: Vec<&[u8]> = vec![b"c"; 2000];
    let properties = WriterProperties::builder().set_dictionary_page_size_limit(1 << 23).build();
    let file = parquet(schema, &[(Column::Text(&text), (&[], &[])), (Column::Text(&short), (&[], &[]))], properties);
    let (mut read, mut end) = (0, String::new());
    for row in open(file.path(), Reading::default()).unwrap() {
        match row {
            Ok(_) => read += 1,
            Err(e) => end = e.to_string(),
        }
    }
    // The first 64 MiB are free, 256 rows; then it is 256 times the file's bytes, of which a dictionary has one such text.
    let want = format!(": row {}: the rows up to here take 257 times ", read + 1);
    assert!((256..400).contains(&read) && end.contains(&want), "{read} rows, {end}");
}
