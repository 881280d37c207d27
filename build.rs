//! Compiles `kernels/*.cu` with nvcc, one fatbin per file and storage type, for the library to embed. No nvcc: an empty
//! list, and `--device cuda` says how to get one.
//!
//! `FUSEDPO_NVCC`, `CUDA_HOME`, `CUDA_PATH` and `PATH` are searched for nvcc, in this order; `FUSEDPO_NVCC=none` builds
//! without. `FUSEDPO_CUDA_ARCHS` replaces the targets (`80,90a,ptx80`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, sync, thread};

/// Machine code for A100 (and 8.x), Hopper, data-centre and consumer Blackwell; PTX for what comes later.
const TARGETS: &[&str] = &["80", "90a", "100", "120", "ptx80"];

fn main() {
    for name in ["FUSEDPO_NVCC", "FUSEDPO_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let (mut list, mut built, mut version) = (String::new(), String::from("no CUDA kernels"), 0);
    let mut compiled = Vec::new();
    let nvcc = find_nvcc();
    // For tests alone, which compile against its headers (tests/standin.rs): nothing that is shipped reads it.
    println!("cargo::rustc-env=FUSEDPO_NVCC_USED={}", nvcc.as_deref().unwrap_or(Path::new("")).display());
    if let Some(nvcc) = nvcc {
        let targets = targets(&nvcc);
        for file in fatbins(&nvcc, &targets, &out) {
            list += &format!("    include_bytes!({file:?}),\n");
        }
        version = toolkit(&nvcc);
        compiled.clone_from(&targets);
        built = format!("CUDA {}.{} kernels for {}", version / 1000, version % 1000 / 10, targets.join(", "));
    }
    let source = format!(
        "/// Compiled kernels, one image per file and storage type.\npub const FATBINS: &[&[u8]] = &[\n{list}];\n\
         /// What was compiled, for people.\npub const BUILT: &str = {built:?};\n\
         /// What was compiled, target by target: `80`, `90a`, `ptx80`.\npub const TARGETS: &[&str] = &{compiled:?};\n\
         /// CUDA version of the compiler as the driver counts: 13000 for 13.0; 0 without kernels.\n\
         pub const TOOLKIT: i32 = {version};\n"
    );
    fs::write(out.join("fatbins.rs"), source).expect("OUT_DIR can be written");
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(given) = env::var_os("FUSEDPO_NVCC").filter(|v| !v.is_empty()) {
        if given == "none" {
            return None;
        }
        let path = PathBuf::from(given);
        assert!(path.is_file(), "FUSEDPO_NVCC={}: no such file", path.display());
        return Some(path);
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|h| PathBuf::from(h).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    homes.chain(env::split_paths(&path)).map(|dir| dir.join("nvcc")).find(|p| p.is_file())
}

/// 13000 for nvcc 13.0.
fn toolkit(nvcc: &Path) -> i32 {
    let text = Command::new(nvcc).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let release = text.split_once("release ").and_then(|(_, r)| r.split(',').next()).unwrap_or_default();
    let mut parts = release.split('.').map(|p| p.trim().parse::<i32>().unwrap_or(0));
    parts.next().unwrap_or(0) * 1000 + parts.next().unwrap_or(0) * 10
}

/// The targets that this nvcc knows; those asked for by name must be known.
fn targets(nvcc: &Path) -> Vec<String> {
    if let Ok(asked) = env::var("FUSEDPO_CUDA_ARCHS") {
        return asked.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect();
    }
    let listed = Command::new(nvcc).arg("--list-gpu-code").output().map(|o| o.stdout).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    let known = |t: &str| {
        let number = t.trim_start_matches("ptx").trim_end_matches('a');
        listed.lines().any(|l| l.trim() == format!("sm_{number}"))
    };
    TARGETS.iter().filter(|t| known(t)).map(|t| t.to_string()).collect()
}

/// Compiles what changed since the last build and returns every fatbin.
fn fatbins(nvcc: &Path, targets: &[String], out: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir("kernels").expect("kernels/ exists").filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    let headers: String = files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "cuh"))
        .map(|p| fs::read_to_string(p).expect("can be read"))
        .collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "cu"));
    let mut jobs = Vec::new();
    for source in files {
        let text = fs::read_to_string(&source).expect("can be read");
        for (flag, dtype) in [("-DSTORAGE_BF16", "bf16"), ("-DSTORAGE_FLOAT", "f32")] {
            let stem = source.file_stem().expect("has a name").to_string_lossy();
            jobs.push((source.clone(), flag, out.join(format!("{stem}.{dtype}.fatbin")), text.clone()));
        }
    }
    let results: Vec<PathBuf> = jobs.iter().map(|j| j.2.clone()).collect();
    let queue = sync::Mutex::new(jobs.into_iter());
    let next = || queue.lock().expect("no panics inside").next();
    thread::scope(|s| {
        for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()) {
            s.spawn(|| {
                while let Some((source, flag, fatbin, text)) = next() {
                    compile(nvcc, targets, &source, flag, &fatbin, &format!("{nvcc:?}{targets:?}{headers}{text}"));
                }
            });
        }
    });
    results
}

/// Runs nvcc unless `fatbin` was made from the same `inputs`.
fn compile(nvcc: &Path, targets: &[String], source: &Path, flag: &str, fatbin: &Path, inputs: &str) {
    let stamp = fatbin.with_extension("inputs");
    if fatbin.is_file() && fs::read_to_string(&stamp).is_ok_and(|s| s == inputs) {
        return;
    }
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-lineinfo", "-fatbin", "--compress-mode=size", flag]);
    for target in targets {
        let (kind, number) = target.strip_prefix("ptx").map_or(("sm", target.as_str()), |n| ("compute", n));
        command.arg("-gencode").arg(format!("arch=compute_{number},code={kind}_{number}"));
    }
    let done = command.arg(source).arg("-o").arg(fatbin).output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "nvcc {}:\n{text}", source.display());
    fs::write(stamp, inputs).expect("OUT_DIR can be written");
}
