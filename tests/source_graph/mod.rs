//! The sources of `src/` as a graph: which file names which. Read from tokens, so that comments, strings and formatting
//! cannot hide or fake a name; `#[cfg(test)]` items are left out.
//!
//! A name belongs to the file that defines it: a re-export (`pub use`) is looked through, and makes no arrow of its own.

mod resolve;
mod tokens;

use resolve::Names;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use tokens::{File, Mention};

/// Every source file, by its path below `src/`.
pub type Sources = BTreeMap<String, String>;

/// Reads all `.rs` files below `root`.
pub fn read(root: &Path) -> Sources {
    let mut sources = Sources::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    sources
}

/// The files with what each names.
pub struct Tree {
    /// By path below `src/`.
    pub files: BTreeMap<String, File>,
    /// File -> files whose items it names, each with one such name and its line.
    pub arrows: BTreeMap<String, BTreeMap<String, Mention>>,
}

impl Tree {
    /// Parses `sources` and resolves every path in them.
    pub fn new(sources: &Sources) -> Self {
        Self::of(sources.iter().map(|(path, text)| (path.clone(), File::parse(path, text))).collect())
    }

    fn of(files: BTreeMap<String, File>) -> Self {
        let names = Names::of(&files);
        let arrows = files.iter().map(|(path, file)| (path.clone(), arrows(&names, path, file))).collect();
        Self { files, arrows }
    }

    /// The tree with another text in `path`, which declares the same modules.
    pub fn with(&self, path: &str, text: &str) -> Self {
        let (mut files, mut all) = (self.files.clone(), self.arrows.clone());
        files.insert(path.to_owned(), File::parse(path, text));
        all.insert(path.to_owned(), arrows(&Names::of(&files), path, &files[path]));
        Self { files, arrows: all }
    }

    /// Sets of files that name each other in a loop, each sorted.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let reach: BTreeMap<&str, BTreeSet<&str>> =
            self.files.keys().map(|f| (f.as_str(), self.reachable(f))).collect();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut circles = Vec::new();
        for f in self.files.keys().map(String::as_str) {
            if reach[f].contains(f) && !seen.contains(f) {
                let ring: Vec<&str> = reach[f].iter().copied().filter(|g| reach[g].contains(f)).collect();
                seen.extend(&ring);
                circles.push(ring.into_iter().map(str::to_owned).collect());
            }
        }
        circles
    }

    fn reachable<'a>(&'a self, from: &str) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&str> = self.arrows[from].keys().map(String::as_str).collect();
        while let Some(f) = open.pop() {
            if found.insert(f) {
                open.extend(self.arrows[f].keys().map(String::as_str));
            }
        }
        found
    }
}

/// The files whose items `file` names.
fn arrows(names: &Names, path: &str, file: &File) -> BTreeMap<String, Mention> {
    let mut to = BTreeMap::new();
    for m in file.mentions.iter().filter(|m| !m.reexport) {
        if let Some(target) = names.file_of(&m.module, &m.path).filter(|t| t != path) {
            to.entry(target).or_insert_with(|| m.clone());
        }
    }
    to
}

/// The room of a file: its first folder, or its own name without `.rs`.
pub fn room(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}
