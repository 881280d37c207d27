//! Sidecars that nothing reads any more.

use super::file::{self, Header};
use super::key::RefKey;
use super::keyed::kept_and_not;
use super::names::{folder, named};
use super::sidecars::{file_prefix, path};
use crate::data::shard::Dataset;
use crate::error::Result;
use crate::files::remove_file;
use std::path::Path;

/// What a pruning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Sidecars that are gone.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sidecars of these shards that stay: those under the key, and in a cache those of other shards of the same name.
    pub kept: u64,
}

/// Takes away the sidecars of `data` that are not those under `key`: of another content of the shard, another model, another
/// way of computing, or damaged in the header. What is in a folder `cache` may be another data set's, and stays where its
/// shard is another.
///
/// Errors: [`crate::Error::Io`] where one cannot be removed; those before are gone.
pub fn prune(data: &Dataset, cache: Option<&Path>, key: &RefKey) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    for shard in data.shards() {
        let own = path(shard, cache, key);
        let want = Header::new(shard, key)?;
        for other in named(folder(&own), &file_prefix(shard))? {
            let header = file::read_header(&other);
            let foreign = cache.is_some() && header.as_ref().is_ok_and(|h| !want.is_of_same_shard(h));
            if foreign || header.is_ok_and(|h| want.difference(&h).is_none()) {
                pruned.kept += 1;
                continue;
            }
            pruned.remove(&other)?;
        }
    }
    for (path, stays) in kept_and_not(data, cache, key)? {
        if stays {
            pruned.kept += 1;
        } else {
            pruned.remove(&path)?;
        }
    }
    Ok(pruned)
}

impl Pruned {
    fn remove(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
        remove_file(path)?;
        self.removed += 1;
        self.bytes += bytes;
        Ok(())
    }
}
