//! From columns to rows: what a schema's groups mean, and how levels put values back together.
//!
//! A value stands with two levels: how many of the optional and repeated groups above it are there (definition), and which
//! list goes on with it (repetition). Lists have been written in four ways; all are read as the format's rules say.

use super::column::Column;
use super::room::{Room, Trouble};
use parquet::basic::{ConvertedType, LogicalType, Repetition};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

/// A field of a row, or of a structure in it.
pub struct Node {
    /// Its name, from the row on: `messages.content`.
    pub path: String,
    /// The definition level from which on it is not null.
    def: i16,
    optional: bool,
    /// Its columns, of the row group's.
    pub columns: std::ops::Range<usize>,
    shape: Shape,
}

enum Shape {
    Value,
    Struct(Vec<(String, Node)>),
    /// Elements, and the repetition level at which another follows.
    List(Box<Node>, i16),
    Map(Box<Node>, Box<Node>, i16),
}

/// Reads one item of a list or a map from its columns.
type Item<'a> = dyn FnMut(&mut [Column], &mut Room) -> Result<(), Trouble> + 'a;

impl Node {
    /// The field `schema` of a row, whose columns begin with `first`. Errors: a schema without sense.
    pub fn new(schema: &Type, first: usize) -> Result<Self, String> {
        Self::build(schema, schema.name().to_owned(), (0, 0), first, false)
    }

    /// `levels` are those above; `element` says that the list around it has counted its repetition already.
    fn build(schema: &Type, path: String, levels: (i16, i16), first: usize, element: bool) -> Result<Self, String> {
        let (mut def, rep) = levels;
        let info = schema.get_basic_info();
        let repetition = if info.has_repetition() { info.repetition() } else { Repetition::REQUIRED };
        if repetition == Repetition::REPEATED && !element {
            // A list without a name of its own: neither it nor its elements are null.
            let inner = Self::build(schema, path.clone(), (def + 1, rep + 1), first, true)?;
            let columns = inner.columns.clone();
            return Ok(Self { path, def, optional: false, columns, shape: Shape::List(Box::new(inner), rep + 1) });
        }
        let optional = repetition == Repetition::OPTIONAL;
        def += i16::from(optional);
        if schema.is_primitive() {
            return Ok(Self { path, def, optional, columns: first..first + 1, shape: Shape::Value });
        }
        let fields = schema.get_fields();
        let repeated = match fields {
            [one]
                if one.get_basic_info().has_repetition()
                    && one.get_basic_info().repetition() == Repetition::REPEATED =>
            {
                Some(one)
            }
            _ => None,
        };
        let list = is(schema, &LogicalType::List, &[ConvertedType::LIST]);
        let map = is(schema, &LogicalType::Map, &[ConvertedType::MAP, ConvertedType::MAP_KEY_VALUE]);
        let inside = (def + 1, rep + 1);
        let shape = match repeated {
            Some(entry) if list => {
                let wrapped = !entry.is_primitive()
                    && entry.get_fields().len() == 1
                    && entry.name() != "array"
                    && entry.name() != format!("{}_tuple", schema.name())
                    && !is(entry, &LogicalType::List, &[ConvertedType::LIST])
                    && !is(entry, &LogicalType::Map, &[ConvertedType::MAP, ConvertedType::MAP_KEY_VALUE])
                    && !is_repeated(&entry.get_fields()[0]);
                let item = if wrapped { &entry.get_fields()[0] } else { entry };
                Shape::List(Box::new(Self::build(item, path.clone(), inside, first, true)?), rep + 1)
            }
            Some(entry) if map && !entry.is_primitive() && entry.get_fields().len() == 2 => {
                let [key, value] = [&entry.get_fields()[0], &entry.get_fields()[1]];
                let key = Self::build(key, path.clone(), inside, first, false)?;
                let value = Self::build(value, path.clone(), inside, key.columns.end, false)?;
                Shape::Map(Box::new(key), Box::new(value), rep + 1)
            }
            _ => {
                let mut nodes = Vec::with_capacity(fields.len());
                let mut at = first;
                for field in fields {
                    let node = Self::build(field, format!("{path}.{}", field.name()), (def, rep), at, false)?;
                    at = node.columns.end;
                    nodes.push((field.name().to_owned(), node));
                }
                Shape::Struct(nodes)
            }
        };
        let end = match &shape {
            Shape::Value => first + 1,
            Shape::Struct(nodes) => nodes.last().map_or(first, |(_, n)| n.columns.end),
            Shape::List(item, _) => item.columns.end,
            Shape::Map(_, value, _) => value.columns.end,
        };
        if end == first {
            return Err(format!("group `{path}` has no columns"));
        }
        Ok(Self { path, def, optional, columns: first..end, shape })
    }

    /// The next value. `columns` are all of the row group's that are read; this node's begin at `self.columns.start - base`.
    pub fn read(&self, columns: &mut [Column], base: usize, room: &mut Room) -> Result<Value, Trouble> {
        room.take(size_of::<Value>())?;
        let mine = self.columns.start - base..self.columns.end - base;
        let first = &columns[mine.start];
        let def = first.def().ok_or_else(|| short(&self.path))?;
        if self.optional && def < self.def {
            return pass(&mut columns[mine], &self.path);
        }
        match &self.shape {
            Shape::Value => {
                let column = &mut columns[mine.start];
                let value = column.value(room);
                column.pass();
                value
            }
            Shape::Struct(nodes) => {
                let mut map = Map::with_capacity(nodes.len());
                for (name, node) in nodes {
                    room.take(56 + name.len())?;
                    map.insert(name.clone(), node.read(columns, base, room)?);
                }
                Ok(Value::Object(map))
            }
            Shape::List(item, rep) => {
                let mut items = Vec::new();
                self.each(columns, base, *rep, room, &mut |columns, room| {
                    items.push(item.read(columns, base, room)?);
                    Ok(())
                })?;
                Ok(Value::Array(items))
            }
            Shape::Map(key, value, rep) => {
                let mut map = Map::new();
                self.each(columns, base, *rep, room, &mut |columns, room| {
                    let key = match key.read(columns, base, room)? {
                        Value::String(key) => key,
                        other => other.to_string(),
                    };
                    room.take(56)?;
                    map.insert(key, value.read(columns, base, room)?);
                    Ok(())
                })?;
                Ok(Value::Object(map))
            }
        }
    }

    fn each(
        &self,
        columns: &mut [Column],
        base: usize,
        rep: i16,
        room: &mut Room,
        item: &mut Item<'_>,
    ) -> Result<(), Trouble> {
        let mine = self.columns.start - base..self.columns.end - base;
        if columns[mine.start].def().ok_or_else(|| short(&self.path))? <= self.def {
            pass(&mut columns[mine], &self.path)?;
            return Ok(());
        }
        loop {
            item(columns, room)?;
            match columns[mine.start].rep() {
                Some(next) if next >= rep => {}
                _ => return Ok(()),
            }
        }
    }
}

fn short(path: &str) -> Trouble {
    Trouble::Damaged(format!("column `{path}` has fewer values than rows"))
}

/// Passes over one null or empty list.
fn pass(columns: &mut [Column], path: &str) -> Result<Value, Trouble> {
    for column in columns {
        column.def().ok_or_else(|| short(path))?;
        column.pass();
    }
    Ok(Value::Null)
}

fn is(schema: &Type, logical: &LogicalType, converted: &[ConvertedType]) -> bool {
    let info = schema.get_basic_info();
    info.logical_type_ref() == Some(logical) || converted.contains(&info.converted_type())
}

fn is_repeated(schema: &Type) -> bool {
    schema.get_basic_info().has_repetition() && schema.get_basic_info().repetition() == Repetition::REPEATED
}
