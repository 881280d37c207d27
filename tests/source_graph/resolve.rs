//! From a path in the source to the file that defines what it names.

use super::tokens::File;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Longest chain of re-exports that is followed.
const CHAIN: usize = 16;

/// Modules and imports of the crate.
#[derive(Default)]
pub struct Names {
    /// Module -> file.
    modules: BTreeMap<Vec<String>, String>,
    /// (module, name) -> path brought in under that name, and the module in which the `use` stands.
    aliases: BTreeMap<(Vec<String>, String), Vec<String>>,
    /// Module -> paths all of whose names are brought in.
    globs: BTreeMap<Vec<String>, Vec<Vec<String>>>,
    /// Exported macro -> file.
    macros: BTreeMap<String, String>,
    /// What was followed already, with how many steps left: modules that bring in all of each other are met over and over.
    followed: RefCell<HashMap<Followed, Option<String>>>,
}

/// Module, path, steps left.
type Followed = (Vec<String>, Vec<String>, usize);

impl Names {
    /// Of all files.
    pub fn of(files: &BTreeMap<String, File>) -> Self {
        let mut names = Names::default();
        for (path, file) in files {
            names.modules.insert(file.module.clone(), path.clone());
        }
        for (path, file) in files {
            names.macros.extend(file.macros.iter().map(|m| (m.clone(), path.clone())));
            for inline in &file.modules {
                names.modules.entry(inline.clone()).or_insert_with(|| path.clone());
            }
            for m in &file.mentions {
                match m.brings.as_deref() {
                    Some("*") => names.globs.entry(m.module.clone()).or_default().push(m.path.clone()),
                    Some(name) => {
                        names.aliases.insert((m.module.clone(), name.to_owned()), m.path.clone());
                    }
                    None => {}
                }
            }
        }
        names
    }

    /// The file that defines what `path` names where it stands in `module`; `None` for other crates' and local names.
    pub fn file_of(&self, module: &[String], path: &[String]) -> Option<String> {
        self.follow(module, path, CHAIN)
    }

    fn follow(&self, module: &[String], path: &[String], left: usize) -> Option<String> {
        let key = (module.to_vec(), path.to_vec(), left);
        if let Some(found) = self.followed.borrow().get(&key) {
            return found.clone();
        }
        let found = self.step(module, path, left);
        self.followed.borrow_mut().insert(key, found.clone());
        found
    }

    fn step(&self, module: &[String], path: &[String], left: usize) -> Option<String> {
        let left = left.checked_sub(1)?;
        if let [root, name] = path
            && is_root(root)
            && let Some(file) = self.macros.get(name.trim_end_matches('!'))
        {
            return Some(file.clone());
        }
        let mut at = match path.first()?.as_str() {
            root if is_root(root) => (Vec::new(), 1),
            "self" => (module.to_vec(), 1),
            "super" => {
                let ups = path.iter().take_while(|p| *p == "super").count();
                (module[..module.len().checked_sub(ups)?].to_vec(), ups)
            }
            first => {
                let child = [module, &[first.to_owned()]].concat();
                if self.modules.contains_key(&child) {
                    (child, 1)
                } else if let Some(target) = self.aliases.get(&(module.to_vec(), first.to_owned())) {
                    if target.first().is_some_and(|t| t == first) {
                        return None; // `use clap::...`: another crate
                    }
                    let whole = [target, &path[1..]].concat();
                    return self.follow(module, &whole, left);
                } else {
                    return self.through_glob(module, path, left);
                }
            }
        };
        for (i, name) in path.iter().enumerate().skip(at.1) {
            let child = [at.0.as_slice(), std::slice::from_ref(name)].concat();
            if self.modules.contains_key(&child) {
                at.0 = child;
                continue;
            }
            let rest = &path[i + 1..];
            if let Some(target) = self.aliases.get(&(at.0.clone(), name.clone())) {
                let whole = [target, rest].concat();
                if let Some(found) = self.follow(&at.0, &whole, left) {
                    return Some(found);
                }
            }
            if let Some(found) = self.through_glob(&at.0, &path[i..], left) {
                return Some(found);
            }
            break;
        }
        self.modules.get(&at.0).cloned()
    }

    /// What a `use x::*` of `module` brings in under the first name of `path`, where that is a module or a re-export: a plain
    /// item cannot be told from one of the module itself.
    fn through_glob(&self, module: &[String], path: &[String], left: usize) -> Option<String> {
        for glob in self.globs.get(module)? {
            let Some(file) = self.follow(module, glob, left) else { continue };
            let folder = self.modules.iter().find(|(_, f)| **f == file).map(|(m, _)| m.clone())?;
            let known = self.aliases.contains_key(&(folder.clone(), path[0].clone()))
                || self.modules.contains_key(&[folder.as_slice(), &path[..1]].concat());
            if known {
                return self.follow(module, &[glob.as_slice(), path].concat(), left);
            }
        }
        None
    }
}

/// The crate, as the library and the program name it.
fn is_root(name: &str) -> bool {
    name == "crate" || name == "fusedpo"
}
