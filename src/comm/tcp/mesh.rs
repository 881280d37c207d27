//! A connection to every other rank, and what all send and receive over them at once.

use super::frame::{Moved, Odd, Receiving, Room, Sending, farewell_of};
use crate::comm::patience::Wait;
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A connection over which nothing goes is asked so often, so many times, whether the other side is still there: a machine that
/// vanishes is missed after 40 s. Where something was sent and nobody takes it, the system's own patience counts, about 15 minutes.
const ASK_AFTER: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK: u32 = 4;

/// The other side takes and sends no more, whatever of its words was not heard yet.
#[cfg(target_os = "linux")]
const CLOSED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
#[cfg(not(target_os = "linux"))]
const CLOSED: PollFlags = PollFlags::HUP.union(PollFlags::ERR);

/// The connections of a rank.
pub(super) struct Mesh {
    rank: usize,
    /// By rank; none to itself.
    peers: Vec<Option<TcpStream>>,
    /// How many calls there were; held through each.
    calls: Mutex<u64>,
    /// Ranks to which a frame was begun and not ended: nothing else can be said to them.
    midway: Mutex<Vec<usize>>,
    /// Who is at the bottom of it that this rank cannot go on.
    culprit: Mutex<Option<usize>>,
}

impl Mesh {
    /// Over `peers`, by rank; none to `rank` itself.
    pub(super) fn new(rank: usize, peers: Vec<Option<TcpStream>>) -> std::io::Result<Self> {
        for peer in peers.iter().flatten() {
            peer.set_nonblocking(true)?;
            peer.set_nodelay(true)?;
            sockopt::set_socket_keepalive(peer, true)?;
            sockopt::set_tcp_keepidle(peer, ASK_AFTER)?;
            sockopt::set_tcp_keepintvl(peer, ASK_EVERY)?;
            sockopt::set_tcp_keepcnt(peer, ASK)?;
        }
        Ok(Self { rank, peers, calls: Mutex::default(), midway: Mutex::default(), culprit: Mutex::default() })
    }

    /// One call of all ranks: sends `out`, by rank, and fills `into`, by rank; what this rank has for itself stays where it is.
    /// Errors: a rank is lost, or nothing came from it within `patience`, or `over` was set.
    pub(super) fn swap(
        &self,
        (out, into): (&[Option<&[u8]>], &mut [Option<Room<'_>>]),
        patience: Option<Duration>,
        what: &str,
        over: &AtomicBool,
    ) -> Result<()> {
        let mut calls = lock(&self.calls);
        *calls += 1;
        let call = *calls;
        let mut sending = Vec::new();
        for (rank, body) in out.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let Some(body) = body else { continue };
            let frame = Sending::new(call, body);
            let frame = frame.ok_or_else(|| Error::Device(format!("cannot {what}: {} bytes at once", body.len())))?;
            sending.push((rank, frame));
        }
        let awaited = into.iter_mut().enumerate().filter(|(rank, _)| *rank != self.rank);
        let mut receiving: Vec<(usize, Receiving)> =
            awaited.filter_map(|(rank, room)| Some((rank, Receiving::new(call, room.as_mut()?)))).collect();
        let mut wait = Wait::new(what, patience);
        let ended = loop {
            let (mut moved, mut failed) = (false, None);
            let mut go_on = |went: Result<Moved>| match went {
                Ok(Moved::Done) => {
                    moved = true;
                    false
                }
                Ok(Moved::By(n)) => {
                    moved |= n > 0;
                    true
                }
                Err(e) => {
                    failed.get_or_insert(e);
                    true
                }
            };
            // First, as the last words of a rank say more than that nobody reads there.
            receiving.retain_mut(|(rank, frame)| go_on(self.receive(*rank, frame, what)));
            sending.retain_mut(|(rank, frame)| {
                go_on(frame.step(self.peer(*rank)).map_err(|e| self.gone(*rank, what, &e)))
            });
            match failed {
                Some(e) => break Err(e),
                None if sending.is_empty() && receiving.is_empty() => break Ok(()),
                None if over.load(Ordering::Relaxed) => {
                    break Err(Error::Device(format!("cannot {what}: the ranks have parted")));
                }
                None if moved => wait.moved(),
                None => {
                    let late = receiving.iter().map(|(rank, _)| *rank).chain(sending.iter().map(|(rank, _)| *rank));
                    if let Err(e) = wait.on(|| self.late(late)) {
                        break Err(e);
                    }
                }
            }
        };
        *lock(&self.midway) = sending.iter().filter(|(_, frame)| frame.begun()).map(|(rank, _)| *rank).collect();
        ended
    }

    fn peer(&self, rank: usize) -> &TcpStream {
        self.peers[rank].as_ref().expect("there is a connection to every other rank")
    }

    fn receive(&self, rank: usize, frame: &mut Receiving<'_, '_>, what: &str) -> Result<Moved> {
        let why = match frame.step(self.peer(rank)) {
            Ok(Ok(moved)) => return Ok(moved),
            Ok(Err(Odd::Farewell(culprit))) => return Err(self.ended(rank, culprit, what)),
            Ok(Err(Odd::Elsewhere)) => format!("rank {rank} is at something else: do all run the same program?"),
            Ok(Err(Odd::Length(got, want))) => format!("rank {rank} sends {got} bytes in place of {want}"),
            Err(e) => return Err(self.gone(rank, what, &e)),
        };
        Err(Error::Device(format!("cannot {what}: {why}")))
    }

    /// Looks whether a rank has ended.
    pub(super) fn look(&self, what: &str) -> Result<()> {
        let there = || self.peers.iter().enumerate().filter_map(|(rank, peer)| Some((rank, peer.as_ref()?)));
        let mut seen: Vec<PollFd<'_>> = there().map(|(_, peer)| PollFd::new(peer, PollFlags::IN | CLOSED)).collect();
        // Where it is interrupted, the next look sees it.
        let _ = poll(&mut seen, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        for ((rank, peer), seen) in there().zip(seen).filter(|(_, seen)| !seen.revents().is_empty()) {
            match farewell_of(peer) {
                Ok(Some(culprit)) => return Err(self.ended(rank, culprit, what)),
                Ok(None) if seen.revents().intersects(CLOSED) => {
                    return Err(self.gone(rank, what, &ErrorKind::UnexpectedEof.into()));
                }
                Ok(None) => {}
                Err(e) => return Err(self.gone(rank, what, &e)),
            }
        }
        Ok(())
    }

    fn ended(&self, rank: usize, culprit: usize, what: &str) -> Error {
        *lock(&self.culprit) = Some(culprit);
        let why = if culprit == rank { String::new() } else { format!(", as it lost rank {culprit}") };
        Error::Device(format!("cannot {what}: rank {rank} has ended{why}"))
    }

    fn gone(&self, rank: usize, what: &str, e: &std::io::Error) -> Error {
        *lock(&self.culprit) = Some(rank);
        let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&e.kind());
        let why = if closed { "its connection was closed".to_owned() } else { e.to_string() };
        Error::Device(format!("cannot {what}: rank {rank} is lost: {why}"))
    }

    /// Who is waited for, in words.
    fn late(&self, ranks: impl Iterator<Item = usize>) -> String {
        let mut ranks: Vec<usize> = ranks.collect();
        ranks.sort_unstable();
        ranks.dedup();
        *lock(&self.culprit) = ranks.first().copied();
        are(&ranks)
    }

    /// Tells the others, where that can be done at once, that this rank ends before them.
    pub(super) fn part(&self) {
        let culprit = lock(&self.culprit).unwrap_or(self.rank);
        let midway = lock(&self.midway);
        for (_, peer) in self.peers.iter().enumerate().filter(|(rank, _)| !midway.contains(rank)) {
            if let Some(peer) = peer {
                // One that does not read has the connection's end to go by.
                let _ = Sending::farewell(culprit).step(peer);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// "rank 3 is", "ranks 1, 2 are".
pub(super) fn are(ranks: &[usize]) -> String {
    let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    if names.len() == 1 { format!("rank {} is", names[0]) } else { format!("ranks {} are", names.join(", ")) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Three ranks, each over connections of their own.
    pub(in crate::comm::tcp) fn three() -> [Mesh; 3] {
        let mut peers: [[Option<TcpStream>; 3]; 3] = Default::default();
        let door = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            peers[a][b] = Some(TcpStream::connect(door.local_addr().unwrap()).unwrap());
            peers[b][a] = Some(door.accept().unwrap().0);
        }
        let mut rank = 0;
        peers.map(|peers| {
            rank += 1;
            Mesh::new(rank - 1, peers.into()).unwrap()
        })
    }

    /// Rank `rank` comes to where all meet, and waits in vain.
    fn waits(mesh: &Mesh, patience: u64) -> Error {
        let mut into: Vec<_> = (0..3).map(|_| Some(Room::Of(&mut []))).collect();
        let parts = (&[Some(&[][..]); 3][..], &mut into[..]);
        mesh.swap(parts, Some(Duration::from_millis(patience)), "meet", &AtomicBool::new(false)).unwrap_err()
    }

    /// Says what a look comes to, as soon as it sees something.
    fn seen(mesh: &Mesh) -> String {
        for _ in 0..1000 {
            if let Err(e) = mesh.look("go on") {
                return e.to_string();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        "nothing".into()
    }

    /// One that looks now and then hears of a rank that ends while it waits for it.
    #[test]
    fn a_look_sees_who_ended_behind_what_it_said_before() {
        let [mine, other, last] = three();
        assert!(mine.look("go on").is_ok());
        waits(&other, 20);
        assert!(mine.look("go on").is_ok(), "it waits, and has not ended");
        *lock(&other.culprit) = None;
        other.part();
        assert!(seen(&mine).contains("cannot go on: rank 1 has ended"), "{}", seen(&mine));
        // One that is killed says nothing.
        let [mine, other, third] = three();
        waits(&other, 20);
        drop(other);
        assert!(seen(&mine).contains("cannot go on: rank 1 is lost: its connection was closed"), "{}", seen(&mine));
        assert!(seen(&third).contains("rank 1 is lost"));
        // And what one says that lost it.
        third.part();
        assert!(waits(&mine, 1000).to_string().contains("rank 1"));
        let [mine, other, third] = three();
        *lock(&third.culprit) = Some(1);
        third.part();
        assert!(seen(&mine).contains("cannot go on: rank 2 has ended, as it lost rank 1"), "{}", seen(&mine));
        drop((mine, other, third, last));
    }

    /// A machine that vanishes without a word is asked after, by both sides, and missed after 40 s.
    #[test]
    fn the_system_asks_whether_the_other_side_is_there() {
        let all = three();
        let peers: Vec<&TcpStream> = all.iter().flat_map(|mesh| mesh.peers.iter().flatten()).collect();
        assert_eq!(peers.len(), 6);
        for peer in peers {
            assert!(sockopt::socket_keepalive(peer).unwrap());
            let [idle, every] = [sockopt::tcp_keepidle(peer).unwrap(), sockopt::tcp_keepintvl(peer).unwrap()];
            assert_eq!(idle + every * sockopt::tcp_keepcnt(peer).unwrap(), Duration::from_secs(40));
        }
    }

    #[test]
    fn who_keeps_silent_is_named() {
        let [mine, other, last] = three();
        waits(&last, 20);
        let e = waits(&mine, 300).to_string();
        assert!(e.contains("s to meet: rank 1 is lost or stuck"), "{e}");
        drop((other, last));
    }
}
