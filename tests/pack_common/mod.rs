//! Shared by the tests of `pack`: where the test data are, and a small tokenizer made in code.

#![allow(dead_code)] // each test binary uses its own part

use std::io::Read;
use std::path::{Path, PathBuf};

/// The folder of real test data, or a line saying that `test` is skipped.
pub fn test_data(test: &str) -> Option<PathBuf> {
    let found = std::env::var_os("FUSEDPO_TEST_DATA").map(PathBuf::from);
    if found.is_none() {
        println!("skipped: {test} (FUSEDPO_TEST_DATA is not set)");
    }
    found
}

/// A gzipped file's text.
pub fn read_gz(path: &Path) -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}
