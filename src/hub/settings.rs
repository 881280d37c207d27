//! Where the hub is, who asks, and where the cache lies: the variables of `huggingface_hub`, with its rules.

use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";

/// What is said of the hub beside a name.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its address (`HF_ENDPOINT`), without a slash at the end.
    pub endpoint: String,
    /// Who asks (`HF_TOKEN`, or the file that `hf auth login` writes). Told to the hub's own address alone.
    pub token: Option<String>,
    /// Where the cache lies (`HF_HUB_CACHE`, `HF_HOME`).
    pub cache: PathBuf,
    /// Whether nobody is to be asked (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Longest silence (`HF_HUB_DOWNLOAD_TIMEOUT`).
    pub timeout: Duration,
    /// Authorities to trust, in place of those that the program knows: PEM (`SSL_CERT_FILE`).
    pub certificates: Option<PathBuf>,
    /// Pause before the second try, twice as long before each further one, where the hub does not say how long it should be.
    pub pause: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the token.
        f.debug_struct("Settings").field("endpoint", &self.endpoint).field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Settings {
    /// Those of the process's environment. Errors: a token file that is there and cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::of(&|name| std::env::var(name).ok())
    }

    /// Those that `get` gives by the names of variables; one that is empty is not set.
    pub fn of(get: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| get(name));
        let yes = |name: &str| get(name).is_some_and(|v| is_true(&v));
        let path = |name: &str| get(name).map(|text| expanded(&text, &get));
        let user = get("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let caches = get("XDG_CACHE_HOME").map_or_else(|| user.join(".cache"), PathBuf::from);
        let home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token = match first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            _ if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(token) => Some(token),
            None => token_in(&path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")))?,
        };
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|t| t.trim().parse().ok()).filter(|t| *t > 0);
        Ok(Self {
            endpoint: get("HF_ENDPOINT")
                .map_or_else(|| ENDPOINT.to_owned(), |e| e.trim().trim_end_matches('/').to_owned()),
            token: token.map(|t| t.trim().to_owned()),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline: first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|v| is_true(&v)),
            timeout: Duration::from_secs(seconds.unwrap_or(10)),
            certificates: first(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]).map(PathBuf::from),
            pause: Duration::from_millis(500),
        })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str())
}

fn token_in(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read_text(path, MOST_TEXT).map_err(|e| match e {
        Error::Io { path, source, .. } => Error::Io { path, doing: "read the token", source },
        e => e,
    })?;
    Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty()))
}

/// A path with a user's folder for `~`, and the values of variables for `$NAME` and `${NAME}`; of those that are not set, the
/// text stays.
fn expanded(text: &str, get: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let text = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => match get("HOME") {
            Some(home) => home + rest,
            None => text.to_owned(),
        },
        _ => text.to_owned(),
    };
    let (mut out, mut rest) = (String::new(), text.as_str());
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, beyond) = braced.unwrap_or_else(|| {
            after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()))
        });
        match get(name).filter(|_| !name.is_empty()) {
            Some(value) => out += &value,
            None => {
                out.push('$');
                out += &after[..after.len() - beyond.len()];
            }
        }
        rest = beyond;
    }
    PathBuf::from(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[(&str, &str)]) -> Settings {
        let all: Vec<(String, String)> = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::of(&|name| all.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())).unwrap()
    }

    /// What `huggingface_hub.constants` makes of the same variables.
    #[test]
    fn places_are_those_of_the_python_package() {
        for (given, want) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "~/hf")], "/u/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "")], "/hf/hub"),
            (&[("S", "/scratch"), ("HF_HOME", "$S/a-${S}-$T-${T}-$")], "/scratch/a-/scratch-$T-${T}-$/hub"),
        ] {
            assert_eq!(of(given).cache, Path::new(want), "{given:?}");
        }
    }

    #[test]
    fn tokens_come_from_a_variable_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN", " hf_env\n")]).token.as_deref(), Some("hf_env"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN", " ")]).token.as_deref(), Some("hf_file"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        std::fs::write(dir.path().join("other"), "hf_other").unwrap();
        let other = of(&[("HF_HOME", home), ("HF_TOKEN_PATH", &format!("{home}/other"))]);
        assert_eq!(other.token.as_deref(), Some("hf_other"));
        assert!(!format!("{other:?}").contains("hf_other"));
    }

    #[test]
    fn an_address_has_no_slash_at_its_end_and_yes_has_four_forms() {
        assert_eq!(of(&[]).endpoint, ENDPOINT);
        assert_eq!(of(&[("HF_ENDPOINT", "http://h:1/")]).endpoint, "http://h:1");
        for (text, want) in [("1", true), ("true", true), ("Yes", true), ("on", true), ("0", false), ("", false)] {
            assert_eq!(of(&[("HF_HUB_OFFLINE", text)]).offline, want, "{text}");
            assert_eq!(of(&[("TRANSFORMERS_OFFLINE", text)]).offline, want, "{text}");
        }
    }
}
