//! Names of repositories, and what tells them from paths.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The branch that the hub keeps a data set's Parquet files on.
pub const CONVERTED: &str = "refs/convert/parquet";

const SCHEME: &str = "hf://";

/// Of a file, not of a repository: a path that is not there, when it ends so, was mistyped.
const ENDINGS: &[&str] = &[
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".parquet",
    ".gz",
    ".zst",
    ".safetensors",
    ".jinja",
    ".toml",
    ".txt",
    ".pref",
    ".model",
    ".bin",
    ".gguf",
    ".yaml",
    ".yml",
];

/// What a repository is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model, or an adapter.
    Model,
    /// A data set.
    Dataset,
}

impl Kind {
    /// As in addresses and in the cache.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    pub(super) fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "data set",
        }
    }
}

/// A repository, or something in it, at a revision: `org/name@revision`, or `hf://[models/|datasets/]org/name@revision/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// What it is of.
    pub kind: Kind,
    /// `org/name`; a few old ones are a `name` alone.
    pub id: String,
    /// A branch, a tag or a commit; `None` where none was named.
    pub revision: Option<String>,
    /// What of it; empty: all.
    pub path: String,
}

impl Repo {
    /// What `named`, given where a file or a folder may be given too, names on the hub. `None` where it is a path: something is
    /// there, its first folder is there, or it has not the form of a name. A name without an owner is one only with a revision
    /// or after `hf://`, as it could be anything else.
    ///
    /// Errors: [`Error::Usage`] for what begins with `hf://` and cannot be read, and for addresses of web pages.
    pub fn of(kind: Kind, named: &Path) -> Result<Option<Self>> {
        let Some(text) = named.to_str() else { return Ok(None) };
        if named.symlink_metadata().is_ok() {
            return Ok(None);
        }
        if let Some(rest) = text.strip_prefix(SCHEME) {
            return Self::parse(kind, text, rest).map(Some);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Err(Error::usage(format!(
                "{text}: is the address of a page; give the hub's name for it, such as org/name or org/name@revision"
            )));
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let owned = id.split_once('/');
        let path = match owned {
            Some((owner, _)) => Path::new(owner).symlink_metadata().is_ok(),
            None => revision.is_none(),
        };
        let ending = text.to_ascii_lowercase();
        if path || !is_id(id) || ENDINGS.iter().any(|e| ending.ends_with(e)) || !revision.is_none_or(is_revision) {
            return Ok(None);
        }
        let revision = revision.map(|r| alias(r).to_owned());
        Ok(Some(Self { kind, id: id.to_owned(), revision, path: String::new() }))
    }

    /// `rest` of `hf://rest`.
    fn parse(kind: Kind, text: &str, rest: &str) -> Result<Self> {
        let bad = |why: &str| Error::usage(format!("{text}: {why}"));
        let (of, rest) = match rest.split_once('/') {
            Some(("models", rest)) => (Kind::Model, rest),
            Some(("datasets", rest)) => (Kind::Dataset, rest),
            Some(("spaces" | "kernels" | "buckets", _)) => return Err(bad("is neither a model nor a data set")),
            // Where a data set is asked for, what has no kind is one.
            _ => (kind, rest),
        };
        if of != kind {
            return Err(bad(&format!("is a {}, and a {} is asked for here", of.noun(), kind.noun())));
        }
        let form = match kind {
            Kind::Model => "write hf://org/name@revision",
            Kind::Dataset => "write hf://datasets/org/name/config/split, or hf://datasets/org/name@revision/path",
        };
        let at = rest.find('@').unwrap_or(rest.len());
        let (id, path, revision) = match rest.get(at + 1..) {
            Some(after) => {
                let (revision, path) = revision_of(after);
                (&rest[..at], path, Some(revision))
            }
            None => {
                let mut slashes = rest.match_indices('/').map(|(i, _)| i);
                let end = slashes.nth(1).unwrap_or(rest.len());
                (&rest[..end], rest[end..].trim_start_matches('/'), None)
            }
        };
        if !is_id(id) {
            return Err(bad(&format!("names no repository; {form}")));
        }
        if !revision.as_deref().is_none_or(is_revision) {
            return Err(bad(&format!("has no revision after the @; {form}")));
        }
        let path = path.trim_end_matches('/');
        if !path.is_empty() && !is_inside(path) {
            return Err(bad("its path leads out of the repository, or has an empty part"));
        }
        let revision = revision.map(|r| alias(&r).to_owned());
        Ok(Self { kind, id: id.to_owned(), revision, path: path.to_owned() })
    }

    /// The repository that the folder `path` is of, where it is a snapshot in a cache of the hub's.
    pub fn of_snapshot(path: &Path) -> Option<Self> {
        let path: PathBuf = path.components().collect();
        let commit = path.file_name()?.to_str().filter(|name| is_commit(name))?;
        let folder = path.parent().filter(|p| p.ends_with("snapshots"))?.parent()?;
        let (kind, id) = folder.file_name()?.to_str()?.split_once("--")?;
        let kind = [Kind::Model, Kind::Dataset].into_iter().find(|k| k.plural() == kind)?;
        let id = id.replacen("--", "/", 1);
        is_id(&id).then(|| Self { kind, id, revision: Some(commit.to_owned()), path: String::new() })
    }

    /// As [`Repo::of`] reads it.
    pub fn name(&self) -> PathBuf {
        let revision = self.revision.as_ref().map_or_else(String::new, |r| {
            // A revision with slashes before a path could not be told from it.
            let r = if self.path.is_empty() || revision_of(r).1.is_empty() { r.clone() } else { r.replace('/', "%2F") };
            format!("@{r}")
        });
        let path = if self.path.is_empty() { String::new() } else { format!("/{}", self.path) };
        let plain = self.kind == Kind::Model && self.path.is_empty() && self.id.contains('/');
        let prefix = match self.kind {
            _ if plain => String::new(),
            Kind::Model => SCHEME.to_owned(),
            Kind::Dataset => format!("{SCHEME}datasets/"),
        };
        format!("{prefix}{}{revision}{path}", self.id).into()
    }

    /// The same at the revision `commit`.
    pub fn at(&self, commit: &str) -> Self {
        Self { revision: Some(commit.to_owned()), ..self.clone() }
    }

    /// The revision; where none was named, the main branch.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Whether its revision is a whole commit, which never means anything else.
    pub fn is_pinned(&self) -> bool {
        is_commit(self.revision())
    }
}

/// A short name of the hub's.
fn alias(revision: &str) -> &str {
    if revision == "~parquet" { CONVERTED } else { revision }
}

/// What follows an `@`: the revision, and the path after it. Some revisions of the hub's own have slashes.
fn revision_of(after: &str) -> (String, &str) {
    let parts: Vec<&str> = after.splitn(4, '/').collect();
    let n = match parts[..] {
        ["refs", "convert" | "pr", ..] => 3,
        _ => 1,
    };
    let end = after.match_indices('/').map(|(i, _)| i).nth(n - 1).unwrap_or(after.len());
    let revision = after[..end].replace("%2F", "/").replace("%2f", "/");
    (revision, after[end..].trim_start_matches('/'))
}

/// Names as the hub has them: at most 96 of letters, digits, `-`, `_` and `.` a part, neither at the ends `-` or `.`, no `--`
/// and no `..`.
pub(super) fn is_id(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-' && c != '.');
    let part = |p: &str| {
        (1..=96).contains(&p.len()) && p.chars().all(plain) && edge(p.chars().next()) && edge(p.chars().last())
    };
    id.split('/').count() <= 2
        && id.split('/').all(part)
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
}

/// What git may call a branch, as far as it can be a file below `refs`.
pub(super) fn is_revision(revision: &str) -> bool {
    let known = revision == "~parquet";
    let plain = |c: char| !c.is_control() && !" ~^:?*[\\".contains(c);
    known || revision.len() <= 200 && is_inside(revision) && revision.chars().all(plain) && !revision.ends_with(".lock")
}

/// A commit, whole.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `path` is one that stays in the folder that it is joined to, on every system.
pub(super) fn is_inside(path: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..") && part.chars().all(|c| c != '\\' && !c.is_control()) && !part.ends_with(':')
    };
    path.split('/').all(plain)
}

/// Something of the hub's, here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its name, with the commit.
    pub named: PathBuf,
    /// Where it lies: a folder, or a file of a data set.
    pub path: PathBuf,
}

/// Where what a run names lies: names of the hub's, and the folders that they were fetched into. Everything else lies where it
/// says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folders(BTreeMap<PathBuf, PathBuf>);

impl Folders {
    /// Remembers it; its name.
    pub fn add(&mut self, fetched: Fetched) -> PathBuf {
        self.0.insert(fetched.named.clone(), fetched.path);
        fetched.named
    }

    /// Where what is called so lies.
    pub fn path<'a>(&'a self, named: &'a Path) -> &'a Path {
        self.0.get(named).map_or(named, PathBuf::as_path)
    }

    /// Whether it is a name of the hub's.
    pub fn has(&self, named: &Path) -> bool {
        self.0.contains_key(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, text: &str) -> Option<(String, Option<String>, String)> {
        Repo::of(kind, Path::new(text)).unwrap().map(|r| (r.id, r.revision, r.path))
    }

    fn some(id: &str, revision: &str, path: &str) -> Option<(String, Option<String>, String)> {
        let revision = Some(revision).filter(|r| !r.is_empty()).map(str::to_owned);
        Some((id.to_owned(), revision, path.to_owned()))
    }

    #[test]
    fn models() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        for (text, want) in [
            ("org/name", some("org/name", "", "")),
            ("org/name@v1.0", some("org/name", "v1.0", "")),
            ("org/name@feature/x", some("org/name", "feature/x", "")),
            ("gpt2@main", some("gpt2", "main", "")),
            ("hf://gpt2", some("gpt2", "", "")),
            ("hf://org/name", some("org/name", "", "")),
            ("hf://models/org/name@main/sub/dir", some("org/name", "main", "sub/dir")),
            ("hf://org/name@refs/pr/3/sub", some("org/name", "refs/pr/3", "sub")),
            ("hf://org/name@a%2Fb/sub", some("org/name", "a/b", "sub")),
            ("hf://org/name/sub", some("org/name", "", "sub")),
        ] {
            assert_eq!(of(Kind::Model, text), want, "{text}");
            let repo = Repo::of(Kind::Model, Path::new(text)).unwrap().unwrap();
            assert_eq!(Repo::of(Kind::Model, &repo.name()).unwrap().unwrap(), repo, "{text}");
            let pinned = repo.at(sha);
            assert!(pinned.is_pinned() && !repo.is_pinned());
            assert_eq!(Repo::of(Kind::Model, &pinned.name()).unwrap().unwrap(), pinned, "{text}");
        }
    }

    #[test]
    fn snapshots() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let of = |text: &str| Repo::of_snapshot(Path::new(text)).map(|r| r.name());
        assert_eq!(of(&format!("/c/models--org--name/snapshots/{sha}/")), Some(format!("org/name@{sha}").into()));
        assert_eq!(of(&format!("datasets--d/snapshots/{sha}")), Some(format!("hf://datasets/d@{sha}").into()));
        for bad in [
            format!("/c/models--org--name/{sha}"),
            format!("/c/m/snapshots/{sha}"),
            "/c/models--o--n/snapshots/main".into(),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }

    #[test]
    fn paths() {
        for text in [
            "name",
            "./org/name",
            "../org/name",
            "/org/name",
            "org/name/",
            "a/b/c",
            "src/name",
            "tests",
            "",
            "org/-x",
            "org/x.git",
            "org/a--b",
            "org/a..b",
            "-/x",
            "org/tokenizer.json",
            "rows.jsonl",
            "org/rows.jsonl.gz",
            "org/name@",
            "org/n@a b",
            "org/n@../x",
            "org/n@a/../b",
            "~/x",
            "a\\b",
            "org/n\u{e9}",
            "x/y.parquet",
        ] {
            assert_eq!(of(Kind::Model, text), None, "{text}");
        }
    }

    #[test]
    fn data_sets() {
        for (text, want) in [
            ("org/name", some("org/name", "", "")),
            ("hf://datasets/org/name", some("org/name", "", "")),
            ("hf://datasets/org/name/default/train", some("org/name", "", "default/train")),
            ("hf://datasets/org/name@main/data/train-*.parquet", some("org/name", "main", "data/train-*.parquet")),
            ("hf://datasets/org/name@~parquet/default", some("org/name", CONVERTED, "default")),
            ("hf://datasets/org/name@refs/convert/parquet/default", some("org/name", CONVERTED, "default")),
        ] {
            assert_eq!(of(Kind::Dataset, text), want, "{text}");
            let repo = Repo::of(Kind::Dataset, Path::new(text)).unwrap().unwrap();
            assert_eq!(Repo::of(Kind::Dataset, &repo.name()).unwrap().unwrap(), repo, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (kind, text, want) in [
            (Kind::Model, "hf://datasets/org/name", "is a data set, and a model is asked for here"),
            (Kind::Dataset, "hf://models/org/name", "is a model, and a data set is asked for here"),
            (Kind::Model, "hf://", "names no repository"),
            (Kind::Model, "hf://spaces/org/name", "is neither a model nor a data set"),
            (Kind::Model, "hf://org/na me", "names no repository"),
            (Kind::Model, "hf://org/name@", "has no revision after the @"),
            (Kind::Model, "hf://org/name@main/../x", "leads out of the repository"),
            (Kind::Model, "hf://org/name@..", "has no revision after the @"),
            (Kind::Model, "https://huggingface.co/org/name", "is the address of a page"),
        ] {
            let e = Repo::of(kind, Path::new(text)).unwrap_err();
            assert!(matches!(e, Error::Usage(_)) && e.to_string().contains(want), "{text}: {e}");
        }
    }
}
