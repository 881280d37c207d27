//! TensorBoard's event file of a run, `RUN/events.out.tfevents.fusedpo`: what `metrics.jsonl` holds, under the tags of
//! transformers' `TensorBoardCallback`, so that `tensorboard --logdir RUN` shows it.
//!
//! The file is a record that names its version, one with the run's options as text, then one a row of metrics. So a run that
//! goes on needs no mark in it: the records that say what the rows say stay, what came after them is cut, what is missing is
//! written again. A TensorBoard that looks on sees each step once.

use super::event::{Event, Flow, Observe};
use crate::error::{Error, Result};
use crate::files::RunDir;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The tag of the run's options: what `add_text("args", ...)` makes of it.
const ARGS: &str = "args/text_summary";
/// Bytes of an event's wall time, its first field: a key and a double.
const TIME: usize = 9;
/// Longest record that can be ours: a row of some ten thousand numbers.
const MOST: u64 = 1 << 20;

/// Writes the rows of steps and evaluations into the run's event file, as they come; or nothing.
#[derive(Debug)]
pub struct Events(Option<(File, PathBuf)>);

impl Events {
    /// The event file of `out`, brought to what its `metrics.jsonl` holds. `args` says in Markdown what the run is, to the one
    /// who begins the file. Without it nothing is written from now on, and only what came after those metrics is cut.
    pub fn open(out: &RunDir, args: Option<&str>) -> Result<Self> {
        let Some((file, path)) = out.events(args.is_some())? else { return Ok(Self(None)) };
        match (Kept { from: Some(BufReader::new(&file)), at: 0, to: BufWriter::new(&file) }.bring(out, args)) {
            Ok(told) => told?,
            Err(e) => return Err(Error::io(&path, "write")(e)),
        }
        Ok(Self(args.map(|_| (file, path))))
    }
}

impl Observe for Events {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        if let (Some((file, path)), Event::Step { row, .. } | Event::Evaluation { row, .. }) = (&mut self.0, event) {
            file.write_all(&record(&scalars(row))).map_err(Error::io(path, "write"))?;
        }
        Ok(Flow::On)
    }
}

/// An event file between what stays and what is written again.
struct Kept<'a> {
    /// Where to read on, as long as all before says what it should.
    from: Option<BufReader<&'a File>>,
    /// Bytes that do.
    at: u64,
    /// Its end.
    to: BufWriter<&'a File>,
}

impl Kept<'_> {
    /// Brings it to what `out` holds. The outer error is of the event file, the inner one of the metrics.
    fn bring(mut self, out: &RunDir, args: Option<&str>) -> io::Result<Result<()>> {
        let writes = args.is_some();
        self.next(|rest| rest == version(), writes.then(version))?;
        // Of a run that begins again nothing stays but what it would write itself.
        let goes_on = out.metrics_mark().bytes > 0;
        let text = args.map(text);
        self.next(|rest| Some(rest) == text.as_deref() || (goes_on && is_text(rest)), text.clone())?;
        let mut failed = Ok(());
        let read = out.each_row(|row| {
            let row = scalars(row);
            if failed.is_ok() {
                failed = self.next(|rest| rest == row, writes.then(|| row.clone()));
            }
        });
        failed?;
        if self.from.take().is_some() {
            self.to.get_ref().set_len(self.at)?;
        }
        self.to.flush()?;
        Ok(read)
    }

    /// The next record stays where it `is` the right one; else it and all after it are cut, and it is written, if there is one.
    fn next(&mut self, is: impl Fn(&[u8]) -> bool, written: Option<Vec<u8>>) -> io::Result<()> {
        if let Some(from) = &mut self.from {
            if let Some(event) = read(from).filter(|event| event.get(TIME..).is_some_and(&is)) {
                self.at += event.len() as u64 + 16;
                return Ok(());
            }
            self.from = None;
            self.to.get_ref().set_len(self.at)?;
        }
        written.map_or(Ok(()), |rest| self.to.write_all(&record(&rest)))
    }
}

/// The event of the next record; `None`: there is no whole one.
fn read(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = [0; 12];
    from.read_exact(&mut head).ok()?;
    let (length, crc) = head.split_at(8);
    let bytes = u64::from_le_bytes(length.try_into().ok()?);
    if crc != masked_crc(length).to_le_bytes() || bytes > MOST {
        return None;
    }
    let mut event = vec![0; bytes as usize + 4];
    from.read_exact(&mut event).ok()?;
    let crc = event.split_off(bytes as usize);
    (crc == masked_crc(&event).to_le_bytes()).then_some(event)
}

/// An event as TensorFlow's records have it: length, CRC, event, CRC. `rest` is the event without its wall time, which is now.
fn record(rest: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let length = ((TIME + rest.len()) as u64).to_le_bytes();
    let mut record = Vec::with_capacity(rest.len() + TIME + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.push(1 << 3 | 1);
    record.extend(now.to_le_bytes());
    record.extend(rest);
    let crc = masked_crc(&record[12..]);
    record.extend(crc.to_le_bytes());
    record
}

/// The first event: `file_version`.
fn version() -> Vec<u8> {
    let mut event = Vec::new();
    put(&mut event, 3, b"brain.Event:2");
    event
}

/// A row of metrics: its step, and a scalar a number. What JSON has no number for, it has as `null`.
fn scalars(row: &Map<String, Value>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (key, value) in row.iter().filter(|(key, _)| *key != "step") {
        let Some(number) = value.as_f64().or(value.is_null().then_some(f64::NAN)) else { continue };
        let mut scalar = Vec::new();
        put(&mut scalar, 1, tag(key).as_bytes());
        scalar.push(2 << 3 | 5);
        scalar.extend((number as f32).to_le_bytes());
        put(&mut summary, 1, &scalar);
    }
    let mut event = vec![2 << 3];
    varint(&mut event, row.get("step").and_then(Value::as_u64).unwrap_or(0));
    put(&mut event, 5, &summary);
    event
}

/// transformers' `rewrite_logs`.
fn tag(key: &str) -> String {
    match key.strip_prefix("eval_") {
        Some(key) => format!("eval/{key}"),
        None => format!("train/{key}"),
    }
}

/// A text for TensorBoard's plugin of that name: a tensor of one string.
fn text(markdown: &str) -> Vec<u8> {
    let mut metadata = Vec::new();
    put(&mut metadata, 1, &[&[1 << 3 | 2, 4][..], b"text"].concat());
    // Element type 7 is a string; one dimension of size 1.
    let mut tensor = vec![1 << 3, 7, 2 << 3 | 2, 4, 2 << 3 | 2, 2, 1 << 3, 1];
    put(&mut tensor, 8, markdown.as_bytes());
    let mut value = Vec::new();
    put(&mut value, 1, ARGS.as_bytes());
    put(&mut value, 9, &metadata);
    put(&mut value, 8, &tensor);
    let (mut summary, mut event) = (Vec::new(), Vec::new());
    put(&mut summary, 1, &value);
    put(&mut event, 5, &summary);
    event
}

fn is_text(rest: &[u8]) -> bool {
    rest.windows(ARGS.len()).take(32).any(|tag| tag == ARGS.as_bytes())
}

/// A field of bytes of a protobuf message.
fn put(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push(field << 3 | 2);
    varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn varint(to: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

/// CRC-32C (Castagnoli), bit by bit into a table, and masked as TensorFlow's records are.
fn masked_crc(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ (0x82F6_3B78 * (crc & 1));
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    let crc = !bytes.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)]);
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_crc_of_the_standard() {
        // RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and 0 to 31; then the check value of the catalogue.
        let unmasked = |bytes: &[u8]| masked_crc(bytes).wrapping_sub(0xA282_EAD8).rotate_left(15);
        let counted: Vec<u8> = (0..32).collect();
        assert_eq!(
            [&[0; 32][..], &[255; 32], &counted, b"123456789"].map(unmasked),
            [0x8A91_36AA, 0x62A8_AB43, 0x46DD_794E, 0xE306_9283]
        );
    }

    #[test]
    fn a_row_to_the_byte() {
        let row = json!({"step": 300, "loss": 0.5, "eval_x": null, "text": "no number"});
        let event = scalars(row.as_object().unwrap());
        let mut want =
            b"\x10\xac\x02\x2a\x22\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x00\x3f\x0a\x0d\x0a\x06eval/x\x15".to_vec();
        want.extend(f32::NAN.to_le_bytes());
        assert_eq!(want[4], (want.len() - 5) as u8);
        assert_eq!(event, want);
    }

    #[test]
    fn what_stays_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(&dir.path().join("r"), "").unwrap();
        let row = |step: u64| json!({"step": step, "loss": step as f64 / 3.0}).as_object().unwrap().clone();
        let mut events = Events::open(&run, Some("| a |")).unwrap();
        for step in 1..=5 {
            run.log(&row(step)).unwrap();
            events.tell(&Event::Step { step, row: &row(step) }).unwrap();
        }
        let path = dir.path().join("r/events.out.tfevents.fusedpo");
        let whole = std::fs::read(&path).unwrap();
        let without_times = |bytes: &[u8]| {
            let (mut from, mut all) = (bytes, Vec::new());
            while let Some(event) = read(&mut from) {
                all.push(event[TIME..].to_vec());
            }
            assert!(from.is_empty());
            all
        };
        let rows = without_times(&whole);
        assert_eq!(rows.len(), 7);
        // Cut anywhere, or with a flipped bit anywhere, it is whole again, and what comes before keeps its time.
        for at in (0..whole.len()).step_by(7) {
            for flips in [false, true] {
                let mut bytes = whole.clone();
                match flips {
                    true => bytes[at] ^= 1 << (at % 8),
                    false => bytes.truncate(at),
                }
                std::fs::write(&path, &bytes).unwrap();
                Events::open(&run, Some("| b |")).unwrap();
                let again = std::fs::read(&path).unwrap();
                let (mut is, mut was) = (without_times(&again), rows.clone());
                // Where the text itself was lost, it is that of who writes it again.
                let lost = at < 40 + 16 + TIME + text("| a |").len();
                if lost {
                    is[1].clear();
                    was[1].clear();
                }
                assert_eq!(is, was, "{at}");
                assert!(lost || again[..at.saturating_sub(150)] == whole[..at.saturating_sub(150)]);
            }
        }
        // With fewer rows there is less, with or without somebody to write.
        let bytes = run.metrics_mark().bytes;
        std::fs::write(&path, &whole).unwrap();
        run.cut_metrics(bytes / 5 * 3).unwrap();
        Events::open(&run, None).unwrap();
        let cut = without_times(&std::fs::read(&path).unwrap());
        assert_eq!(cut, rows[..cut.len()]);
        let mut kept = 0;
        run.each_row(|_| kept += 1).unwrap();
        assert_eq!(cut.len(), 2 + kept);
    }
}
