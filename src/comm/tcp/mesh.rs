//! A connection to every other rank, and what all send and receive over them at once.

use super::frame::{Moved, Odd, Receiving, Room, Sending, farewell_of};
use crate::comm::patience::Wait;
use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
        for (rank, peer) in self.peers.iter().enumerate() {
            let Some(peer) = peer else { continue };
            match farewell_of(peer) {
                Ok(None) => {}
                Ok(Some(culprit)) => return Err(self.ended(rank, culprit, what)),
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
