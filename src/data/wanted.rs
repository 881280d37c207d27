//! A data set of the hub's: which of its files are wanted, brought into the cache.

use crate::error::{Error, Result};
use crate::hub::{CONVERTED, Fetched, Hub, Opened, Repo};
use crate::observe::{Event, Observe};
use std::collections::BTreeMap;

/// Of files that rows are read from.
const ENDINGS: &[&str] = &[".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"];
/// After any of them.
const PACKED: &[&str] = &[".gz", ".zst"];
/// Before the name of a split of which the hub converted the beginning alone.
const PARTIAL: &str = "partial-";
/// The split that is taken where none is named.
const TRAIN: &str = "train";

/// Brings the files of the data set `repo` here, in order.
///
/// Without a revision these are the Parquet files that the hub made of it; its path is a configuration and a split, where there
/// is a choice. Of several splits that nobody chose from it is `train`, and a note says so. With a revision, or where its path
/// ends as a file does, its path is a file of the data set's own, a folder, or a pattern with `*`.
///
/// Errors: as of [`Hub::open`] and [`Opened::fetch`], and a choice that is left open or has nothing in it.
pub fn fetch(hub: &Hub, repo: &Repo, observe: &mut dyn Observe) -> Result<Vec<Fetched>> {
    let own =
        repo.revision.as_deref().is_some_and(|r| r != CONVERTED) || is_data(&repo.path) || repo.path.contains('*');
    let (opened, names) = if own {
        let opened = hub.open(&Repo { path: String::new(), ..repo.clone() }, observe)?;
        let names = matching(&opened, &repo.path)?;
        (opened, names)
    } else {
        let converted = Repo { revision: Some(CONVERTED.to_owned()), path: String::new(), ..repo.clone() };
        let Some(opened) = hub.find(&converted, observe)? else { return Err(unconverted(hub, repo, observe)?) };
        let names = split(&opened, &repo.path, observe)?;
        (opened, names)
    };
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    opened.fetch(&wanted, observe)?;
    let (folder, at) = (opened.folder(), opened.repo());
    let fetched =
        |name: &String| Fetched { named: Repo { path: name.clone(), ..at.clone() }.name(), path: folder.join(name) };
    Ok(names.iter().map(fetched).collect())
}

fn is_data(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = PACKED.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    ENDINGS.iter().any(|end| name.ends_with(end))
}

/// Where there is nothing that the hub converted, says what there is.
fn unconverted(hub: &Hub, repo: &Repo, observe: &mut dyn Observe) -> Result<Error> {
    let main = Repo { revision: None, path: String::new(), ..repo.clone() };
    let opened = hub.open(&main, observe)?;
    let files: Vec<&str> = opened.names().filter(|n| is_data(n)).collect();
    let why = match files[..] {
        [] => "the hub made no Parquet files of it, and it has no files of rows itself".to_owned(),
        _ => format!(
            "the hub made no Parquet files of it; name files of its own, such as {}: it has {}",
            Repo { path: files[0].to_owned(), revision: Some("main".into()), ..main }.name().display(),
            some(&files)
        ),
    };
    Ok(Error::file(repo.name(), why))
}

/// Its own files that `path` names, in order.
fn matching(opened: &Opened<'_>, path: &str) -> Result<Vec<String>> {
    let named = |name: &str| match path {
        "" => is_data(name),
        pattern if pattern.contains('*') => matches(pattern, name),
        path => name == path || is_data(name) && name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')),
    };
    let mut names: Vec<String> = opened.names().filter(|n| named(n)).map(str::to_owned).collect();
    names.sort();
    if !names.is_empty() {
        return Ok(names);
    }
    let all: Vec<&str> = opened.names().filter(|n| is_data(n)).collect();
    let has = if all.is_empty() { "no files of rows at all".to_owned() } else { some(&all) };
    let what = if path.is_empty() { String::new() } else { format!(" `{path}`, as a file, a folder or a pattern") };
    Err(opened.error(format!("has no rows{what}: it has {has}")))
}

/// Whether `name` is what `pattern` says; `*` stands for anything but a slash, `**` for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    let (slashes, after) = match after.strip_prefix('*') {
        // `a/**/b` is `a/b` too.
        Some(after) => (true, after),
        None => (false, after),
    };
    let ends = rest.char_indices().map(|(i, _)| i).chain([rest.len()]);
    let mut reach = ends.take_while(|end| slashes || !rest[..*end].contains('/'));
    let none = slashes && after.strip_prefix('/').is_some_and(|after| matches(after, rest));
    none || reach.any(|end| matches(after, &rest[end..]))
}

/// The files of one split of what the hub converted, `CONFIG/SPLIT/0000.parquet`.
fn split(opened: &Opened<'_>, path: &str, observe: &mut dyn Observe) -> Result<Vec<String>> {
    let mut all: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for name in opened.names().filter(|n| n.ends_with(".parquet")) {
        if let [config, split, _] = name.split('/').collect::<Vec<_>>()[..] {
            all.entry(config).or_default().entry(split).or_default().push(name);
        }
    }
    let configs: Vec<&str> = all.keys().copied().collect();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let (config, split) = match parts[..] {
        [] => (None, None),
        [config] if all.contains_key(config) => (Some(config), None),
        [split] => (None, Some(split)),
        [config, split] => (Some(config), Some(split)),
        _ => return Err(opened.error(format!("`{path}` is no configuration and split"))),
    };
    let config = match (config, &configs[..]) {
        (_, []) => return Err(opened.error("the hub made no Parquet files of it yet")),
        (Some(config), _) => config,
        (None, [config]) => config,
        (None, several) if several.contains(&"default") => "default",
        (None, several) => {
            return Err(opened.error(format!(
                "has the configurations {}: name one, as in .../{}",
                some(several),
                several[0]
            )));
        }
    };
    let Some(splits) = all.get(config) else {
        return Err(opened.error(format!("has no configuration `{config}`: it has {}", some(&configs))));
    };
    let names: Vec<&str> = splits.keys().copied().collect();
    let split = match (split, &names[..]) {
        (Some(split), _) => split,
        (None, [split]) if !split.starts_with(PARTIAL) => split,
        (None, several) if several.contains(&TRAIN) => TRAIN,
        (None, several) => {
            return Err(opened.error(format!(
                "has the splits {}: name one, as in .../{config}/{}",
                some(several),
                several[0]
            )));
        }
    };
    let Some(files) = splits.get(split) else {
        let partial = format!("{PARTIAL}{split}");
        let part = match names.contains(&partial.as_str()) {
            true => format!(
                "; {partial} is the beginning of it, as the hub converts no more: name that, or the data set's own files"
            ),
            false => String::new(),
        };
        return Err(opened.error(format!("`{config}` has no split `{split}`: it has {}{part}", some(&names))));
    };
    let several = configs.len() > 1 || names.len() > 1;
    if several && parts.len() < 2 {
        let name = opened.repo().name();
        let (of, others) = (configs.len(), names.len());
        let said = format!(
            "{}: {config}/{split} is taken, of {of} configuration{} and {others} split{}",
            name.display(),
            if of == 1 { "" } else { "s" },
            if others == 1 { "" } else { "s" }
        );
        observe.tell(&Event::Note(&said))?;
    }
    let mut files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
    files.sort();
    Ok(files)
}

/// The first names of a list, and how many there are more.
fn some(names: &[&str]) -> String {
    const MOST: usize = 6;
    let shown = names[..names.len().min(MOST)].join(", ");
    if names.len() > MOST { format!("{shown} and {} more", names.len() - MOST) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::{is_data, matches};

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("data/*.parquet", "data/a.parquet", true),
            ("data/*.parquet", "data/x/a.parquet", false),
            ("**.parquet", "data/x/a.parquet", true),
            ("data/**/a.parquet", "data/a.parquet", true),
            ("data/**/a.parquet", "data/x/y/a.parquet", true),
            ("*", "a", true),
            ("*", "", true),
            ("a*b*c", "axbxbc", true),
            ("a*b*c", "axbxbd", false),
            ("train-*-of-*", "train-0-of-1", true),
            ("d\u{e9}*", "d\u{e9}\u{e9}", true),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn files_of_rows() {
        for (name, want) in [
            ("a.parquet", true),
            ("a.JSONL.gz", true),
            ("a.csv.zst", true),
            ("a.gz", false),
            ("README.md", false),
            ("x.json", true),
        ] {
            assert_eq!(is_data(name), want, "{name}");
        }
    }
}
