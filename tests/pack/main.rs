//! From rows of any format to shards. One program, as each costs its linking.

#[path = "../pack_common/mod.rs"]
mod pack_common;

mod balance;
mod formats;
mod input_limits;
mod pack;
mod pack_bad;
mod pack_out;
mod pack_real;
mod pack_report;
mod pack_scale;
mod split;
