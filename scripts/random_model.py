#!/usr/bin/env python3
"""Make a Hugging Face model directory with random weights: a real shape where no real model is at hand.

Usage:   python scripts/random_model.py --shape smollm2-135m|qwen2.5-0.5b|llama-3.2-1b --tokenizer DIR --out DIR [--seed 0]
Input:   the tokenizer's files, copied from a model directory; its vocabulary may be smaller than the shape's.
Output:  DIR with config.json, model.safetensors (bf16, normal with deviation 0.02, norms 1, biases 0) and the tokenizer.
Needs:   numpy.
"""

import argparse
import json
import shutil
import struct
import sys
from pathlib import Path

SHAPES = {
    "smollm2-135m": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
                     "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
                     "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192},
    "qwen2.5-0.5b": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
                     "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
                     "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
    "llama-3.2-1b": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192,
                     "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                     "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def tensors(config):
    """(name, shape) of every tensor, in the order they are written; embeddings are tied."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv = head_dim * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        for name, out in (("q", hidden), ("k", kv), ("v", kv)):
            yield layer + f"self_attn.{name}_proj.weight", (out, hidden)
            if config["model_type"] == "qwen2":
                yield layer + f"self_attn.{name}_proj.bias", (out,)
        yield layer + "self_attn.o_proj.weight", (hidden, hidden)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "mlp.gate_proj.weight", (ffn, hidden)
        yield layer + "mlp.up_proj.weight", (ffn, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)


def bf16(numpy, x):
    """Bits of x rounded to bf16, to nearest even."""
    bits = x.view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)


def write_weights(path, config, seed):
    import numpy
    random = numpy.random.default_rng(seed)
    header, at = {}, 0
    for name, shape in tensors(config):
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(config):
            if name.endswith("norm.weight"):
                values = numpy.ones(shape, numpy.float32)
            elif name.endswith("bias"):
                values = numpy.zeros(shape, numpy.float32)
            else:
                values = random.standard_normal(shape, dtype=numpy.float32) * numpy.float32(0.02)
            out.write(bf16(numpy, values).tobytes())
    return at // 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="model directory to copy the tokenizer from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.tokenizer / "tokenizer.json").is_file():
        sys.exit(f"random_model: --tokenizer {args.tokenizer}: no tokenizer.json there")
    if args.out.exists():
        sys.exit(f"random_model: --out {args.out} exists already")
    config = {**SHAPES[args.shape], "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    source = args.tokenizer / "config.json"
    if source.is_file():  # the special tokens are the tokenizer's
        ids = json.loads(source.read_text())
        config.update({key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in ids})
    args.out.mkdir(parents=True)
    try:
        count = write_weights(args.out / "model.safetensors", config, args.seed)
    except ImportError as error:
        sys.exit(f"random_model: {error}; install: python -m pip install numpy")
    for name in TOKENIZER_FILES:
        if (args.tokenizer / name).is_file():
            shutil.copyfile(args.tokenizer / name, args.out / name)
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{args.out}: {args.shape}, {count:,} random parameters")


if __name__ == "__main__":
    main()
