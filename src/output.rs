//! Numbers for people.

use crate::backend::DeviceMemory;
use crate::note;

/// `1.5 GiB`.
pub fn bytes(n: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).take_while(|i| n as f64 >= 1024f64.powi(*i as i32 + 1)).count();
    format!("{:.*} {}", usize::from(step > 0), n as f64 / 1024f64.powi(step as i32), units[step])
}

/// Prints what a run is about to take: the sum, what is in use and free on the device, and the largest parts.
pub fn print_memory(table: &[(String, usize)], device: Option<DeviceMemory>) {
    let mib = |bytes: usize| bytes >> 20;
    let beside = device.map_or_else(String::new, |d| {
        format!(", {} MiB in use already (program and data), {} MiB free", mib(d.used), mib(d.free))
    });
    note!("memory: {} MiB planned{beside}", mib(table.iter().map(|(_, b)| b).sum()));
    for (name, size) in largest(table, 8) {
        note!("  {:>10}  {name}", bytes(size));
    }
}

/// The `n` largest entries of a memory table, equal names added up, the rest as one.
fn largest(table: &[(String, usize)], n: usize) -> Vec<(String, usize)> {
    let mut sums: Vec<(String, usize)> = Vec::new();
    for (name, bytes) in table {
        match sums.iter_mut().find(|(k, _)| k == name) {
            Some((_, sum)) => *sum += bytes,
            None => sums.push((name.clone(), *bytes)),
        }
    }
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let rest: usize = sums.iter().skip(n).map(|(_, b)| b).sum();
    sums.truncate(n);
    if rest > 0 {
        sums.push(("everything else".into(), rest));
    }
    sums
}
