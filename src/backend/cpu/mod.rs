//! The CPU backend: plain Rust, the definition of every op.
