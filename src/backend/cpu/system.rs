//! Memory of this machine and of this process, as the system reports it. Linux alone tells; elsewhere nothing is known.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that this process could still get: what the system calls available, or less where a control group, `ulimit -v` or
/// `ulimit -d` limits it.
pub(crate) fn available() -> Option<usize> {
    let system = kib(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let read = |name: &str| read_to_string(Path::new("/proc/self").join(name)).unwrap_or_default();
    let group = group_room(Path::new("/sys/fs/cgroup"), &read("cgroup"));
    let (limits, status) = (read("limits"), read("status"));
    let [addresses, data] = [address_room(&limits, &status), data_room(&limits, &status)];
    Some([group, addresses, data].into_iter().flatten().fold(system, usize::min))
}

/// Bytes of addresses that are left to a process below its limit, by its /proc/self/limits and /proc/self/status. What the
/// allocator has reserved for its threads (64 MiB each, part of VmSize) is room as long as nobody writes there.
fn address_room(limits: &str, status: &str) -> Option<usize> {
    let limit = limit(limits, "Max address space ")?;
    let taken = ["VmData:", "VmStk:", "VmExe:", "VmLib:"].map(|name| kib(status, name));
    Some(limit.saturating_sub(taken.into_iter().sum::<Option<usize>>()?))
}

/// Bytes of memory of its own, private and writable, that are left to a process below its limit. What is reserved and cannot be written
/// to yet is no part of VmData.
fn data_room(limits: &str, status: &str) -> Option<usize> {
    Some(limit(limits, "Max data size ")?.saturating_sub(kib(status, "VmData:")?))
}

/// A soft limit by its name in /proc/self/limits. `None`: there is none, as "unlimited" is no number.
fn limit(limits: &str, name: &str) -> Option<usize> {
    let line = limits.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes of memory that this process occupies now.
pub(crate) fn resident() -> Option<usize> {
    kib(&read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Most bytes of memory that this process has occupied so far.
pub(crate) fn peak() -> Option<usize> {
    kib(&read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The number of KiB after `name` in a listing of the kernel's, in bytes.
fn kib(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// The least room in the control groups of a process, `own` being its /proc/self/cgroup: limit minus use, where page cache
/// that nobody reads at the moment counts as unused. Groups of version 2, and the memory controller of version 1.
fn group_room(root: &Path, own: &str) -> Option<usize> {
    let mut least = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (base, names) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current", "inactive_file "]),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "])
            }
            _ => continue,
        };
        // In a container the path may be that of another namespace: then the limits are at the root.
        let within = Path::new(path.trim_start_matches('/'));
        for group in within.ancestors().map(|p| base.join(p)) {
            if let Some(room) = room(&group, &names) {
                least = Some(least.map_or(room, |l: usize| l.min(room)));
            }
        }
    }
    least
}

fn room(group: &Path, [limit, used, cache]: &[&str; 3]) -> Option<usize> {
    let read = |name: &str| read_to_string(group.join(name)).ok();
    // "max" is no number: no limit.
    let limit: usize = read(limit)?.trim().parse().ok()?;
    let used: usize = read(used)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let cache = stat.lines().find_map(|l| l.strip_prefix(cache)?.trim().parse().ok()).unwrap_or(0usize);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_addresses_leaves_what_is_not_taken() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max resident set          4096                 unlimited            bytes     \n\
                 Max data size             {soft:<20} unlimited            bytes     \n\
                 Max address space         {soft:<20} unlimited            bytes     \n"
            )
        };
        let status = "VmSize:\t  500 kB\nVmData:\t   40 kB\nVmStk:\t   4 kB\nVmExe:\t   10 kB\nVmLib:\t   6 kB\n";
        assert_eq!(address_room(&limits("102400"), status), Some(40 << 10));
        assert_eq!(address_room(&limits("1024"), status), Some(0));
        assert_eq!(address_room(&limits("unlimited"), status), None);
        assert_eq!(address_room("", status), None);
        assert_eq!(data_room(&limits("102400"), status), Some(60 << 10));
        assert_eq!(data_room(&limits("1024"), status), Some(0));
        assert_eq!((data_room(&limits("unlimited"), status), data_room("", status)), (None, None));
        let own = |name: &str| read_to_string(Path::new("/proc/self").join(name)).unwrap();
        if cfg!(target_os = "linux") {
            assert!(
                ["\nMax address space ", "\nMax data size "].iter().all(|l| own("limits").contains(l))
                    && kib(&own("status"), "VmData:").is_some()
            );
        }
    }

    #[test]
    fn listings_are_read_in_kib() {
        let text = "MemTotal:       24612345 kB\nMemAvailable:   1048576 kB\n";
        assert_eq!(kib(text, "MemAvailable:"), Some(1 << 30));
        assert_eq!(kib(text, "VmRSS:"), None);
        assert_eq!(kib("VmRSS: lots kB", "VmRSS:"), None);
    }

    #[test]
    fn the_tightest_group_decides() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(group_room(root.path(), "0::/a/b\n"), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "900\n");
        write("a/memory.stat", "anon 500\ninactive_file 400\n");
        assert_eq!(group_room(root.path(), "0::/a/b\n"), Some(500));
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "100\n");
        assert_eq!(group_room(root.path(), "0::/a/b\n"), Some(500), "no limit of its own");
        write("a/b/memory.max", "300\n");
        assert_eq!(group_room(root.path(), "0::/a/b\n"), Some(200));
        write("memory.max", "150\n");
        write("memory.current", "160\n");
        assert_eq!(group_room(root.path(), "0::/elsewhere\n"), Some(0), "more in use than allowed");
        write("memory/c/memory.limit_in_bytes", "700\n");
        write("memory/c/memory.usage_in_bytes", "100\n");
        assert_eq!(group_room(root.path(), "3:cpu:/c\n4:cpuset,memory:/c\n"), Some(600));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        let (available, resident) = (available().unwrap(), resident().unwrap());
        assert!(available > 1 << 20 && resident > 1 << 20, "{available} {resident}");
        let peak = peak().unwrap();
        // What has been taken once counts from then on, whether it is still there or not.
        let much = vec![1u8; 64 << 20];
        assert!(peak >= resident && super::peak().unwrap() >= much.iter().map(|x| usize::from(*x)).sum::<usize>());
    }
}
