//! One file a command: what the user types, and a thin function that calls the library and prints.

pub mod inspect;
pub mod pack;
