//! Model directories to change.

use super::project;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

pub fn golden(name: &str) -> std::path::PathBuf {
    project("tests/golden").join(name)
}

/// A copy of a golden model that may be changed.
pub fn copy(name: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        // Written, not copied: the source may be read-only.
        std::fs::write(dir.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    dir
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut v = read_json(path);
    edit(&mut v);
    std::fs::write(path, v.to_string()).unwrap();
}

/// Dtype, shape and bytes by name.
pub type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

pub fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(n, (dtype, shape, data))| {
        (n, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Splits model.safetensors into two shards with an index.
pub fn shard(dir: &Path) {
    let all = tensors(&dir.join("model.safetensors"));
    let mut map = serde_json::Map::new();
    for (i, name) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate() {
        let part: Tensors = all.clone().into_iter().enumerate().filter(|(n, _)| n % 2 == i).map(|(_, t)| t).collect();
        part.keys().for_each(|t| drop(map.insert(t.clone(), json!(name))));
        write_tensors(&dir.join(name), &part);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
}
