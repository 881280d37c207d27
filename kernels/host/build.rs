//! Compiles `kernels/*.cu` with the host's C++17 compiler (`CXX`, else `c++`; flags from `FUSEDPO_HOST_CXXFLAGS`, with the
//! run-time libraries of sanitizers that they name), once per storage type. No compiler: the crate builds all the same and
//! its table of kernels is empty.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

/// Thread-local variables by offset: a shared library of the kernels (`kernels/standin`) would else call for each. No products
/// fused with sums behind the back of a kernel that promises bits.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-ftls-model=initial-exec",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-I",
    "..",
    "-x",
    "c++",
];

fn main() {
    println!("cargo::rerun-if-changed=..");
    println!("cargo::rerun-if-env-changed=CXX");
    println!("cargo::rerun-if-env-changed=FUSEDPO_HOST_CXXFLAGS");
    println!("cargo::rustc-check-cfg=cfg(host_kernels, sanitized)");
    let cxx = env::var("CXX").unwrap_or_else(|_| "c++".into());
    if !Command::new(&cxx).arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("cargo::warning=no C++ compiler (`{cxx}`): tests of the CUDA kernels on the host will be skipped");
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let mut jobs = vec![(PathBuf::from("cuda_host.cpp"), "", out.join("cuda_host.o"))];
    for source in sources(Path::new(".."), &["cu"]).into_iter().chain(sources(Path::new("faults"), &["cu"])) {
        let stem = source.file_stem().expect("has a name").to_string_lossy().into_owned();
        for (flag, dtype) in [("-DSTORAGE_BF16", "bf16"), ("-DSTORAGE_FLOAT", "f32")] {
            jobs.push((source.clone(), flag, out.join(format!("{stem}.{dtype}.o"))));
        }
    }
    // Every kernel may include any header.
    let headers: Vec<PathBuf> =
        ["..", ".", "faults"].iter().flat_map(|dir| sources(Path::new(dir), &["cuh", "h"])).collect();
    let half = jobs.len().div_ceil(2);
    let (cxx, headers) = (&cxx, &headers);
    thread::scope(|s| {
        for part in jobs.chunks(half) {
            s.spawn(move || {
                for (source, flag, object) in part {
                    if_changed(object, key(cxx, flag, source, headers), || compile(cxx, source, flag, object));
                }
            });
        }
    });
    let library = out.join("libfusedpo_kernels_host.a");
    let _ = fs::remove_file(&library);
    let status = Command::new("ar").arg("crs").arg(&library).args(jobs.iter().map(|j| &j.2)).status();
    assert!(status.is_ok_and(|s| s.success()), "ar could not write {}", library.display());
    println!("cargo::rustc-cfg=host_kernels");
    println!("cargo::rustc-env=FUSEDPO_KERNELS_HOST={}", library.display());
    let flags = env::var("FUSEDPO_HOST_CXXFLAGS").unwrap_or_default();
    let sanitizers: Vec<&str> =
        flags.split_whitespace().filter_map(|f| f.strip_prefix("-fsanitize=")).flat_map(|f| f.split(',')).collect();
    for (name, runtime) in [("address", "asan"), ("undefined", "ubsan")] {
        if sanitizers.contains(&name) {
            println!("cargo::rustc-link-lib=dylib={runtime}");
        }
    }
    if sanitizers.contains(&"address") {
        println!("cargo::rustc-cfg=sanitized");
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    // Kernels register themselves from static constructors, which a linker drops unless it takes the whole archive.
    println!("cargo::rustc-link-lib=static:+whole-archive=fusedpo_kernels_host");
    println!("cargo::rustc-link-lib=dylib={}", if cfg!(target_os = "macos") { "c++" } else { "stdc++" });
}

/// Files of `dir` with one of `extensions`, sorted.
fn sources(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).map(|d| d.filter_map(|e| Some(e.ok()?.path())).collect()).unwrap_or_default();
    found.retain(|p| p.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)));
    found.sort();
    found
}

/// What decides an object: compiler, flags, and the text of its source and of every header.
fn key(cxx: &str, flag: &str, source: &Path, headers: &[PathBuf]) -> String {
    let mut key = DefaultHasher::new();
    (cxx, FLAGS, flag, env::var_os("FUSEDPO_HOST_CXXFLAGS")).hash(&mut key);
    for file in std::iter::once(source).chain(headers.iter().map(PathBuf::as_path)) {
        fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).hash(&mut key);
    }
    format!("{:016x}", key.finish())
}

/// Makes `object` unless it was made for the same `key`, which is kept beside it.
fn if_changed(object: &Path, key: String, make: impl FnOnce()) {
    let kept = object.with_extension("key");
    if object.exists() && fs::read_to_string(&kept).is_ok_and(|k| k == key) {
        return;
    }
    let _ = fs::remove_file(&kept);
    make();
    fs::write(&kept, key).unwrap_or_else(|e| panic!("{}: {e}", kept.display()));
}

fn compile(cxx: &str, source: &Path, flag: &str, object: &Path) {
    let extra = env::var("FUSEDPO_HOST_CXXFLAGS").unwrap_or_default();
    let mut command = Command::new(cxx);
    command.args(FLAGS).args(extra.split_whitespace()).args((!flag.is_empty()).then_some(flag));
    let done = command.arg("-c").arg(source).arg("-o").arg(object).output().expect("the compiler ran before");
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}:\n{text}", source.display());
    text.lines().filter(|l| l.contains("warning:")).for_each(|l| println!("cargo::warning={l}"));
}
