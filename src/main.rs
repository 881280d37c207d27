//! Command line of fusedpo.
fn main() {}
