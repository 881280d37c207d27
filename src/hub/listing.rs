//! What a repository holds at one commit, as the hub says.

use super::http::{Answer, Client, Failure};
use super::name::{Repo, is_commit, is_inside};
use super::url::quoted;
use crate::error::Error;
use crate::observe::Observe;
use serde_json::Value;

/// Most pages of a list; a page has a thousand files.
const PAGES: usize = 1000;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its way from the top, with slashes.
    pub path: String,
    /// Bytes; `None` where only the cache knows of it.
    pub size: Option<u64>,
    /// Git's name for its content: of a large file, for a text that stands for it.
    pub(super) sha1: Option<String>,
    /// SHA-256 of a large file's content.
    pub(super) sha256: Option<String>,
}

impl Entry {
    /// What the cache calls its content.
    pub(super) fn hash(&self) -> Option<&str> {
        self.sha256.as_deref().or(self.sha1.as_deref())
    }

    /// Whether it can be written where it says, and checked.
    pub(super) fn is_sound(&self) -> bool {
        let hex =
            |text: &String, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let named = self.hash().is_some();
        let hashes = self.sha256.iter().all(|h| hex(h, 64)) && self.sha1.iter().all(|h| hex(h, 40));
        is_inside(&self.path) && named && hashes
    }
}

/// What a repository holds.
#[derive(Clone, Debug)]
pub struct Listing {
    /// At which commit.
    pub commit: String,
    /// Its files, in the hub's order.
    pub files: Vec<Entry>,
    /// Whether that is all of them; else only those that are here.
    pub whole: bool,
}

/// Asks.
pub(super) fn ask(client: &Client, repo: &Repo, observe: &mut dyn Observe) -> Result<Listing, Failure> {
    let api = format!("{}/api/{}/{}", client.endpoint(), repo.kind.plural(), repo.id);
    let commit = match repo.is_pinned() {
        true => repo.revision().to_owned(),
        false => {
            let url = format!("{api}/revision/{}", quoted(repo.revision(), false));
            let info = client.json(&url, observe)?.0;
            let sha = info["sha"].as_str().filter(|sha| is_commit(sha));
            sha.ok_or_else(|| odd(repo, "names no commit for the revision"))?.to_owned()
        }
    };
    let mut files = Vec::new();
    let mut next = Some(format!("{api}/tree/{commit}?recursive=true"));
    for _ in 0..PAGES {
        let Some(url) = next else { return Ok(Listing { commit, files, whole: true }) };
        let (page, answer) = client.json(&url, observe)?;
        let entries = page.as_array().ok_or_else(|| odd(repo, "gives no list of files"))?;
        for entry in entries.iter().filter(|e| e["type"] == "file") {
            files.push(read(entry).map_err(|why| odd(repo, &why))?);
        }
        next = next_page(&answer);
    }
    Err(odd(repo, "gives a list of files without an end"))
}

fn read(of: &Value) -> Result<Entry, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let path = text(&of["path"]).ok_or("lists a file without a name")?;
    if !is_inside(&path) {
        return Err(format!(
            "lists a file `{path}`, which would lie outside the repository's folder: nothing of it is taken"
        ));
    }
    let size = of["lfs"]["size"].as_u64().or_else(|| of["size"].as_u64());
    let entry = Entry { size, sha1: text(&of["oid"]), sha256: text(&of["lfs"]["oid"]), path };
    match entry.is_sound() && entry.size.is_some() {
        true => Ok(entry),
        false => Err(format!("lists the file `{}` without its size and hash", entry.path)),
    }
}

/// The address in `Link: <...>; rel="next"`.
fn next_page(answer: &Answer) -> Option<String> {
    let links = answer.header("link")?;
    let link = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(link.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// What no hub says.
fn odd(repo: &Repo, why: &str) -> Failure {
    Failure::Error(Error::file(repo.name(), format!("the hub {why}")))
}
