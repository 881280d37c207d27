//! What goes over a connection: frames, each a header that numbers the call, then bytes. A rank that ends before the others says
//! so in a frame of another kind, with the rank that is at the bottom of it.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;

/// Number of the call, kind, length.
const HEADER: usize = 16;
/// Kinds of frames.
const BYTES: u32 = 0x6650_0001;
const FAREWELL: u32 = 0x6650_0002;

/// How a transfer stands: over, or so many bytes further, 0 where nothing can go now.
pub(super) enum Moved {
    Done,
    By(usize),
}

/// What else came than the frame that was awaited.
pub(super) enum Odd {
    /// The rank has ended, because of this one.
    Farewell(usize),
    /// One of another call.
    Elsewhere,
    /// One of so many bytes, in place of so many.
    Length(u32, usize),
}

/// What comes from a rank.
pub(super) enum Room<'a> {
    /// As many bytes as it sends.
    Any(Vec<u8>),
    /// As many as these.
    Of(&'a mut [u8]),
}

impl Room<'_> {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Any(bytes) => bytes,
            Self::Of(bytes) => bytes,
        }
    }
}

/// A frame on its way out.
pub(super) struct Sending<'a> {
    header: [u8; HEADER],
    body: &'a [u8],
    at: usize,
}

impl<'a> Sending<'a> {
    /// `None`: more bytes than a frame can have.
    pub(super) fn new(call: u64, body: &'a [u8]) -> Option<Self> {
        Some(Self { header: header(call, BYTES, u32::try_from(body.len()).ok()?), body, at: 0 })
    }

    /// The last frame there is, which lays it on `culprit`.
    pub(super) fn farewell(culprit: usize) -> Sending<'static> {
        Sending { header: header(culprit as u64, FAREWELL, 0), body: &[], at: 0 }
    }

    /// Whether it was begun.
    pub(super) fn begun(&self) -> bool {
        self.at > 0
    }

    pub(super) fn step(&mut self, mut to: &TcpStream) -> Result<Moved> {
        let rest = if self.at < HEADER { &self.header[self.at..] } else { &self.body[self.at - HEADER..] };
        let n = at_once(to.write(rest))?;
        self.at += n;
        Ok(if self.at == HEADER + self.body.len() { Moved::Done } else { Moved::By(n) })
    }
}

/// A frame that comes in.
pub(super) struct Receiving<'a, 'b> {
    call: u64,
    header: [u8; HEADER],
    room: &'b mut Room<'a>,
    at: usize,
}

impl<'a, 'b> Receiving<'a, 'b> {
    pub(super) fn new(call: u64, room: &'b mut Room<'a>) -> Self {
        Self { call, header: [0; HEADER], room, at: 0 }
    }

    pub(super) fn step(&mut self, mut from: &TcpStream) -> Result<std::result::Result<Moved, Odd>> {
        let n = match self.at {
            at if at < HEADER => at_once(from.read(&mut self.header[at..]))?,
            at => at_once(from.read(&mut self.room.bytes()[at - HEADER..]))?,
        };
        self.at += n;
        if self.at == HEADER
            && n > 0
            && let Err(odd) = self.opened()
        {
            return Ok(Err(odd));
        }
        let done = self.at >= HEADER && self.at == HEADER + self.room.bytes().len();
        Ok(Ok(if done { Moved::Done } else { Moved::By(n) }))
    }

    /// The header is there.
    fn opened(&mut self) -> std::result::Result<(), Odd> {
        let (number, kind, length) = words(&self.header);
        if kind == FAREWELL {
            return Err(Odd::Farewell(number as usize));
        }
        if kind != BYTES || number != self.call {
            return Err(Odd::Elsewhere);
        }
        if let Room::Any(bytes) = self.room {
            bytes.resize(length as usize, 0);
        }
        let room = self.room.bytes().len();
        if room == length as usize { Ok(()) } else { Err(Odd::Length(length, room)) }
    }
}

/// Whether the other side has ended, as far as it has said so, without taking what it says; because of whom. What it said before
/// is passed over where that is short, as it is of a rank that waits for the others.
pub(super) fn farewell_of(from: &TcpStream) -> Result<Option<usize>> {
    let mut said = [0; 8 * HEADER];
    let n = at_once(from.peek(&mut said))?;
    let mut rest = &said[..n];
    while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
        let (number, kind, length) = words(header);
        match kind {
            FAREWELL => return Ok(Some(number as usize)),
            BYTES => rest = after.get(length as usize..).unwrap_or_default(),
            _ => break,
        }
    }
    Ok(None)
}

/// Number, kind and length of a frame.
fn words(header: &[u8; HEADER]) -> (u64, u32, u32) {
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12))
}

fn header(number: u64, kind: u32, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&number.to_le_bytes());
    header[8..12].copy_from_slice(&kind.to_le_bytes());
    header[12..].copy_from_slice(&length.to_le_bytes());
    header
}

/// How many bytes went, 0 where none can now. Errors: the other side is gone.
fn at_once(went: Result<usize>) -> Result<usize> {
    match went {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
