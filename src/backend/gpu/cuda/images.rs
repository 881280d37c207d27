//! The kernels in this binary, as build.rs compiled them.

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
