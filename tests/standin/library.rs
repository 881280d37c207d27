//! The stand-in libraries (`kernels/standin`): compiled when a test asks for them first, kept under cargo's folder for as long as
//! neither they nor the kernels change.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// The folder of the libraries; `None`, said on stderr, where something is missing to make them.
pub fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOLDER.get_or_init(make) {
        Ok(path) => Some(path),
        Err(why) => {
            assert!(env::var_os("FUSEDPO_REQUIRE_STANDIN").is_none(), "FUSEDPO_REQUIRE_STANDIN is set, but: {why}");
            eprintln!("skipped: the program on stand-in libraries: {why}");
            None
        }
    }
}

fn make() -> Result<PathBuf, String> {
    let nvcc = Path::new(env!("FUSEDPO_NVCC_USED"));
    if fusedpo::backend::gpu::cuda::BUILT.starts_with("no CUDA kernels") {
        return Err("there was no nvcc when this was built, so the program has no CUDA kernels".into());
    }
    let kernels = fusedpo_kernels_host::ARCHIVE.ok_or("there was no C++ compiler when this was built")?;
    if fusedpo_kernels_host::SANITIZED {
        return Err("the kernels were built with sanitizers".into());
    }
    // Beside the compiler, or where the system's compiler looks anyway.
    let include = nvcc.parent().and_then(Path::parent).map(|home| home.join("include")).unwrap_or_default();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/standin");
    let cxx = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("standin-{}", key(&sources, kernels, &cxx)));
    // One process makes them, others wait.
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).map_err(|e| e.to_string())?;
    let lock =
        fs::File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin.lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    if !out.join("libcublasLt.so.13").exists() {
        let status = Command::new("sh")
            .arg(sources.join("build.sh"))
            .arg(&out)
            .arg(kernels)
            .arg(include)
            .env("CXX", cxx)
            .status();
        assert!(status.is_ok_and(|s| s.success()), "kernels/standin/build.sh failed");
    }
    Ok(out)
}

/// What decides the libraries.
fn key(sources: &Path, kernels: &str, cxx: &str) -> String {
    let mut key = DefaultHasher::new();
    let mut files: Vec<PathBuf> = fs::read_dir(sources).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    cxx.hash(&mut key);
    files.iter().for_each(|file| fs::read(file).unwrap().hash(&mut key));
    fs::read(kernels).unwrap().hash(&mut key);
    format!("{:016x}", key.finish())
}
