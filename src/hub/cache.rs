//! Where things lie in the cache, and what is known there without asking anybody.

use super::listing::{Entry, Listing};
use super::name::{Repo, is_commit, is_inside};
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON, MOST_TEXT};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Most folders within folders of a snapshot.
const DEPTH: usize = 8;

/// A folder that repositories lie in.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn folder_name(repo: &Repo) -> String {
        format!("{}--{}", repo.kind.plural(), repo.id.replace('/', "--"))
    }

    /// Where all of `repo` lies.
    pub fn folder(&self, repo: &Repo) -> PathBuf {
        self.root.join(Self::folder_name(repo))
    }

    /// Where its files at one commit lie.
    pub fn snapshot(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    /// The content called `hash`.
    pub fn blob(&self, repo: &Repo, hash: &str) -> PathBuf {
        self.folder(repo).join("blobs").join(hash)
    }

    /// Its lock.
    pub fn lock(&self, repo: &Repo, hash: &str) -> PathBuf {
        self.root.join(".locks").join(Self::folder_name(repo)).join(format!("{hash}.lock"))
    }

    fn reference(&self, repo: &Repo) -> PathBuf {
        self.folder(repo).join("refs").join(repo.revision())
    }

    fn tree(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.folder(repo).join("trees").join(format!("{commit}.json"))
    }

    /// Remembers which commit the revision is now.
    pub fn keep_reference(&self, repo: &Repo, commit: &str) -> Result<()> {
        let path = self.reference(repo);
        if repo.is_pinned() || files::read_text(&path, MOST_TEXT).is_ok_and(|was| was == commit) {
            return Ok(());
        }
        files::make_folder(path.parent().unwrap_or(&self.root))?;
        files::write(&path, commit.as_bytes())
    }

    /// Remembers what the repository holds at a commit, in the form of `huggingface_hub`.
    pub fn keep_tree(&self, repo: &Repo, listing: &Listing) -> Result<()> {
        let path = self.tree(repo, &listing.commit);
        if path.exists() {
            return Ok(());
        }
        let all: Map<String, Value> = listing.files.iter().map(|f| (f.path.clone(), to_json(f))).collect();
        files::make_folder(path.parent().unwrap_or(&self.root))?;
        files::write(&path, json!({ "format_version": 1, "files": all }).to_string().as_bytes())
    }

    /// What is known of `repo` here: its commit, and its files at that commit; where no list of them was kept, those that are
    /// here.
    pub fn listing(&self, repo: &Repo) -> Option<Listing> {
        let commit = match repo.is_pinned() {
            true => repo.revision().to_owned(),
            false => files::read_text(&self.reference(repo), MOST_TEXT).ok()?.trim().to_owned(),
        };
        if !is_commit(&commit) {
            return None;
        }
        if let Some(files) = self.read_tree(repo, &commit) {
            return Some(Listing { commit, files, whole: true });
        }
        let folder = self.snapshot(repo, &commit);
        let mut files = Vec::new();
        walk(&folder, "", DEPTH, &mut files);
        (!files.is_empty()).then_some(Listing { commit, files, whole: false })
    }

    /// Not of another form, nor one that is damaged: it can be asked for again.
    fn read_tree(&self, repo: &Repo, commit: &str) -> Option<Vec<Entry>> {
        let bytes = files::read(&self.tree(repo, commit), MOST_JSON).ok()?;
        let tree: Value = serde_json::from_slice(&bytes).ok()?;
        if tree["format_version"] != 1 {
            return None;
        }
        tree["files"].as_object()?.iter().map(|(path, of)| from_json(path, of)).collect()
    }

    /// An error about the cache: it is to be written to.
    pub fn unwritable(&self, e: Error) -> Error {
        match e {
            Error::Io { path, source, doing } if doing != "download" => {
                Error::Io { path, doing: "write to the hub's cache (HF_HUB_CACHE)", source }
            }
            e => e,
        }
    }
}

fn to_json(f: &Entry) -> Value {
    match &f.sha256 {
        Some(sha256) => json!({ "size": f.size, "blob_id": f.sha1, "lfs_sha256": sha256, "lfs_size": f.size }),
        None => json!({ "size": f.size, "blob_id": f.sha1 }),
    }
}

fn from_json(path: &str, of: &Value) -> Option<Entry> {
    let text = |key: &str| of[key].as_str().map(str::to_owned);
    let entry = Entry {
        path: path.to_owned(),
        size: Some(of["lfs_size"].as_u64().or_else(|| of["size"].as_u64())?),
        sha1: text("blob_id"),
        sha256: text("lfs_sha256"),
    };
    entry.is_sound().then_some(entry)
}

/// Files below `folder`, by their ways from the first one.
fn walk(folder: &Path, way: &str, depth: usize, out: &mut Vec<Entry>) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if way.is_empty() { name } else { format!("{way}/{name}") };
        let at = entry.path();
        if at.is_dir() && depth > 0 {
            walk(&at, &path, depth - 1, out);
        } else if at.is_file() && is_inside(&path) {
            out.push(Entry { path, size: None, sha1: None, sha256: None });
        }
    }
}
