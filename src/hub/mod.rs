//! The hub: models and data sets by their names, `org/name@revision`, in the cache that `huggingface_hub` keeps too.
//!
//! A [`Repo`] is a name, [`Hub::open`] says what it holds at one commit, [`Opened::fetch`] brings files of it into the cache:
//! resumed where they ended half way, checked against the hashes that the hub lists, under the locks that other programs take.
//! Which files of a model or of a data set are wanted is the business of the rooms above.
//!
//! The layout is that of `huggingface_hub` 2.4: `models--org--name/{blobs,refs,snapshots,trees}` and `.locks` beside them. What
//! either program downloaded the other finds, without a network too.

mod cache;
mod fetch;
mod http;
mod listing;
mod name;
mod open;
mod settings;
mod shared;
mod url;

pub use fetch::Opened;
pub use listing::{Entry, Listing};
pub use name::{CONVERTED, Fetched, Folders, Kind, Repo};
pub use settings::Settings;
pub use shared::Hub;
