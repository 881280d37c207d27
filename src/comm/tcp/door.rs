//! Who stands before a rank's door: how ranks greet each other, and how strangers hold nobody up.
//!
//! A guest says who it is, is welcomed, and answers to that: only then is it taken for one that has come. A guest that gave up
//! meanwhile and came again is not taken twice.

use crate::comm::launch::Place;
use std::hash::BuildHasher;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What a connection begins with: a mark, the job, who it is, of how many, the port where others reach it, the process, and the
/// version of the program.
const GREETING: usize = 64;
const MARK: &[u8; 8] = b"fusedpo\x02";
/// What the other side says to that.
const WELCOME: u8 = 0xa5;
/// Or, where it is of another version, before its own.
const ANOTHER: u8 = 0x5a;
/// What the guest says to a welcome.
const HERE: u8 = 0x3c;
/// Bytes of a version.
const VERSION: usize = 24;

/// What a stranger may take of the time to say who it is.
pub(super) const HELLO: Duration = Duration::from_secs(5);

/// Guests that are heard at the same time. A rank speaks as it comes: of more, those that have been silent longest go.
const AT_ONCE: usize = 128;

/// A rank of the job, by its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) port: u16,
    /// Tells it from another process that says the same.
    pub(super) process: [u8; 8],
    pub(super) version: String,
}

impl Greeting {
    /// That of `place`, which is reached at `port`.
    pub(super) fn of(place: &Place, port: u16) -> Self {
        let process = std::collections::hash_map::RandomState::new().hash_one(std::process::id()).to_le_bytes();
        Self { rank: place.rank, size: place.size, port, process, version: own_version() }
    }

    fn bytes(&self, job: &[u8; 8]) -> [u8; GREETING] {
        let mut said = [0; GREETING];
        said[..8].copy_from_slice(MARK);
        said[8..16].copy_from_slice(job);
        for (at, word) in [(16, self.rank as u32), (20, self.size as u32), (24, u32::from(self.port))] {
            said[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        said[32..40].copy_from_slice(&self.process);
        said[40..].copy_from_slice(&padded(&self.version));
        said
    }

    /// `None`: a stranger's.
    fn read(said: &[u8; GREETING], job: &[u8; 8]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(said[at..at + 4].try_into().expect("four bytes"));
        let process = said[32..40].try_into().expect("eight bytes");
        let (rank, size, port) = (word(16) as usize, word(20) as usize, word(24) as u16);
        let ours = said[..8] == MARK[..] && said[8..16] == job[..];
        ours.then(|| Self { rank, size, port, process, version: text(&said[40..]) })
    }
}

/// What a guest hears.
pub(super) enum Answer {
    Welcome,
    /// The other side is not of this job.
    Stranger,
    /// The other side is of another version of the program.
    Another(String),
}

/// Says who this is at `to`.
pub(super) fn greet(to: &mut TcpStream, job: &[u8; 8], who: &Greeting) -> Result<Answer> {
    to.set_read_timeout(Some(HELLO * 3))?;
    to.write_all(&who.bytes(job))?;
    let mut answer = [0];
    to.read_exact(&mut answer)?;
    match answer[0] {
        WELCOME => to.write_all(&[HERE]).map(|()| Answer::Welcome),
        ANOTHER => {
            let mut version = [0; VERSION];
            to.read_exact(&mut version)?;
            Ok(Answer::Another(text(&version)))
        }
        _ => Ok(Answer::Stranger),
    }
}

/// Who comes in.
pub(super) enum Guest {
    /// A rank of this job, and its connection.
    Rank(TcpStream, Greeting),
    /// One whose program is of another version, which it has been told.
    Another(Greeting),
}

/// Where a rank is reached.
pub(super) struct Door {
    listener: TcpListener,
    job: [u8; 8],
    /// In the order in which they came.
    before: Vec<Knock>,
}

/// A guest that was not taken for anything yet.
struct Knock {
    from: TcpStream,
    since: Instant,
    said: [u8; GREETING + 1],
    heard: usize,
}

impl Door {
    pub(super) fn open(at: IpAddr, port: u16, job: [u8; 8]) -> Result<Self> {
        let listener = TcpListener::bind((at, port))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, job, before: Vec::new() })
    }

    pub(super) fn at(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next rank that has come; waits for nothing. Errors: the system takes no more connections.
    pub(super) fn guest(&mut self) -> Result<Option<Guest>> {
        while let Some(from) = accepted(&self.listener)? {
            if from.set_nonblocking(true).is_err() {
                continue;
            }
            if self.before.len() == AT_ONCE {
                self.before.remove(0);
            }
            self.before.push(Knock { from, since: Instant::now(), said: [0; GREETING + 1], heard: 0 });
        }
        let mut at = 0;
        while at < self.before.len() {
            match self.before[at].hear(&self.job) {
                Heard::On => at += 1,
                Heard::Gone => drop(self.before.remove(at)),
                Heard::Another(greeting) => {
                    self.before.remove(at);
                    return Ok(Some(Guest::Another(greeting)));
                }
                Heard::Rank(greeting) => return Ok(Some(Guest::Rank(self.before.remove(at).from, greeting))),
            }
        }
        Ok(None)
    }
}

/// What became of a guest.
enum Heard {
    On,
    Gone,
    Another(Greeting),
    Rank(Greeting),
}

impl Knock {
    /// Takes what it has said since.
    fn hear(&mut self, job: &[u8; 8]) -> Heard {
        loop {
            // A rank says no more before it is welcomed.
            let most = if self.heard < GREETING { GREETING } else { GREETING + 1 };
            match self.from.read(&mut self.said[self.heard..most]) {
                Ok(n) if n > 0 => self.heard += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.since.elapsed() < HELLO => return Heard::On,
                _ => return Heard::Gone,
            }
            if self.heard < GREETING {
                continue;
            }
            let said = self.said.first_chunk().expect("it is longer");
            let Some(greeting) = Greeting::read(said, job) else { return Heard::Gone };
            if self.heard > GREETING {
                return if self.said[GREETING] == HERE { Heard::Rank(greeting) } else { Heard::Gone };
            }
            // So few bytes find room, as they are the first.
            if greeting.version != own_version() {
                let own = padded(&own_version());
                let _ = self.from.write_all(&[&[ANOTHER], &own[..]].concat());
                return Heard::Another(greeting);
            }
            if self.from.write_all(&[WELCOME]).is_err() {
                return Heard::Gone;
            }
            self.since = Instant::now();
        }
    }
}

/// Whether the other side has ended, as far as can be seen at once.
pub(super) fn has_left(guest: &TcpStream) -> bool {
    let looked = guest.set_nonblocking(true).and_then(|()| guest.peek(&mut [0]));
    match looked {
        Ok(n) => n == 0,
        Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

fn accepted(door: &TcpListener) -> Result<Option<TcpStream>> {
    match door.accept() {
        Ok((guest, _)) => Ok(Some(guest)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        // Whoever it was is gone again.
        Err(e) if e.kind() == ErrorKind::ConnectionAborted || e.kind() == ErrorKind::Interrupted => Ok(None),
        Err(e) => Err(e),
    }
}

/// The version of this program, as long as it is told.
pub(super) fn own_version() -> String {
    text(&padded(env!("CARGO_PKG_VERSION")))
}

fn padded(version: &str) -> [u8; VERSION] {
    let mut bytes = [0; VERSION];
    let n = version.len().min(VERSION);
    bytes[..n].copy_from_slice(&version.as_bytes()[..n]);
    bytes
}

/// What was [`padded`]; whatever else comes is shown as what it is.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::launch::Launcher;
    use std::net::Ipv4Addr;

    const JOB: [u8; 8] = *b"this job";

    fn rank(rank: usize) -> Greeting {
        Greeting::of(&Place { launcher: Launcher::Torchrun, rank, size: 4, local_rank: rank, local_size: None }, 77)
    }

    fn door() -> (Door, SocketAddr) {
        let door = Door::open(Ipv4Addr::LOCALHOST.into(), 0, JOB).unwrap();
        let at = door.at().unwrap();
        (door, at)
    }

    /// Who comes within a second.
    fn next(door: &mut Door) -> Option<Guest> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            if let Some(guest) = door.guest().unwrap() {
                return Some(guest);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    fn comes(at: SocketAddr, who: Greeting) -> std::thread::JoinHandle<Result<(TcpStream, Answer)>> {
        std::thread::spawn(move || {
            let mut to = TcpStream::connect(at)?;
            greet(&mut to, &JOB, &who).map(|answer| (to, answer))
        })
    }

    /// More than are heard at once say nothing, one says its part of a greeting byte by byte, one is of another job.
    #[test]
    fn strangers_hold_nobody_up() {
        let (mut door, at) = door();
        let silent: Vec<TcpStream> = (0..AT_ONCE + 9)
            .map(|_| {
                let to = TcpStream::connect(at).unwrap();
                assert!(door.guest().unwrap().is_none());
                to
            })
            .collect();
        let mut slow = TcpStream::connect(at).unwrap();
        slow.write_all(&rank(1).bytes(&JOB)[..20]).unwrap();
        let mut other = TcpStream::connect(at).unwrap();
        other.write_all(&rank(1).bytes(b"that job")).unwrap();
        let who = rank(2);
        let guest = comes(at, who.clone());
        let begun = Instant::now();
        let Some(Guest::Rank(_, heard)) = next(&mut door) else { panic!("rank 2 is not heard") };
        assert!(heard == who && begun.elapsed() < Duration::from_secs(1));
        assert!(matches!(guest.join().unwrap(), Ok((_, Answer::Welcome))));
        assert!(door.before.len() <= AT_ONCE && next(&mut door).is_none());
        // The stranger has been shown out, the slow one goes on.
        assert!(has_left(&other) && !has_left(&slow));
        drop(silent);
    }

    #[test]
    fn who_leaves_before_it_answers_has_not_come() {
        let (mut door, at) = door();
        let mut to = TcpStream::connect(at).unwrap();
        to.write_all(&rank(1).bytes(&JOB)).unwrap();
        assert!(next(&mut door).is_none());
        to.read_exact(&mut [0]).unwrap();
        drop(to);
        assert!(next(&mut door).is_none() && door.before.is_empty());
        // Nor has one that gave up before it was heard.
        let mut to = TcpStream::connect(at).unwrap();
        to.write_all(&rank(1).bytes(&JOB)).unwrap();
        drop(to);
        assert!(next(&mut door).is_none() && door.before.is_empty());
    }

    #[test]
    fn another_version_is_told() {
        let (mut door, at) = door();
        let guest = comes(at, Greeting { version: "0.0.1-b\u{1b}".into(), ..rank(3) });
        let Some(Guest::Another(heard)) = next(&mut door) else { panic!("it is not heard") };
        assert_eq!((heard.rank, heard.version.as_str()), (3, "0.0.1-b\\x1b"));
        let Ok((_, Answer::Another(version))) = guest.join().unwrap() else { panic!("it is not told") };
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
}
