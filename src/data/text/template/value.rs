//! Python's values as templates see them.

use super::fault::{Budget, Fault, MAX_NEST, MAX_TREE, Res, raise};
use indexmap::IndexMap;
use num_bigint::BigInt;
use std::any::Any;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

/// A value. Everything but an [`Object`] is immutable, as in Jinja2's immutable sandbox.
#[derive(Clone)]
pub enum Value {
    /// Jinja2's mark for a name without a value; becomes undefined when read.
    Missing,
    /// Undefined, with what an error about it says.
    Undefined(Rc<str>),
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int` of 64 bits
    Int(i64),
    /// `int` of more bits
    Big(Rc<BigInt>),
    /// `float`
    Float(f64),
    /// `str`, or Markup
    Str(Str),
    /// `list`
    List(Rc<Items>),
    /// `tuple`
    Tuple(Rc<Items>),
    /// `dict`
    Dict(Rc<Dict>),
    /// Everything else
    Object(Rc<dyn Object>),
}

/// A text; `safe` marks Markup, what `|safe` and `|escape` give.
#[derive(Clone)]
pub struct Str {
    /// The text.
    pub text: Arc<str>,
    /// Whether it is Markup.
    pub safe: bool,
}

/// Members of a list or tuple.
pub struct Items {
    /// In order.
    pub items: Vec<Value>,
    /// How deep values nest below, 1 for none.
    pub depth: u32,
    /// How much there is to go through: see [`Value::size`].
    pub size: u64,
    /// Whether the tuple is one of `groupby`, which has names.
    pub group: bool,
}

/// Members of a dict, in the order of insertion.
pub struct Dict {
    /// By key.
    pub map: IndexMap<Key, Value>,
    /// How deep values nest below, 1 for none.
    pub depth: u32,
    /// How much there is to go through: see [`Value::size`].
    pub size: u64,
}

/// A hashable value.
pub struct Key(pub Value);

/// Arguments of a call.
#[derive(Clone, Default)]
pub struct Args {
    /// By place.
    pub pos: Vec<Value>,
    /// By name.
    pub kw: Vec<(Arc<str>, Value)>,
}

/// What runs the template, as filters and objects need it.
pub trait Machine: Any {
    /// Calls `callee`.
    fn call(&self, callee: &Value, args: Args) -> Res<Value>;
    /// Applies a filter to the first of `args`.
    fn filter(&self, name: &str, args: Args) -> Res<Value>;
    /// Asks a test of the first of `args`.
    fn test(&self, name: &str, args: Args) -> Res<bool>;
    /// Calls a method of a value that is no object.
    fn method(&self, receiver: &Value, name: &str, args: Args) -> Res<Value>;
    /// What is left.
    fn budget(&self) -> &Budget;
    /// Itself, for the parts of the runner.
    fn as_any(&self) -> &dyn Any;
}

/// A value of another type.
pub trait Object: Any {
    /// Python's name of the type.
    fn type_name(&self) -> &'static str;
    /// `obj.name`; `None` where it has no such attribute.
    fn attr(&self, _m: &dyn Machine, _name: &str) -> Res<Option<Value>> {
        Ok(None)
    }
    /// `obj[key]`; `None` where that is a `TypeError` or a `LookupError`.
    fn item(&self, _m: &dyn Machine, _key: &Value) -> Res<Option<Value>> {
        Ok(None)
    }
    /// `obj(...)`
    fn call(&self, _m: &dyn Machine, _args: Args) -> Res<Value> {
        raise(format!("'{}' object is not callable", self.type_name()))
    }
    /// Whether it can be called.
    fn callable(&self) -> bool {
        false
    }
    /// Whether it is a sized iterable, whose members [`Object::member`] gives.
    fn is_sized(&self) -> bool {
        false
    }
    /// The member at a place of a sized iterable.
    fn member(&self, _at: usize) -> Res<Option<Value>> {
        Ok(None)
    }
    /// Whether [`Object::next`] works.
    fn is_iterator(&self) -> bool {
        false
    }
    /// The next member of an iterator.
    fn next(&self, _m: &dyn Machine) -> Res<Option<Value>> {
        Ok(None)
    }
    /// `len(obj)`, where there is one.
    fn len(&self, _m: &dyn Machine) -> Res<Option<usize>> {
        Ok(None)
    }
    /// `repr(obj)`
    fn repr(&self, _m: &dyn Machine) -> Res<String> {
        Err(Fault::refused(format!("printing a {} (its text holds an address)", self.type_name())))
    }
    /// `obj == other` for another object of the type.
    fn same(&self, _other: &dyn Object) -> Option<bool> {
        None
    }
    /// Sets an attribute of a namespace.
    fn set(&self, _m: &dyn Machine, _name: &str, _value: Value) -> Res<()> {
        raise("cannot assign attribute on non-namespace object")
    }
    /// Members from `start` to before `stop`, every `step`th, of a range.
    fn slice(&self, _start: i64, _stop: i64, _step: i64) -> Option<Value> {
        None
    }
    /// How deep values nest below.
    fn depth(&self) -> u32 {
        1
    }
}

impl Str {
    /// Plain text.
    pub fn plain(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), safe: false }
    }
}

impl std::ops::Deref for Str {
    type Target = str;
    fn deref(&self) -> &str {
        &self.text
    }
}

impl Value {
    /// A plain text.
    pub fn str(text: impl Into<Arc<str>>) -> Self {
        Value::Str(Str::plain(text))
    }

    /// A text that is Markup where `safe`.
    pub fn marked(text: impl Into<Arc<str>>, safe: bool) -> Self {
        Value::Str(Str { text: text.into(), safe })
    }

    /// Undefined; `what` is what an error about it says.
    pub fn undefined(what: impl Into<Rc<str>>) -> Self {
        Value::Undefined(what.into())
    }

    /// A list.
    pub fn list(items: Vec<Value>) -> Res<Self> {
        Ok(Value::List(Rc::new(Items::new(items)?)))
    }

    /// A tuple.
    pub fn tuple(items: Vec<Value>) -> Res<Self> {
        Ok(Value::Tuple(Rc::new(Items::new(items)?)))
    }

    /// A dict.
    pub fn dict(map: IndexMap<Key, Value>) -> Res<Self> {
        let deepest = map.iter().map(|(k, v)| k.0.depth().max(v.depth())).max().unwrap_or(0);
        let size = larger(map.iter().map(|(k, v)| k.0.size() + v.size()))?;
        Ok(Value::Dict(Rc::new(Dict { map, depth: deeper(deepest)?, size })))
    }

    /// An object.
    pub fn object(object: impl Object) -> Res<Self> {
        deeper(object.depth())?;
        Ok(Value::Object(Rc::new(object)))
    }

    /// An int.
    pub fn int(n: BigInt) -> Self {
        i64::try_from(&n).map_or_else(|_| Value::Big(Rc::new(n)), Value::Int)
    }

    /// How deep values nest here, 0 for a scalar.
    pub fn depth(&self) -> u32 {
        match self {
            Value::List(items) | Value::Tuple(items) => items.depth,
            Value::Dict(dict) => dict.depth,
            Value::Object(object) => object.depth(),
            _ => 0,
        }
    }

    /// How much there is to go through here when it is compared or hashed: a member that stands in several places counts in
    /// each, 64 bytes of text as one.
    pub fn size(&self) -> u64 {
        match self {
            Value::Str(s) => 1 + s.len() as u64 / 64,
            Value::List(items) | Value::Tuple(items) => items.size,
            Value::Dict(dict) => dict.size,
            _ => 1,
        }
    }

    /// Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Missing | Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::Big(_) => "int",
            Value::Float(_) => "float",
            Value::Str(s) => {
                if s.safe {
                    "Markup"
                } else {
                    "str"
                }
            }
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Object(object) => object.type_name(),
        }
    }

    /// The text of a `str`.
    pub fn as_str(&self) -> Option<&Str> {
        if let Value::Str(s) = self { Some(s) } else { None }
    }

    /// Whether it is undefined.
    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_) | Value::Missing)
    }

    /// This object as a `T`.
    pub fn downcast<T: Object>(&self) -> Option<&T> {
        match self {
            Value::Object(object) => (&**object as &dyn Any).downcast_ref(),
            _ => None,
        }
    }

    /// `bool(value)`
    pub fn truth(&self, m: &dyn Machine) -> Res<bool> {
        Ok(match self {
            Value::Missing | Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Big(_) => true,
            Value::Float(x) => *x != 0.0,
            Value::Str(s) => !s.is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.items.is_empty(),
            Value::Dict(dict) => !dict.map.is_empty(),
            Value::Object(object) => object.len(m)?.is_none_or(|n| n > 0),
        })
    }

    /// An int's value; bools count, as in Python.
    pub fn as_int(&self) -> Option<BigInt> {
        match self {
            Value::Bool(b) => Some(BigInt::from(*b)),
            Value::Int(n) => Some(BigInt::from(*n)),
            Value::Big(n) => Some((**n).clone()),
            _ => None,
        }
    }

    /// Where an index or a size is asked: an int, those beyond 64 bits at their end.
    pub fn as_index(&self) -> Option<i64> {
        match self {
            Value::Bool(b) => Some(i64::from(*b)),
            Value::Int(n) => Some(*n),
            Value::Big(n) => Some(if n.sign() == num_bigint::Sign::Minus { i64::MIN } else { i64::MAX }),
            _ => None,
        }
    }
}

impl Items {
    /// Of `items`.
    pub fn new(items: Vec<Value>) -> Res<Self> {
        let depth = deeper(items.iter().map(Value::depth).max().unwrap_or(0))?;
        let size = larger(items.iter().map(Value::size))?;
        Ok(Self { items, depth, size, group: false })
    }
}

impl Dict {
    /// The value under a text.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }
}

fn deeper(depth: u32) -> Res<u32> {
    if depth >= MAX_NEST {
        return Err(Fault::limit(format!("the template nests values deeper than {MAX_NEST}")));
    }
    Ok(depth + 1)
}

fn larger(sizes: impl Iterator<Item = u64>) -> Res<u64> {
    let size = sizes.fold(1, u64::saturating_add);
    if size > MAX_TREE {
        return Err(Fault::limit(format!("the template makes a value of over {MAX_TREE} members, all told")));
    }
    Ok(size)
}

impl Key {
    /// `value` as a key. Errors: it cannot be hashed.
    pub fn new(value: Value) -> Res<Self> {
        fn hashable(value: &Value) -> bool {
            match value {
                Value::List(_) | Value::Dict(_) => false,
                Value::Tuple(items) => items.items.iter().all(hashable),
                _ => true,
            }
        }
        match hashable(&value) {
            true => Ok(Self(value)),
            false => raise(format!("unhashable type: '{}'", value.type_name())),
        }
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key(Value::str(text))
    }
}

impl indexmap::Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        matches!(&key.0, Value::Str(s) if &*s.text == self)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Str(s) => s.text.hash(state),
            Value::None => 1u8.hash(state),
            Value::Bool(b) => i64::from(*b).hash(state),
            Value::Int(n) => n.hash(state),
            Value::Float(x) if x.fract() == 0.0 && x.abs() < 9e18 => (*x as i64).hash(state),
            Value::Tuple(items) => items.items.iter().for_each(|v| Key(v.clone()).hash(state)),
            _ => 2u8.hash(state),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Key {}

/// `a == b`
pub fn equal(a: &Value, b: &Value) -> bool {
    use Value::*;
    let all = |a: &Rc<Items>, b: &Rc<Items>| {
        Rc::ptr_eq(a, b)
            || a.items.len() == b.items.len() && a.items.iter().zip(&b.items).all(|(a, b)| is_or_equal(a, b))
    };
    match (a, b) {
        (Missing | Undefined(_), Missing | Undefined(_)) | (None, None) => true,
        (Str(a), Str(b)) => Arc::ptr_eq(&a.text, &b.text) || a.text == b.text,
        (Bool(_) | Int(_) | Big(_) | Float(_), Bool(_) | Int(_) | Big(_) | Float(_)) => {
            order_numbers(a, b) == Some(std::cmp::Ordering::Equal)
        }
        (List(a), List(b)) | (Tuple(a), Tuple(b)) => all(a, b),
        (Dict(a), Dict(b)) => {
            Rc::ptr_eq(a, b)
                || a.map.len() == b.map.len()
                    && a.map.iter().all(|(k, v)| b.map.get(k).is_some_and(|other| is_or_equal(v, other)))
        }
        (Object(a), Object(b)) => Rc::ptr_eq(a, b) || a.same(&**b).unwrap_or(false),
        _ => false,
    }
}

/// `a is b or a == b`, as containers compare.
pub fn is_or_equal(a: &Value, b: &Value) -> bool {
    equal(a, b)
}

/// Numbers in order; `None` for NaN.
pub fn order_numbers(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    use Value::*;
    match (a, b) {
        (Bool(_) | Int(_), Bool(_) | Int(_)) => Some(a.as_index().cmp(&b.as_index())),
        (Float(a), Float(b)) => a.partial_cmp(b),
        (Float(x), _) => order_float(*x, &b.as_int()?),
        (_, Float(x)) => order_float(*x, &a.as_int()?).map(std::cmp::Ordering::reverse),
        _ => Some(a.as_int()?.cmp(&b.as_int()?)),
    }
}

/// A float against an int, exactly.
fn order_float(x: f64, n: &BigInt) -> Option<std::cmp::Ordering> {
    use num_traits::FromPrimitive;
    if x.is_nan() {
        return None;
    }
    let Some(whole) = BigInt::from_f64(x.floor()) else {
        return Some(if x > 0.0 { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less });
    };
    Some(whole.cmp(n).then(if x.fract() == 0.0 { std::cmp::Ordering::Equal } else { std::cmp::Ordering::Greater }))
}
