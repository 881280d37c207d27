//! Addresses: what of one is sent where, and where a redirection leads.

/// Scheme, host and port: who is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub https: bool,
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// Of `url`; `None` for what is no address of the web, or names a user.
    pub fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        // An IPv6 address has colons of its own.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = match port {
            Some(port) => port.parse().ok()?,
            None if https => 443,
            None => 80,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        let sound = !host.is_empty() && host.chars().all(plain);
        sound.then(|| Self { https, host: host.to_ascii_lowercase(), port })
    }
}

/// `url` as it may be shown: without a user and a password, and without what is asked, which may be a signature.
pub(super) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
    let path = rest.find('/').unwrap_or(rest.len());
    let host = rest[..path].rsplit('@').next().unwrap_or_default();
    format!("{}{host}{}", scheme.map_or_else(String::new, |s| format!("{s}://")), &rest[path..])
}

/// Where `location` leads from `url`.
pub(super) fn join(url: &str, location: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let path = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let root = &url[..scheme.len() + 3 + path];
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") && location.find("://") < location.find(['/', '?']) {
        return Some(location.to_owned());
    }
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    if location.starts_with('/') {
        return Some(format!("{root}{location}"));
    }
    let folder = rest[path..].split(['?', '#']).next().unwrap_or_default();
    let folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{root}{folder}/{location}"))
}

/// `text` as one segment of a path, or with its slashes.
pub(super) fn quoted(text: &str, slashes: bool) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            b'/' if slashes => out.push('/'),
            byte => write!(out, "%{byte:02X}").expect("a string takes all"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_spoken_to() {
        let of = |url| Origin::of(url).map(|o| (o.https, o.host, o.port));
        assert_eq!(of("https://Hub.co/x:1"), Some((true, "hub.co".into(), 443)));
        assert_eq!(of("http://127.0.0.1:81"), Some((false, "127.0.0.1".into(), 81)));
        assert_eq!(of("http://[::1]?x"), Some((false, "[::1]".into(), 80)));
        for bad in ["hub.co", "ftp://h", "http://", "http://u@h/", "http://h:x/", "http://h@evil:1/"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn where_a_redirection_leads() {
        for (location, want) in [
            ("/b?c=d://e", "http://h:1/b?c=d://e"),
            ("b", "http://h:1/a/b"),
            ("https://o/x", "https://o/x"),
            ("//o/x", "http://o/x"),
            ("/b#f", "http://h:1/b"),
        ] {
            assert_eq!(join("http://h:1/a/f?q=/z", location).as_deref(), Some(want));
        }
        assert_eq!(join("http://h:1", "x").as_deref(), Some("http://h:1/x"));
    }

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(quoted("refs/convert/parquet", false), "refs%2Fconvert%2Fparquet");
        assert_eq!(quoted("a b/ü?#%.txt", true), "a%20b/%C3%BC%3F%23%25.txt");
    }
}
