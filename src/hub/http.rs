//! Questions to the hub: who is told the token, what is tried again, and what an answer means.

use super::name::Repo;
use super::settings::Settings;
use super::url::{Origin, join, shown};
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON, MOST_TOKENIZER};
use crate::observe::{Event, Flow, Observe};
use serde_json::Value;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, http};

/// Redirections that are followed.
const HOPS: usize = 10;
/// How often something is asked for, in all.
const TRIES: u32 = 5;
/// Longest pause that a server may ask for.
const PATIENCE: Duration = Duration::from_secs(300);
const SLICE: Duration = Duration::from_millis(50);

/// An answer that is one: its status says that it went well, or that nothing more is there.
pub(super) struct Answer {
    response: http::Response<Body>,
    host: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Whether it begins where it was asked to.
    pub fn goes_on_from(&self, from: u64) -> bool {
        let range = self.header("content-range").and_then(|r| r.strip_prefix("bytes ")?.split_once('-'));
        self.status() == 206 && range.is_some_and(|(at, _)| at.trim().parse() == Ok(from))
    }

    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Bytes that are to come, where it says.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// Who gives it.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn reader(&mut self) -> impl Read + '_ {
        self.response.body_mut().as_reader()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// That is the end of it.
    Error(Error),
    /// The hub, or whom it sends to, says no.
    Status {
        code: u16,
        /// The hub's own word for it.
        word: String,
        /// The hub's own sentence.
        said: String,
        host: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// Nobody answers, or not to the end.
    Network { host: String, why: String, again: bool },
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Error(e)
    }
}

/// Asks.
pub(super) struct Client {
    agent: Agent,
    settings: Settings,
    origin: Origin,
}

impl Client {
    pub fn new(settings: Settings) -> Result<Self> {
        let endpoint = &settings.endpoint;
        let origin = Origin::of(endpoint).ok_or_else(|| {
            let (endpoint, user) = (shown(endpoint), endpoint.contains('@'));
            let why = if user { "; a user in it is not supported, a token is" } else { "" };
            Error::usage(format!(
                "HF_ENDPOINT is `{endpoint}`, which is no address such as https://huggingface.co{why}"
            ))
        })?;
        // Never shown: a token that cannot be sent may be one all the same.
        if settings.token.as_ref().is_some_and(|t| !t.chars().all(|c| c.is_ascii_graphic())) {
            return Err(Error::usage("the token of the hub (HF_TOKEN, or its file) has characters that no token has"));
        }
        let roots = settings.certificates.as_deref().map(certificates).transpose()?.unwrap_or(RootCerts::WebPki);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here: who is told what depends on where they lead.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("fusedpo/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .timeout_per_write(Some(settings.timeout))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Ok(Self { agent: config.new_agent(), settings, origin })
    }

    pub fn endpoint(&self) -> &str {
        &self.settings.endpoint
    }

    /// Who the hub is, in messages.
    pub fn host(&self) -> &str {
        &self.origin.host
    }

    /// The JSON at `url`, which must be the hub's own.
    pub fn json(&self, url: &str, observe: &mut dyn Observe) -> Result<(Value, Answer), Failure> {
        let mut tries = 0;
        loop {
            let mut answer = self.get(url, 0, observe)?;
            let mut bytes = Vec::new();
            let read = answer.reader().take(MOST_JSON + 1).read_to_end(&mut bytes);
            let broken = match read {
                Ok(n) if n as u64 > MOST_JSON => Failure::Error(self.odd("answers without an end")),
                Ok(_) => match serde_json::from_slice(&bytes) {
                    Ok(value) => return Ok((value, answer)),
                    Err(_) => Failure::Error(self.odd(
                        "answers with something that is no JSON: is a page of a proxy in between, or HF_ENDPOINT not a hub's?",
                    )),
                },
                Err(e) => Failure::Network { host: answer.host, why: e.to_string(), again: true },
            };
            tries += 1;
            self.pause(broken, tries, observe)?;
        }
    }

    fn odd(&self, why: &str) -> Error {
        Error::file(self.endpoint(), why)
    }

    /// What is at `url`, from the byte `from` on. What may pass is tried again.
    pub fn get(&self, url: &str, from: u64, observe: &mut dyn Observe) -> Result<Answer, Failure> {
        let mut tries = 0;
        loop {
            match self.follow(url, from) {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    tries += 1;
                    self.pause(failure, tries, observe)?;
                }
            }
        }
    }

    /// Waits before the next try, where there is to be one: else the failure.
    pub fn pause(&self, failure: Failure, tries: u32, observe: &mut dyn Observe) -> Result<(), Failure> {
        let own = self.settings.pause * 2u32.pow(tries.min(10) - 1);
        let (wait, why) = match &failure {
            Failure::Network { host, why, again: true } => (own, format!("{host}: {why}")),
            Failure::Status { code, host, wait, .. } if matches!(code, 408 | 429 | 500 | 502 | 503 | 504) => {
                (wait.unwrap_or(own), format!("{host} answers {}", status(*code)))
            }
            _ => return Err(failure),
        };
        if tries >= TRIES || wait > PATIENCE {
            return Err(failure);
        }
        observe.tell(&Event::Note(&format!("{why}; trying again in {} s", wait.as_secs_f64())))?;
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if observe.on(&Event::Tick)? != Flow::On {
                return Err(Failure::Error(stopped()));
            }
            std::thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Asks once, and those that it is sent to. The token goes to the hub alone, and to nobody any more once another host was
    /// asked.
    fn follow(&self, url: &str, from: u64) -> Result<Answer, Failure> {
        let (mut url, mut trusted) = (url.to_owned(), true);
        for _ in 0..=HOPS {
            let Some(origin) = Origin::of(&url) else {
                return Err(Failure::Error(self.odd(&format!("sends to `{}`, which is no address", shown(&url)))));
            };
            if self.origin.https && !origin.https {
                return Err(Failure::Error(
                    self.odd(&format!("sends to {}, which anybody could listen to", origin.host)),
                ));
            }
            trusted &= origin == self.origin;
            let response = self.ask(&url, from, trusted).map_err(|e| network(&origin.host, &e))?;
            let code = response.status().as_u16();
            let answer = Answer { response, host: origin.host };
            match code {
                200 | 206 | 416 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => {
                    let to = answer.header("location").and_then(|to| join(&url, to));
                    url = to.ok_or_else(|| self.odd("sends elsewhere without saying where"))?;
                }
                _ => return Err(refusal(answer)),
            }
        }
        Err(Failure::Error(self.odd("sends from one place to another without an end")))
    }

    fn ask(&self, url: &str, from: u64, trusted: bool) -> Result<http::Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(token) = self.settings.token.as_ref().filter(|_| trusted) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call()
    }
}

/// The authorities in a file.
fn certificates(path: &Path) -> Result<RootCerts> {
    let bytes = files::read(path, MOST_TOKENIZER).map_err(|e| e.doing("read the certificates"))?;
    let all = parse_pem(&bytes).filter_map(|item| match item {
        Ok(PemItem::Certificate(c)) => Some(c),
        _ => None,
    });
    let all: Vec<Certificate<'static>> = all.collect();
    match all.is_empty() {
        true => Err(Error::file(path, "has no certificates in PEM; SSL_CERT_FILE names those to trust")),
        false => Ok(RootCerts::new_with_certs(&all)),
    }
}

/// Somebody asked to stop.
pub(super) fn stopped() -> Error {
    Error::stopped("stopped; what was downloaded is kept, and the same command goes on with it")
}

fn network(host: &str, e: &ureq::Error) -> Failure {
    let (why, again) = match e {
        ureq::Error::HostNotFound => ("no address is known for it".to_owned(), false),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            ("it does not answer".to_owned(), false)
        }
        ureq::Error::Timeout(_) => ("it fell silent".to_owned(), true),
        ureq::Error::Io(e) => {
            let again =
                !matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound | ErrorKind::InvalidData);
            (io_reason(e), again)
        }
        ureq::Error::Protocol(_) => ("the connection was cut".to_owned(), true),
        ureq::Error::Rustls(e) => (certificate_reason(&e.to_string()), false),
        e => (e.to_string(), false),
    };
    Failure::Network { host: host.to_owned(), why, again }
}

fn io_reason(e: &std::io::Error) -> String {
    match e.kind() {
        ErrorKind::UnexpectedEof => "the connection was cut".to_owned(),
        ErrorKind::InvalidData => certificate_reason(&e.to_string()),
        _ => e.to_string(),
    }
}

fn certificate_reason(why: &str) -> String {
    match why.contains("certificate") {
        true => format!(
            "{why}; SSL_CERT_FILE names a file of authorities to trust, such as /etc/ssl/certs/ca-certificates.crt"
        ),
        false => why.to_owned(),
    }
}

fn refusal(answer: Answer) -> Failure {
    let text =
        |name: &str| answer.header(name).unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect();
    // `Retry-After: 3`, or the hub's `RateLimit: "api";r=0;t=3`.
    let after = answer.header("retry-after").and_then(|t| t.trim().parse::<f64>().ok());
    let limit =
        || answer.header("ratelimit")?.split(';').find_map(|p| p.trim().strip_prefix("t=")?.parse::<f64>().ok());
    let wait = after.or_else(limit).filter(|t| (0.0..=1e6).contains(t)).map(Duration::from_secs_f64);
    Failure::Status {
        code: answer.status(),
        word: text("x-error-code"),
        said: text("x-error-message"),
        wait,
        host: answer.host,
    }
}

/// `404 Not Found`.
fn status(code: u16) -> String {
    let reason = http::StatusCode::from_u16(code).ok().and_then(|s| s.canonical_reason());
    reason.map_or_else(|| code.to_string(), |reason| format!("{code} {reason}"))
}

impl Failure {
    /// Whether the repository is there and its revision is not.
    pub fn is_missing_revision(&self) -> bool {
        matches!(self, Failure::Status { code: 404, word, .. } if word == "RevisionNotFound")
    }

    /// What it means for somebody who asked for `file` of `repo`, or for what is in it.
    pub fn into_error(self, client: &Client, repo: &Repo, file: Option<&str>) -> Error {
        let name = repo.name();
        let place = file.map_or_else(|| name.clone(), |file| name.join(file));
        let failed = |why: String| Error::io(&place, "download")(std::io::Error::other(why));
        let (code, word, said, host, wait) = match self {
            Failure::Error(e) => return e,
            Failure::Network { host, why, .. } => {
                let here = if file.is_none() { "; no path that is here is called so either" } else { "" };
                return failed(format!("{host}: {why}{here}"));
            }
            Failure::Status { code, word, said, host, wait } => (code, word, said, host, wait),
        };
        let noun = repo.kind.noun();
        let token = client.settings.token.is_some();
        let why = match (code, word.as_str()) {
            (401 | 403, "GatedRepo") => {
                let page = match repo.kind.plural() {
                    "models" => format!("{}/{}", client.endpoint(), repo.id),
                    kind => format!("{}/{kind}/{}", client.endpoint(), repo.id),
                };
                let then = if token { "; the token that is set is not one of an account that did" } else { "" };
                format!("is gated: accept its conditions at {page}, and set HF_TOKEN to a token of that account{then}")
            }
            (401, _) if token && said.starts_with("Invalid credentials") => {
                "the hub does not know the token that is set (HF_TOKEN, or the file that `hf auth login` wrote)"
                    .to_owned()
            }
            (401, _) | (404, "RepoNotFound") => {
                let which =
                    if token { "the token that is set may not read it" } else { "it is private: then set HF_TOKEN" };
                format!(
                    "is no {noun} that {} knows, and no path that is here; check the name, or {which}",
                    client.host()
                )
            }
            (404, "RevisionNotFound") => return no_revision(repo),
            (404, _) if file.is_some() => "is listed, and not there (404): try again later".to_owned(),
            (403, _) => format!("{host} forbids it (403){}", colon(&said)),
            (429, _) => {
                let when = wait.map_or_else(String::new, |w| format!(" for {} s", w.as_secs_f64()));
                return failed(format!("{host} asks to be left alone{when} (429){}; try again later", colon(&said)));
            }
            _ => return failed(format!("{host} answers {}{}", status(code), colon(&said))),
        };
        Error::file(place, why)
    }
}

/// Of a repository that is there.
pub(super) fn no_revision(repo: &Repo) -> Error {
    let (noun, revision) = (repo.kind.noun(), repo.revision());
    Error::file(repo.name(), format!("the {noun} has no revision `{revision}`; name a branch, a tag or a commit of it"))
}

fn colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}
