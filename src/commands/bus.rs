//! A mapped file that is cut short while somebody looks into it: the system sends SIGBUS. What reads shards asks for their
//! length just before it looks, which leaves an instant; what comes in it ends the program with a line that names the file,
//! not with a signal.
//!
//! This is the program's, like its other signals: a library leaves the handlers of a process alone.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

/// Some thread has said it: others may stand in the same file, and one line is enough.
static SAID: AtomicBool = AtomicBool::new(false);

/// Installs the handler.
#[cfg(target_os = "linux")]
pub fn install() {
    // SAFETY: the handler calls nothing but system calls; an action of zeros is one without flags and mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Installs nothing: there is no table of mappings to read.
#[cfg(not(target_os = "linux"))]
pub fn install() {}

/// Says which file it was, and ends the process; where it was none, the signal comes again and ends it as before.
#[cfg(target_os = "linux")]
extern "C" fn on_bus(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the system hands over a valid `info`, and what is called is allowed in a handler: open, read, write, pause, _exit.
    unsafe {
        let mut path = [0u8; 1024];
        let length = mapped_at((*info).si_addr() as usize, &mut path);
        if length == 0 {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            return;
        }
        while SAID.swap(true, Ordering::Relaxed) {
            libc::pause(); // Until the thread that says it ends them all.
        }
        put(b"fusedpo: ");
        put(&path[..length]);
        put(b": was cut short, or could not be read, while it was in use: leave files alone during a run, and start it again\n");
        libc::_exit(1);
    }
}

/// Writes to stderr.
#[cfg(target_os = "linux")]
unsafe fn put(text: &[u8]) {
    // SAFETY: the caller is a handler, where `write` may be called; pointer and length are of one slice.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

/// Puts the name of the file that is mapped at `address` into `path`, without control characters; returns its length, 0 for
/// none. Reads `/proc/self/maps`: `START-END rwxp OFFSET DEVICE INODE   /PATH`, a line each.
#[cfg(target_os = "linux")]
unsafe fn mapped_at(address: usize, path: &mut [u8]) -> usize {
    // SAFETY: the path ends with a zero.
    let table = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let mut line = Line::new(address);
    let mut buffer = [0u8; 512];
    loop {
        // SAFETY: pointer and length are of one buffer.
        let n = unsafe { libc::read(table, buffer.as_mut_ptr().cast(), buffer.len()) };
        if n <= 0 {
            return 0;
        }
        for byte in &buffer[..n as usize] {
            if let Some(length) = line.take(*byte, path) {
                return length;
            }
        }
    }
}

/// Where a reading of the table is in a line.
struct Line {
    address: usize,
    /// Start and end so far.
    range: [usize; 2],
    /// 0 and 1: in the range; 2 and on: in the other fields; the path begins with its slash.
    field: usize,
    length: usize,
}

impl Line {
    fn new(address: usize) -> Self {
        Line { address, range: [0; 2], field: 0, length: 0 }
    }

    /// Takes a byte; the length of the path once the line of the address is through.
    fn take(&mut self, byte: u8, path: &mut [u8]) -> Option<usize> {
        match byte {
            b'\n' => {
                let hit = (self.range[0]..self.range[1]).contains(&self.address);
                let length = self.length;
                *self = Line::new(self.address);
                return hit.then_some(length);
            }
            b'-' | b' ' if self.field < 2 => self.field += 1,
            _ if self.field < 2 => {
                let digit = (byte as char).to_digit(16).unwrap_or(0) as usize;
                self.range[self.field] = self.range[self.field].wrapping_mul(16).wrapping_add(digit);
            }
            _ if (self.length > 0 || byte == b'/') && self.length < path.len() => {
                path[self.length] = if (0x20..0x7f).contains(&byte) { byte } else { b'?' };
                self.length += 1;
            }
            _ => {}
        }
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_file_behind_an_address() {
        let table = "00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/x\n\
                     7f10a000-7f10b000 rw-p 00000000 00:00 0\n\
                     7f10b000-7f20c000 r--s 00000000 08:02 1   /data/a b/tr\u{1b}in-00000.pref\n";
        let find = |address: usize| {
            let (mut line, mut path) = (Line::new(address), [0; 64]);
            let length = table.bytes().find_map(|byte| line.take(byte, &mut path));
            length.map(|n| String::from_utf8(path[..n].to_vec()).unwrap())
        };
        assert_eq!(find(0x40_0000).as_deref(), Some("/usr/bin/x"));
        assert_eq!(find(0x7f10_b000).as_deref(), Some("/data/a b/tr?in-00000.pref"));
        assert_eq!(find(0x7f20_bfff).as_deref(), Some("/data/a b/tr?in-00000.pref"));
        assert_eq!(find(0x7f10_a000).as_deref(), Some(""), "mapped, but of no file");
        assert_eq!((find(0x7f20_c000), find(0)), (None, None));
    }
}
