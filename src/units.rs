//! Numbers for people.

/// `1.5 GiB`.
pub fn bytes(n: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).take_while(|i| n as f64 >= 1024f64.powi(*i as i32 + 1)).count();
    format!("{:.*} {}", usize::from(step > 0), n as f64 / 1024f64.powi(step as i32), units[step])
}
