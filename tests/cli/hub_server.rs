//! A hub of one's own: speaks as much of the API as a client needs, redirects large files to another host as the real one
//! does, and fails where it is told to.

use serde_json::{Value, json};
use sha1::Digest as _;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Files of at least this many bytes lie elsewhere, by their SHA-256.
const LARGE: usize = 2000;
/// Files on a page of a list.
const PAGE: usize = 4;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// Of the other host.
    pub elsewhere: bool,
    pub token: Option<String>,
    pub range: Option<String>,
}

/// How an answer goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A status, and headers with their ends.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the content.
    Cut(usize),
    /// Another content, as long.
    Content,
    /// Another length.
    Length(usize),
    /// A redirection.
    To(String),
    /// A whole content, whatever part was asked for.
    Whole,
    /// A pause before it.
    Slow(Duration),
    /// Another list of files.
    List(Value),
    /// No JSON.
    Page,
}

#[derive(Default)]
struct State {
    /// By kind and name: files by commit.
    repos: BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    /// By kind, name and revision.
    revisions: BTreeMap<String, String>,
    gated: Vec<String>,
    /// Part of a path, how often yet, what happens.
    faults: Vec<(String, usize, Fault)>,
    asked: Vec<Asked>,
    addresses: [String; 2],
}

/// The hub, until the test ends.
#[derive(Clone)]
pub struct Server(Arc<Mutex<State>>);

impl Server {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        // Another name, another host.
        let hosts = [("127.0.0.1", false), ("localhost", true)];
        let addresses = hosts.map(|(host, elsewhere)| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || serve(&state, stream, elsewhere));
                }
            });
            format!("http://{host}:{port}")
        });
        state.lock().unwrap().addresses = addresses;
        Self(state)
    }

    pub fn address(&self) -> String {
        self.0.lock().unwrap().addresses[0].clone()
    }
    pub fn elsewhere(&self) -> String {
        self.0.lock().unwrap().addresses[1].clone()
    }

    /// A repository, `models/org/name`, whose `revision` is `commit` and holds `files`.
    pub fn put(&self, repo: &str, revision: &str, commit: &str, files: impl IntoIterator<Item = (String, Vec<u8>)>) {
        let mut state = self.0.lock().unwrap();
        state.revisions.insert(format!("{repo}@{revision}"), commit.to_owned());
        state.repos.entry(repo.to_owned()).or_default().insert(commit.to_owned(), files.into_iter().collect());
    }
    pub fn gate(&self, repo: &str) {
        self.0.lock().unwrap().gated.push(repo.to_owned());
    }
    /// The next `times` answers to what has `part` in its path go wrong.
    pub fn fail(&self, part: &str, times: usize, fault: Fault) {
        self.0.lock().unwrap().faults.push((part.to_owned(), times, fault));
    }
    pub fn mend(&self) {
        self.0.lock().unwrap().faults.clear();
    }
    /// What was asked for since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

fn serve(state: &Mutex<State>, mut stream: TcpStream, elsewhere: bool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
        let mut asked = Asked { method, path, elsewhere, token: None, range: None };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            let Some((name, value)) = line.trim().split_once(": ") else { continue };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => asked.token = Some(value.to_owned()),
                "range" => asked.range = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut s = state.lock().unwrap();
        s.asked.push(asked.clone());
        let fault = s.faults.iter_mut().find(|(part, times, _)| asked.path.contains(part) && *times > 0);
        let fault = fault.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        let answer = s.answer(&asked, fault.as_ref());
        drop(s);
        if let Some(Fault::Slow(pause)) = fault {
            std::thread::sleep(pause);
        }
        if !answer.send(&mut stream, asked.method == "HEAD") {
            return;
        }
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// What it says of itself.
    length: usize,
}

impl Answer {
    fn new(status: u16, headers: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: headers.into(), length: body.len(), body }
    }

    /// Whether the connection can go on.
    fn send(&self, to: &mut TcpStream, head: bool) -> bool {
        let Self { status, headers, body, length } = self;
        let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n");
        let sent = to.write_all(text.as_bytes()).and_then(|()| if head { Ok(()) } else { to.write_all(body) });
        let whole = sent.is_ok() && (head || body.len() == *length);
        if !whole {
            let _ = to.shutdown(std::net::Shutdown::Both);
        }
        whole
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}
/// Git's name for a content.
pub fn blob(bytes: &[u8]) -> String {
    hex(&sha1::Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

impl State {
    fn answer(&self, asked: &Asked, fault: Option<&Fault>) -> Answer {
        match fault {
            Some(Fault::Status(code, headers)) => return Answer::new(*code, *headers, "no"),
            Some(Fault::To(url)) => return Answer::new(302, format!("Location: {url}\r\n"), ""),
            Some(Fault::List(list)) => return Answer::new(200, "", list.to_string()),
            Some(Fault::Page) => return Answer::new(200, "", "<html>"),
            _ => {}
        }
        let path = asked.path.split('?').next().unwrap();
        let query = asked.path.split_once('?').map_or("", |(_, q)| q);
        if let Some(sha) = path.strip_prefix("/content/").filter(|_| asked.elsewhere) {
            let mut all = self.repos.values().flat_map(|r| r.values()).flat_map(|f| f.values());
            return match all.find(|bytes| sha256(bytes) == sha) {
                Some(bytes) => Self::content(asked, bytes, "", fault),
                None => Answer::new(404, "", ""),
            };
        }
        if let Some(rest) = path.strip_prefix("/api/") {
            let parts: Vec<&str> = rest.splitn(5, '/').collect();
            let [kind, owner, name, what, revision] = parts[..] else { return Answer::new(404, "", "") };
            return self.api(&format!("{kind}/{owner}/{name}"), what, &revision.replace("%2F", "/"), query);
        }
        let (kind, rest) = match path.strip_prefix("/datasets/") {
            Some(rest) => ("datasets", rest),
            None => ("models", &path[1..]),
        };
        let parts: Vec<&str> = rest.splitn(5, '/').collect();
        let [owner, name, "resolve", revision, file] = parts[..] else { return Answer::new(404, "", "") };
        let repo = format!("{kind}/{owner}/{name}");
        if self.gated.contains(&repo) && asked.token.as_deref() != Some("Bearer hf_good") {
            let code = if asked.token.is_some() { 403 } else { 401 };
            return Answer::new(code, "X-Error-Code: GatedRepo\r\nX-Error-Message: Access is restricted.\r\n", "");
        }
        let revision = revision.replace("%2F", "/");
        let commit = self.revisions.get(&format!("{repo}@{revision}")).cloned().unwrap_or(revision);
        let Some(bytes) = self.repos.get(&repo).and_then(|r| r.get(&commit)?.get(&file.replace("%20", " "))) else {
            return Answer::new(404, "X-Error-Code: EntryNotFound\r\n", "");
        };
        let headers = format!("X-Repo-Commit: {commit}\r\n");
        if bytes.len() < LARGE {
            let headers = format!("{headers}ETag: \"{}\"\r\n", blob(bytes));
            return Self::content(asked, bytes, &headers, fault);
        }
        let sha = sha256(bytes);
        let to = format!("{}/content/{sha}", self.addresses[1]);
        let linked = format!("X-Linked-Etag: \"{sha}\"\r\nX-Linked-Size: {}\r\nLocation: {to}\r\n", bytes.len());
        Answer::new(302, headers + &linked, "")
    }

    fn api(&self, repo: &str, what: &str, revision: &str, query: &str) -> Answer {
        let Some(commits) = self.repos.get(repo) else {
            return Answer::new(
                401,
                "X-Error-Code: RepoNotFound\r\nX-Error-Message: Invalid username or password.\r\n",
                "",
            );
        };
        let named = self.revisions.get(&format!("{repo}@{revision}")).map_or(revision, |commit| commit);
        let Some(files) = commits.get(named) else {
            return Answer::new(404, "X-Error-Code: RevisionNotFound\r\n", "");
        };
        if what == "revision" {
            return Answer::new(200, "", json!({ "id": repo, "sha": named }).to_string());
        }
        let from: usize = query.split('&').find_map(|p| p.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
        let entry = |(path, bytes): (&String, &Vec<u8>)| match bytes.len() < LARGE {
            true => json!({ "type": "file", "path": path, "size": bytes.len(), "oid": blob(bytes) }),
            false => json!({
                "type": "file", "path": path, "size": bytes.len(), "oid": blob(b"a pointer"),
                "lfs": { "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 9 },
            }),
        };
        let mut page: Vec<Value> = files.iter().skip(from).take(PAGE).map(entry).collect();
        page.push(json!({ "type": "directory", "path": "folder", "size": 0, "oid": blob(b"") }));
        let next = format!("{}/api/{repo}/tree/{revision}?recursive=true&cursor={}", self.addresses[0], from + PAGE);
        let link = if from + PAGE < files.len() { format!("Link: <{next}>; rel=\"next\"\r\n") } else { String::new() };
        Answer::new(200, link, Value::from(page).to_string())
    }

    fn content(asked: &Asked, bytes: &[u8], headers: &str, fault: Option<&Fault>) -> Answer {
        let from =
            asked.range.as_ref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let from = from.filter(|_| !matches!(fault, Some(Fault::Whole))).unwrap_or(0);
        if from >= bytes.len() && from > 0 {
            return Answer::new(416, "", "");
        }
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
        let (status, range) = if from > 0 { (206, range) } else { (200, String::new()) };
        let mut answer = Answer::new(status, format!("{headers}{range}"), &bytes[from..]);
        match fault {
            Some(Fault::Cut(n)) => answer.body.truncate(*n),
            Some(Fault::Content) => answer.body.iter_mut().for_each(|b| *b ^= 1),
            Some(Fault::Length(n)) => {
                answer.body.resize(*n, b' ');
                answer.length = *n;
            }
            _ => {}
        }
        answer
    }
}
