//! The only writer of files, and the only one that opens or maps them. Whatever is made appears whole or not at all, and is there
//! after a crash once it was said to be: a temporary sibling, its bytes to the disk, its name in place, the name to the disk.
//!
//! - [`AtomicFile`], [`write()`]: a file. [`AtomicFolder`]: a folder of them. [`RunDir`]: a folder that a run fills.
//! - [`Target`]: what the user named, which may be a device, a pipe or a link, and is never destroyed for it.
//! - [`open()`], [`read()`], [`Inside`]: the door that files come in by. [`Map`]: a file read where it lies.
//! - [`parse_toml`]: a file of options, with the line that is wrong.
//! - [`Claim`]: a file that one process at a time has; [`own_folder`]: a folder with such a file in it;
//!   [`set_aside`]: what lies damaged there.
//! - [`Partial`], [`Turn`], [`link`]: what is downloaded: kept half way, by one process at a time, under a second name.
//! - [`scratch_file`], [`scratch_folder`], [`Spool`], [`Log`], [`Sorter`], [`Parts`]: what nobody else sees, gone with the process.
//!   What a killed process left of folders and files is taken away by the next ([`sweep_files`]).
//!
//! Every file and folder has the mode of an ordinary new one: `0666` or `0777`, less the umask.

pub(crate) mod atomic;
pub(crate) mod download;
pub(crate) mod folder;
pub(crate) mod grown;
pub(crate) mod leftover;
pub(crate) mod links;
pub(crate) mod lock;
#[allow(unsafe_code)] // maps files
pub(crate) mod map;
pub(crate) mod open;
pub(crate) mod owned;
pub(crate) mod parts;
pub(crate) mod paths;
pub(crate) mod records;
pub(crate) mod run_dir;
pub(crate) mod scratch;
pub(crate) mod sorter;
pub(crate) mod target;
pub(crate) mod toml;

pub use atomic::{AtomicFile, write, write_new};
pub use download::{Partial, Turn, link};
pub use folder::{AtomicFolder, MadeFolders, make_folder, refuse_occupied, remove_file};
pub use grown::FileMark;
pub use leftover::sweep_files;
pub use lock::Claim;
pub use map::Map;
pub use open::{Inside, MOST_JSON, MOST_TEXT, MOST_TOKENIZER, cut_short, open, read, read_at, read_text};
pub use owned::{own_folder, set_aside};
pub use parts::{PARTS, PartReader, Parts};
pub use records::{Log, LogReader};
pub use run_dir::{CheckpointDir, RunDir};
pub use scratch::{ScratchFolder, Spool, scratch_file, scratch_folder};
pub use sorter::{Key, Sorted, Sorter};
pub use target::Target;
pub use toml::{line_of, parse_toml};
