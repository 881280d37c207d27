//! How ranks find each other: all come to rank 0's machine, hear there where the others are, and connect to each.

use super::door::{Answer, Door, Greeting, Guest, HELLO, greet, has_left, own_version};
use super::mesh::are;
use crate::comm::launch::{Launcher, Place};
use crate::comm::patience::{JOINING, TIMEOUT};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Names the machine of rank 0, and a port there that is free: `HOST:PORT`.
pub const ADDRESS: &str = "FUSEDPO_COMM_ADDRESS";

/// Ports after the launcher's own that are tried: another job may have the first ones.
const PORTS: u16 = 16;

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(50);

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
        let mut door = self.open()?;
        let mut met: Vec<Option<TcpStream>> = (0..place.size).map(|_| None).collect();
        let mut who: Vec<Option<Greeting>> = vec![None; place.size];
        while met[1..].iter().any(Option::is_none) {
            let (guest, greeting) = match door.guest().map_err(lost("the other ranks"))? {
                Some(Guest::Rank(guest, greeting)) => (guest, greeting),
                Some(Guest::Another(greeting)) => {
                    return Err(versions(&greeting.version, greeting.rank, &own_version()));
                }
                None => {
                    until.check(|| format!("hear from all ranks at {}: {} missing", self.line(), missing(&met, 1)))?;
                    sleep(AGAIN / 10);
                    continue;
                }
            };
            let Greeting { rank, size, process, .. } = greeting;
            // One that was started again comes in place of the one before.
            let stands = |before: &Greeting| before.process != process && !met[rank].as_ref().is_none_or(has_left);
            if size != place.size || rank == 0 || rank >= size || who[rank].as_ref().is_some_and(stands) {
                return Err(Error::usage(format!(
                    "a process came to {} as rank {rank} of {size}, and this one is rank 0 of {}: is another job at the same \
                     address? {ADDRESS} names one of its own",
                    self.line(),
                    place.size
                )));
            }
            (met[rank], who[rank]) = (Some(guest), Some(greeting));
        }
        met.iter().flatten().try_for_each(|guest| guest.set_nonblocking(false)).map_err(lost("the other ranks"))?;
        let ports: Vec<u16> = who.iter().map(|who| who.as_ref().map_or(0, |who| who.port)).collect();
        for rank in 1..place.size {
            let list = directory(&met, &ports, rank).map_err(lost(&format!("rank {rank}")))?;
            let guest = met[rank].as_mut().expect("all came");
            guest.write_all(&list).map_err(lost(&format!("rank {rank}")))?;
        }
        Ok(met)
    }

    fn open(&self) -> Result<Door> {
        // As the others will reach it: by which kind of address.
        let v4 = self.resolve().map_or(true, |all| all.iter().any(SocketAddr::is_ipv4));
        let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut why = None;
        for port in self.ports.clone() {
            match Door::open(any, port, self.job) {
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

    /// Another rank: goes to rank 0, hears where the others are, and connects to those before it; those after it come.
    fn come(&self, place: &Place, until: Deadline) -> Result<Vec<Option<TcpStream>>> {
        let (mut first, mut own, who) = self.to_first(place, until)?;
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
            met[rank] = Some(self.reach((rank, address(entry)), &who, until)?);
        }
        while met[place.rank + 1..].iter().any(Option::is_none) {
            match own.guest().map_err(lost("the other ranks"))? {
                Some(Guest::Rank(guest, of)) if of.rank > place.rank && of.rank < place.size => {
                    met[of.rank] = Some(guest);
                }
                Some(_) => {}
                None => {
                    until.check(|| format!("be reached by all ranks: {} missing", missing(&met, place.rank + 1)))?;
                    sleep(AGAIN / 10);
                }
            }
        }
        Ok(met)
    }

    /// A connection to rank 0, the door at which this rank is reached, and what it says of itself.
    fn to_first(&self, place: &Place, until: Deadline) -> Result<(TcpStream, Door, Greeting)> {
        let mut why = "nobody of this job answers".to_owned();
        loop {
            let all = self.resolve().unwrap_or_else(|e| {
                why = e.to_string();
                Vec::new()
            });
            for port in self.ports.clone() {
                for at in &all {
                    match self.knock(place, SocketAddr::new(at.ip(), port)) {
                        Ok((to, door, who, Answer::Welcome)) => return Ok((to, door, who)),
                        Ok((.., Answer::Another(first))) => return Err(versions(&own_version(), place.rank, &first)),
                        Ok((.., Answer::Stranger)) => {}
                        Err(e) => why = e.to_string(),
                    }
                }
            }
            until.check(|| format!("reach rank 0 at {} ({why}): it is lost or stuck", self.line()))?;
            sleep(AGAIN);
        }
    }

    /// [`Meeting::to_first`] at `at`, and what is said there.
    fn knock(&self, place: &Place, at: SocketAddr) -> std::io::Result<(TcpStream, Door, Greeting, Answer)> {
        let mut to = TcpStream::connect_timeout(&at, HELLO)?;
        // At a port that the system deals out, where nobody listens yet, a connection can come to itself.
        if to.local_addr()? == at {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let any: IpAddr = match at {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let door = Door::open(any, 0, self.job)?;
        let who = Greeting::of(place, door.at()?.port());
        let answer = greet(&mut to, &self.job, &who)?;
        Ok((to, door, who, answer))
    }

    fn reach(&self, (rank, at): (usize, SocketAddr), who: &Greeting, until: Deadline) -> Result<TcpStream> {
        loop {
            let why = match TcpStream::connect_timeout(&at, until.left()) {
                Ok(mut to) => match greet(&mut to, &self.job, who) {
                    Ok(Answer::Welcome) => return Ok(to),
                    _ => "it does not answer".to_owned(),
                },
                Err(e) => e.to_string(),
            };
            until.check(|| format!("reach rank {rank} at {at} ({why}): it is lost or stuck"))?;
            sleep(AGAIN);
        }
    }
}

/// Rank `rank` runs `its` version of the program, and rank 0 `first`.
fn versions(its: &str, rank: usize, first: &str) -> Error {
    Error::usage(format!(
        "rank {rank} has another version of the program than rank 0: `{its}`, and rank 0 `{first}`; all ranks must run the same"
    ))
}

/// Which ranks from `first` on have not come, in words.
fn missing(met: &[Option<TcpStream>], first: usize) -> String {
    are(&(first..met.len()).filter(|rank| met[*rank].is_none()).collect::<Vec<_>>())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;
    use std::thread::{JoinHandle, spawn};

    type Met = Result<Vec<Option<TcpStream>>>;

    fn place(rank: usize, size: usize) -> Place {
        Place { launcher: Launcher::Torchrun, rank, size, local_rank: rank, local_size: None }
    }

    /// A meeting of a job that nobody else is of, and its rank 0.
    fn begun(size: usize) -> (Meeting, JoinHandle<Met>) {
        // Below those that the system deals out: no connection of another test takes it meanwhile.
        let drawn = || 12_000 + (std::collections::hash_map::RandomState::new().hash_one(0u8) % 16_000) as u16;
        let free = (0..200).find_map(|_| std::net::TcpListener::bind(("127.0.0.1", drawn())).ok()).expect("a port");
        let port = free.local_addr().unwrap().port();
        // Before rank 0 wants it.
        drop(free);
        let meeting = Meeting { host: "127.0.0.1".into(), ports: port..=port, job: *b"this job" };
        let first = meeting.clone();
        (meeting, spawn(move || first.meet(&place(0, size), Duration::from_secs(20))))
    }

    /// A connection to rank 0, once it listens.
    fn knocked(meeting: &Meeting) -> TcpStream {
        let comes = |_| {
            sleep(Duration::from_millis(1));
            TcpStream::connect(("127.0.0.1", *meeting.ports.start())).ok()
        };
        (0..20_000).find_map(comes).expect("rank 0 listens within its 20 s")
    }

    /// Rank 1 comes, is lost, and comes again as another process; rank 2 comes late.
    #[test]
    fn a_rank_that_is_started_again_comes_in_place_of_the_one_before() {
        let (meeting, first) = begun(3);
        let mut lost = knocked(&meeting);
        let who = Greeting::of(&place(1, 3), 9);
        assert!(matches!(greet(&mut lost, &meeting.job, &who), Ok(Answer::Welcome)));
        drop(lost);
        let comes = |rank: usize| {
            let meeting = meeting.clone();
            spawn(move || meeting.meet(&place(rank, 3), Duration::from_secs(20)))
        };
        let again = comes(1);
        sleep(Duration::from_millis(300));
        let last = comes(2);
        let mut all = [first, again, last].map(|rank| rank.join().unwrap().unwrap());
        // What rank 0 says to rank 1 arrives.
        all[0][1].as_mut().unwrap().write_all(b"word").unwrap();
        let mut heard = [0; 4];
        all[1][0].as_mut().unwrap().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"word");
    }

    #[test]
    fn two_jobs_at_an_address_and_two_versions_are_refused() {
        let (meeting, first) = begun(3);
        let mut mine = knocked(&meeting);
        assert!(matches!(greet(&mut mine, &meeting.job, &Greeting::of(&place(1, 3), 9)), Ok(Answer::Welcome)));
        let mut other = knocked(&meeting);
        let _ = greet(&mut other, &meeting.job, &Greeting::of(&place(1, 3), 9));
        let e = first.join().unwrap().unwrap_err();
        assert!(
            e.to_string().contains("as rank 1 of 3, and this one is rank 0 of 3: is another job") && e.exit_code() == 2,
            "{e}"
        );
        let (meeting, first) = begun(3);
        let mut to = knocked(&meeting);
        let of = Greeting { version: "9.8.7".into(), ..Greeting::of(&place(2, 3), 9) };
        assert!(matches!(greet(&mut to, &meeting.job, &of), Ok(Answer::Another(own)) if own == own_version()));
        let e = first.join().unwrap().unwrap_err();
        let said = "rank 2 has another version of the program than rank 0: `9.8.7`, and rank 0 `";
        assert!(e.to_string().starts_with(said) && e.exit_code() == 2, "{e}");
    }
}
