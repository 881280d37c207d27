//! How ranks find each other: all come to rank 0's machine, hear there where the others are, and connect to each.

use super::mesh::are;
use crate::comm::launch::{Launcher, Place};
use crate::comm::patience::{JOINING, TIMEOUT};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Names the machine of rank 0, and a port there that is free: `HOST:PORT`.
pub const ADDRESS: &str = "FUSEDPO_COMM_ADDRESS";

/// Ports after the launcher's own that are tried: another job may have the first ones.
const PORTS: u16 = 16;

/// What a stranger may take of the time to say who it is.
const HELLO: Duration = Duration::from_secs(5);

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(50);

/// What a connection begins with: a mark, the job, who it is, of how many, and the port where others reach it.
const GREETING: usize = 32;
const MARK: &[u8; 8] = b"fusedpo\x01";
/// What the other side says to that.
const WELCOME: u8 = 0xa5;

/// A place in the list that rank 0 hands out: an address and a port.
const ENTRY: usize = 18;

/// Where the ranks of a job meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    host: String,
    ports: RangeInclusive<u16>,
    /// Tells this job from another that meets beside it.
    job: [u8; 8],
}

/// Until when a rank waits to be joined.
#[derive(Clone, Copy)]
struct Deadline {
    begun: Instant,
    patience: Duration,
}

impl Deadline {
    fn new(patience: Duration) -> Self {
        Self { begun: Instant::now(), patience: patience.min(JOINING) }
    }
    /// More than nothing.
    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.begun.elapsed()).max(AGAIN)
    }
    fn late(&self, what: &str) -> Error {
        let waited = self.begun.elapsed().as_secs_f64();
        let most = JOINING.as_secs();
        Error::Device(format!(
            "waited {waited:.0} s to {what} ({TIMEOUT} is how long ranks are waited for, {most} s at most here)"
        ))
    }
    /// Errors: it is over.
    fn check(&self, what: impl FnOnce() -> String) -> Result<()> {
        if self.begun.elapsed() < self.patience { Ok(()) } else { Err(self.late(&what())) }
    }
}

struct Greeting {
    rank: usize,
    size: usize,
    port: u16,
}

impl Meeting {
    /// Where the environment says: at [`ADDRESS`]; by torchrun, at the ports after its own. `None` where it says nothing.
    ///
    /// Errors: [`Error::Usage`] for what is no address.
    pub fn of(place: &Place, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let port = |name: &str, text: &str| {
            let wrong = || Error::usage(format!("{name}={text} in the environment: not a port, 1 to 65535"));
            text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)
        };
        // Of two jobs on a machine, or one that torchrun starts again, where they meet differs at least. How often an agent has started
        // its processes is its own count.
        let known = [ADDRESS, "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE"];
        let job = |host: &str| {
            let known = known.map(|name| env(name).unwrap_or_default());
            let hash = Sha256::digest(format!("{host} {} {}", place.size, known.join(" ")));
            hash[..8].try_into().expect("a hash is longer")
        };
        if let Some(at) = env(ADDRESS) {
            let wrong =
                || Error::usage(format!("{ADDRESS}={at} in the environment: give HOST:PORT of rank 0's machine"));
            let (host, text) = at.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or_else(wrong)?;
            let (host, port) = (host.trim_start_matches('[').trim_end_matches(']'), port(ADDRESS, text)?);
            return Ok(Some(Self { job: job(host), host: host.to_owned(), ports: port..=port }));
        }
        if place.launcher != Launcher::Torchrun {
            return Ok(None);
        }
        let of = |name: &str| {
            let why = "is not in the environment, and torchrun sets it: start the program by it";
            env(name).ok_or_else(|| Error::usage(format!("{name} {why}, or name rank 0's machine in {ADDRESS}")))
        };
        let (host, own) = (of("MASTER_ADDR")?, of("MASTER_PORT")?);
        let own = port("MASTER_PORT", &own)?;
        // The last ones there are, where there are no more.
        let first = own.saturating_add(1).min(u16::MAX - PORTS);
        Ok(Some(Self { job: job(&host), host, ports: first..=first + PORTS - 1 }))
    }

    /// In words.
    fn line(&self) -> String {
        let (first, last) = (self.ports.start(), self.ports.end());
        let ports = if first == last { format!("port {first}") } else { format!("ports {first} to {last}") };
        format!("{}, {ports}", self.host)
    }

    /// A connection to every rank but `place`'s own, by rank.
    pub(super) fn meet(&self, place: &Place, patience: Duration) -> Result<Vec<Option<TcpStream>>> {
        let until = Deadline::new(patience);
        let met = if place.rank == 0 { self.receive(place, until)? } else { self.come(place, until)? };
        let back = |peer: &TcpStream| {
            peer.set_nonblocking(false)?;
            peer.set_read_timeout(None)?;
            peer.set_write_timeout(None)
        };
        met.iter().flatten().try_for_each(back).map_err(lost("the other ranks"))?;
        Ok(met)
    }

    /// Rank 0: waits for all, and tells each where the others are.
    fn receive(&self, place: &Place, until: Deadline) -> Result<Vec<Option<TcpStream>>> {
        let door = self.open()?;
        let mut met: Vec<Option<TcpStream>> = (0..place.size).map(|_| None).collect();
        let mut ports = vec![0u16; place.size];
        while met[1..].iter().any(Option::is_none) {
            let Some((guest, greeting)) = self.guest(&door).map_err(lost("the other ranks"))? else {
                until.check(|| format!("hear from all ranks at {}: {} missing", self.line(), missing(&met, 1)))?;
                sleep(AGAIN / 10);
                continue;
            };
            let Greeting { rank, size, port } = greeting;
            if size != place.size || rank == 0 || rank >= size || met[rank].is_some() {
                return Err(Error::usage(format!(
                    "a process came to {} as rank {rank} of {size}, and this one is rank 0 of {}: is another job at the same \
                     address? {ADDRESS} names one of its own",
                    self.line(),
                    place.size
                )));
            }
            (met[rank], ports[rank]) = (Some(guest), port);
        }
        for rank in 1..place.size {
            let list = directory(&met, &ports, rank).map_err(lost(&format!("rank {rank}")))?;
            let guest = met[rank].as_mut().expect("all came");
            guest.write_all(&list).map_err(lost(&format!("rank {rank}")))?;
        }
        Ok(met)
    }

    fn open(&self) -> Result<TcpListener> {
        // As the others will reach it: by which kind of address.
        let v4 = self.resolve().map_or(true, |all| all.iter().any(SocketAddr::is_ipv4));
        let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut why = None;
        for port in self.ports.clone() {
            match TcpListener::bind((any, port)).and_then(|door| door.set_nonblocking(true).map(|()| door)) {
                Ok(door) => return Ok(door),
                Err(e) => why = Some(e),
            }
        }
        let why = why.map_or_else(String::new, |e| e.to_string());
        Err(Error::usage(format!(
            "the ranks were to meet at {}, and rank 0 cannot listen there ({why}): name another in {ADDRESS}",
            self.line()
        )))
    }

    fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok((self.host.as_str(), *self.ports.start()).to_socket_addrs()?.collect())
    }

    /// Who stands before the door, of this job.
    fn guest(&self, door: &TcpListener) -> std::io::Result<Option<(TcpStream, Greeting)>> {
        let Some(mut guest) = accepted(door)? else { return Ok(None) };
        Ok(self.hear(&mut guest).map(|greeting| (guest, greeting)))
    }

    /// Who that is; nothing for a stranger, and for whoever did not stay.
    fn hear(&self, guest: &mut TcpStream) -> Option<Greeting> {
        let mut said = [0; GREETING];
        guest.set_nonblocking(false).ok()?;
        guest.set_read_timeout(Some(HELLO)).ok()?;
        guest.read_exact(&mut said).ok()?;
        let word = |at: usize| u32::from_le_bytes(said[at..at + 4].try_into().expect("four bytes"));
        if said[..8] != MARK[..] || said[8..16] != self.job[..] {
            return None;
        }
        guest.write_all(&[WELCOME]).ok()?;
        Some(Greeting { rank: word(16) as usize, size: word(20) as usize, port: word(24) as u16 })
    }

    /// Says who this is; whether the other side is of this job.
    fn greet(&self, to: &mut TcpStream, place: &Place, port: u16) -> std::io::Result<bool> {
        let mut said = [0; GREETING];
        said[..8].copy_from_slice(MARK);
        said[8..16].copy_from_slice(&self.job);
        for (at, word) in [(16, place.rank as u32), (20, place.size as u32), (24, u32::from(port))] {
            said[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        to.set_read_timeout(Some(HELLO * 3))?;
        to.write_all(&said)?;
        let mut answer = [0];
        to.read_exact(&mut answer)?;
        Ok(answer[0] == WELCOME)
    }

    /// Another rank: goes to rank 0, hears where the others are, and connects to those before it; those after it come.
    fn come(&self, place: &Place, until: Deadline) -> Result<Vec<Option<TcpStream>>> {
        let (mut first, own) = self.to_first(place, until)?;
        let mut list = vec![0; place.size * ENTRY];
        let all = first.set_read_timeout(Some(until.left())).and_then(|()| first.read_exact(&mut list));
        all.map_err(|e| match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                until.late("hear from rank 0 that all have come: one is missing")
            }
            ErrorKind::UnexpectedEof => Error::Device("cannot join the other ranks: rank 0 has ended".into()),
            _ => lost("rank 0")(e),
        })?;
        let mut met: Vec<Option<TcpStream>> = (0..place.size).map(|_| None).collect();
        met[0] = Some(first);
        for (rank, entry) in list.chunks_exact(ENTRY).enumerate().take(place.rank).skip(1) {
            met[rank] = Some(self.reach(place, rank, address(entry), until)?);
        }
        own.set_nonblocking(true).map_err(lost("the other ranks"))?;
        while met[place.rank + 1..].iter().any(Option::is_none) {
            match self.guest(&own).map_err(lost("the other ranks"))? {
                Some((guest, of)) if of.rank > place.rank && of.rank < place.size => met[of.rank] = Some(guest),
                Some(_) => {}
                None => {
                    until.check(|| format!("be reached by all ranks: {} missing", missing(&met, place.rank + 1)))?;
                    sleep(AGAIN / 10);
                }
            }
        }
        Ok(met)
    }

    /// A connection to rank 0, and the door at which this rank is reached.
    fn to_first(&self, place: &Place, until: Deadline) -> Result<(TcpStream, TcpListener)> {
        let mut why = "nobody of this job answers".to_owned();
        loop {
            let all = self.resolve().unwrap_or_else(|e| {
                why = e.to_string();
                Vec::new()
            });
            for port in self.ports.clone() {
                for at in &all {
                    match self.knock(place, SocketAddr::new(at.ip(), port)) {
                        Ok(Some(both)) => return Ok(both),
                        Ok(None) => {}
                        Err(e) => why = e.to_string(),
                    }
                }
            }
            until.check(|| format!("reach rank 0 at {} ({why}): it is lost or stuck", self.line()))?;
            sleep(AGAIN);
        }
    }

    /// [`Meeting::to_first`] at `at`; nothing where a stranger is there.
    fn knock(&self, place: &Place, at: SocketAddr) -> std::io::Result<Option<(TcpStream, TcpListener)>> {
        let mut to = TcpStream::connect_timeout(&at, HELLO)?;
        let any: IpAddr = match at {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let own = TcpListener::bind((any, 0))?;
        let port = own.local_addr()?.port();
        Ok(self.greet(&mut to, place, port)?.then_some((to, own)))
    }

    fn reach(&self, place: &Place, rank: usize, at: SocketAddr, until: Deadline) -> Result<TcpStream> {
        loop {
            let why = match TcpStream::connect_timeout(&at, until.left()) {
                Ok(mut to) => match self.greet(&mut to, place, 0) {
                    Ok(true) => return Ok(to),
                    _ => "it does not answer".to_owned(),
                },
                Err(e) => e.to_string(),
            };
            until.check(|| format!("reach rank {rank} at {at} ({why}): it is lost or stuck"))?;
            sleep(AGAIN);
        }
    }
}

/// Which ranks from `first` on have not come, in words.
fn missing(met: &[Option<TcpStream>], first: usize) -> String {
    are(&(first..met.len()).filter(|rank| met[*rank].is_none()).collect::<Vec<_>>())
}

fn accepted(door: &TcpListener) -> std::io::Result<Option<TcpStream>> {
    match door.accept() {
        Ok((guest, _)) => Ok(Some(guest)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        // Whoever it was is gone again.
        Err(e) if e.kind() == ErrorKind::ConnectionAborted || e.kind() == ErrorKind::Interrupted => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where rank `to` finds the others, as far as rank 0 sees them. Those on rank 0's own machine are where `to` reached that.
fn directory(met: &[Option<TcpStream>], ports: &[u16], to: usize) -> std::io::Result<Vec<u8>> {
    let mut list = Vec::with_capacity(met.len() * ENTRY);
    let here = met[to].as_ref().map(TcpStream::local_addr).transpose()?;
    for (met, port) in met.iter().zip(ports) {
        let seen = met.as_ref().map(TcpStream::peer_addr).transpose()?.map(|at| at.ip().to_canonical());
        let ip = match seen {
            Some(ip) if ip.is_loopback() => here.map(|at| at.ip()),
            ip => ip,
        };
        let ip = match ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        list.extend(ip.octets());
        list.extend(port.to_le_bytes());
    }
    Ok(list)
}

fn address(entry: &[u8]) -> SocketAddr {
    let (ip, port) = entry.split_at(16);
    let ip: [u8; 16] = ip.try_into().expect("an address has 16 bytes");
    SocketAddr::new(IpAddr::from(ip).to_canonical(), u16::from_le_bytes([port[0], port[1]]))
}

fn lost(who: &str) -> impl Fn(std::io::Error) -> Error {
    let who = who.to_owned();
    move |e| Error::Device(format!("cannot join {who}: {e}"))
}
