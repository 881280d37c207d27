#!/usr/bin/env python3
"""Writes a model directory that fusedpo loads as a GGUF file, for llama.cpp and what is built on it.

Usage:   python scripts/export_gguf.py --model DIR --out FILE.gguf [--type f16|q8_0|f32] [--without-tokenizer] [--overwrite]
Input:   a Hugging Face directory of type llama, mistral, qwen2 or qwen3 (what `fusedpo dpo` or `merge` wrote, or its base);
         of an adapter, `fusedpo merge` makes one.
Output:  the file, whole or not at all; a line of what it holds. Norms and biases are f32 in every type; with q8_0 what has rows
         that are no multiple of 32 is f16.
Errors:  what a GGUF file cannot say, or llama.cpp would compute in another way, by its name, and nothing is written.
Needs:   numpy, gguf (PyPI).

The tokenizer is told by what it does: byte-level BPE by its splitting rule, which llama.cpp knows by a name; BPE of
SentencePiece's kind by its merges, whose order becomes scores.
"""

import argparse
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np


def import_gguf():
    """PyPI's gguf, not the reader of that name beside this script; none where it is not installed."""
    here, path, loaded = Path(__file__).resolve().parent, sys.path[:], sys.modules.pop("gguf", None)
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    try:
        import gguf

        return gguf if hasattr(gguf, "GGUFWriter") else None
    except ImportError:
        return None
    finally:
        sys.path[:] = path
        sys.modules.pop("gguf", None)
        if loaded is not None:
            sys.modules["gguf"] = loaded


gguf = import_gguf()

# Hugging Face's model type -> llama.cpp's name of the architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}

# How a text is split before byte-level BPE -> llama.cpp's name of it.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLITS = {
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST: "llama-bpe",
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST: "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "tekken",
}
# Those that take a token whole where it stands in the vocabulary, whatever the merges say.
WHOLE_WORDS = ("llama-bpe", "tekken")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
METASPACE = "\u2581"


class Refused(Exception):
    """What cannot be exported, in one line."""


# --- the directory ---


def read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise Refused(f"{path}: cannot be read ({e})") from None
    if not isinstance(value, dict):
        raise Refused(f"{path}: must be a JSON object")
    return value


def optional_json(path):
    return read_json(path) if path.exists() else {}


class Weights:
    """The tensors of a directory, read one at a time."""

    DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

    def __init__(self, folder):
        index = folder / "model.safetensors.index.json"
        names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self.tensors = {}
        for name in names:
            path = folder / name
            try:
                with open(path, "rb") as file:
                    (length,) = struct.unpack("<Q", file.read(8))
                    header = json.loads(file.read(length))
            except (OSError, ValueError, struct.error) as e:
                raise Refused(f"{path}: not a safetensors file ({e})") from None
            header.pop("__metadata__", None)
            for tensor, info in header.items():
                self.tensors[tensor] = (path, 8 + length + info["data_offsets"][0], info["dtype"], tuple(info["shape"]))

    def shape(self, name):
        return self.tensors[name][3]

    def get(self, name):
        """A tensor as float32."""
        path, offset, dtype, shape = self.tensors[name]
        if dtype not in self.DTYPES:
            raise Refused(f"{path}: tensor `{name}` has dtype {dtype}; those of F32, F16 and BF16 are exported")
        count = int(np.prod(shape))
        values = np.fromfile(path, dtype=self.DTYPES[dtype], count=count, offset=offset)
        if values.size != count:
            raise Refused(f"{path}: ends within `{name}`")
        if dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise Refused(f"{path}: tensor `{name}` holds NaN or infinity")
        return values


class Shape:
    """What config.json says, as far as a GGUF file needs it."""

    def __init__(self, folder):
        if (folder / "adapter_config.json").exists():
            raise Refused(f"{folder}: an adapter: `fusedpo merge` puts it into its base's weights first")
        c = self.config = read_json(folder / "config.json")
        self.family = c.get("model_type")
        if self.family not in ARCHITECTURES:
            raise Refused(f"{folder}: model type {self.family} is not exported; those are: {', '.join(ARCHITECTURES)}")
        if c.get("quantization_config"):
            raise Refused(f"{folder}: `quantization_config`: quantized weights are not exported; use the f32, f16 or bf16 model")
        self.arch = ARCHITECTURES[self.family]
        if self.family == "qwen3" and c.get("attention_bias"):
            raise Refused(f"{folder}: `attention_bias` true: llama.cpp's qwen3 has no biases")
        try:
            self.hidden, self.layers, self.heads = (c[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
            self.ffn, self.vocab, self.positions = (c[k] for k in ("intermediate_size", "vocab_size", "max_position_embeddings"))
        except KeyError as e:
            raise Refused(f"{folder / 'config.json'}: has no {e}") from None
        # What transformers takes for fields that are left out.
        self.kv_heads = c.get("num_key_value_heads", {"mistral": 8, "qwen2": 32, "qwen3": 32}.get(self.family)) or self.heads
        self.head_dim = c.get("head_dim", 128 if self.family == "qwen3" else None) or self.hidden // self.heads
        self.eps = c.get("rms_norm_eps", 1e-6)
        self.tied = bool(c.get("tie_word_embeddings", False))
        rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
        self.theta = rope.get("rope_theta") or c.get("rope_theta") or 10000.0
        self.rope = {**rope, "kind": rope.get("rope_type", rope.get("type", "default"))}
        window = c.get("sliding_window", 4096) if self.family == "mistral" or c.get("use_sliding_window") else None
        # Longer rows would see more there than here.
        self.context = min(self.positions, window) if window else self.positions


# --- the rotary embedding ---


def rope_metadata(writer, shape):
    """Writes what scales the rotary embedding; gives the tensor that goes with it, where there is one."""
    rope, kind = shape.rope, shape.rope["kind"]
    writer.add_rope_freq_base(float(shape.theta))
    writer.add_rope_dimension_count(shape.head_dim)
    if kind == "default":
        return None
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Refused("`partial_rotary_factor` other than 1: llama.cpp turns whole heads of these families")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        return None
    original = shape.config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or shape.positions
    if kind == "yarn":
        for key, plain in (("beta_fast", 32), ("beta_slow", 1), ("attention_factor", None), ("mscale", None),
                           ("mscale_all_dim", None), ("truncate", True)):
            if rope.get(key, plain) not in (plain, None):
                raise Refused(f"rotary embedding `yarn` with `{key}` {rope[key]}: a GGUF file of this architecture has no place for it")
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(original))
        return None
    if kind == "llama3":
        if shape.arch != "llama":
            raise Refused(f"rotary embedding `llama3` in a model of type {shape.family}: llama.cpp has it for llama alone")
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        factor = float(rope["factor"])
        frequency = shape.theta ** -(np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
        wave = 2 * np.pi / frequency
        smooth = (original / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors = np.where(wave < original / high, 1.0, np.where(wave > original / low, factor, between))
        return factors.astype(np.float32)
    raise Refused(f"rotary embedding `{kind}`: llama.cpp has it not for this architecture")


# --- the tokenizer ---


def steps(value):
    """The parts of a normalizer or pre-tokenizer, in order."""
    if not value:
        return []
    if value["type"] == "Sequence":
        return [step for part in value.get("normalizers", value.get("pretokenizers", [])) for step in steps(part)]
    return [value]


def splitting_rule(path, tokenizer):
    """llama.cpp's name of how a byte-level tokenizer splits."""
    pre, normalizer = steps(tokenizer.get("pre_tokenizer")), [n["type"] for n in steps(tokenizer.get("normalizer"))]
    bytes_last = bool(pre) and pre[-1]["type"] == "ByteLevel"
    if bytes_last and not pre[-1].get("add_prefix_space", True):
        by_rule, rest = pre[-1].get("use_regex", True), pre[:-1]
        if by_rule and not rest and not normalizer:
            return "gpt-2"
        if by_rule and not normalizer and [p["type"] for p in rest] == ["Digits"] and rest[0].get("individual_digits"):
            return "smollm"
        if not by_rule and len(rest) == 1 and rest[0]["type"] == "Split" and rest[0]["behavior"] == "Isolated" and not rest[0].get("invert"):
            name = SPLITS.get(rest[0]["pattern"].get("Regex"))
            # Qwen composes characters first; llama.cpp does not, which differs on text that is not composed already.
            if name and (not normalizer or name == "qwen2" and normalizer == ["NFC"]):
                return name
    shown = json.dumps([p.get("pattern", p["type"]) for p in pre])[:160]
    raise Refused(f"{path}: its way to split a text, {shown} after {normalizer or 'no normalizer'}, is none that llama.cpp has a name for")


def space_prefix(path, tokenizer):
    """Whether a SentencePiece-like tokenizer puts a space before a text."""
    normal, pre = steps(tokenizer.get("normalizer")), steps(tokenizer.get("pre_tokenizer"))
    kinds = [s["type"] for s in normal + pre]
    replaces = [s for s in normal if s["type"] == "Replace"]
    if all(s["pattern"] == {"String": " "} and s["content"] == METASPACE for s in replaces):
        if kinds == ["Prepend", "Replace"] and normal[0]["prepend"] == METASPACE:
            return True
        if kinds == ["Replace"]:
            return False
        if kinds == ["Metaspace"] and pre[0].get("replacement") == METASPACE and not pre[0].get("split"):
            if pre[0].get("prepend_scheme", "always") == "first":
                print("export_gguf: llama.cpp puts a space before what follows a special token too, not before a text alone", file=sys.stderr)
            return pre[0].get("prepend_scheme", "always") != "never"
    raise Refused(f"{path}: a BPE with byte fallback after {kinds or 'nothing'} is no tokenizer that llama.cpp has")


class Vocabulary:
    """Tokens, types and what goes with them."""

    def __init__(self, folder, shape):
        self.path = path = folder / "tokenizer.json"
        self.tokenizer = tokenizer = read_json(path)
        self.config = optional_json(folder / "tokenizer_config.json")
        self.generation = optional_json(folder / "generation_config.json")
        model = tokenizer.get("model", {})
        if model.get("type") != "BPE":
            raise Refused(f"{path}: a tokenizer of type {model.get('type')} is not exported; BPE is (--without-tokenizer leaves it out)")
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(key):
                raise Refused(f"{path}: BPE with `{key}` {model[key]!r} is nothing that llama.cpp has")
        self.vocab, self.merges = model["vocab"], [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        self.by_bytes = not model.get("byte_fallback")
        self.added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
        self.rule = splitting_rule(path, tokenizer) if self.by_bytes else None
        if self.by_bytes and bool(model.get("ignore_merges")) != (self.rule in WHOLE_WORDS):
            raise Refused(f"{path}: `ignore_merges` {json.dumps(bool(model.get('ignore_merges')))} with the rule {self.rule}, "
                          "for which llama.cpp does the other")
        self.prefix = None if self.by_bytes else space_prefix(path, tokenizer)
        self.tokens, self.types = self.list(shape.vocab)
        self.id_of = {text: i for i, text in enumerate(self.tokens)}

    def list(self, size):
        texts = {i: text for text, i in self.vocab.items()}
        texts.update({i: token["content"] for i, token in self.added.items()})
        beyond = max(texts, default=0)
        if beyond >= size:
            raise Refused(f"{self.path}: token id {beyond} is outside the model's vocabulary of {size}")
        unknown = self.tokenizer["model"].get("unk_token")
        tokens, types = [], []
        for i in range(size):
            text = texts.get(i, f"[PAD{i}]")
            if i not in texts:
                kind = UNUSED
            elif text == unknown and not self.by_bytes:
                kind = UNKNOWN
            elif i in self.added:
                kind = CONTROL if self.added[i].get("special") else USER_DEFINED
            elif not self.by_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                kind = BYTE
            else:
                kind = NORMAL
            tokens.append(text)
            types.append(kind)
        if len(set(tokens)) != size:
            raise Refused(f"{self.path}: two ids have the same text")
        return tokens, types

    def scores(self):
        """What SentencePiece merges by: the earlier the first merge that makes a token, the higher."""
        rank = {}
        for i, (a, b) in enumerate(self.merges):
            rank.setdefault(a + b, i)
        none = float(-len(self.merges) - 1)
        return [float(-rank[t]) if t in rank else (0.0 if k in (CONTROL, UNKNOWN, BYTE) else none) for t, k in zip(self.tokens, self.types)]

    def special(self, name):
        """The id of the token that tokenizer_config.json calls `name`, where it does."""
        value = self.config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return self.id_of.get(text)

    def ends(self, shape):
        """Ids that end a text, the tokenizer's own first."""
        given = self.generation.get("eos_token_id", shape.config.get("eos_token_id"))
        given = given if isinstance(given, list) else [] if given is None else [given]
        own = self.special("eos_token")
        return list(dict.fromkeys(([] if own is None else [own]) + given))

    def around(self):
        """Texts of the tokens before and behind every text. As in transformers 5 the tokenizer.json alone says so."""
        post = self.tokenizer.get("post_processor") or {}
        before, behind = [], []
        for part in post.get("processors", [post] if post else []):
            if part["type"] == "ByteLevel":
                continue
            if part["type"] != "TemplateProcessing":
                raise Refused(f"{self.path}: a post-processor of type {part['type']} is nothing that llama.cpp has")
            names = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else None for piece in part["single"]]
            before += names[: names.index(None)]
            behind += names[names.index(None) + 1 :]
        return before, behind

    def template(self, folder):
        """The chat template, where there is one."""
        path = folder / "chat_template.jinja"
        if path.exists():
            return path.read_text(encoding="utf-8")
        template = self.config.get("chat_template")
        if isinstance(template, list):
            template = {t["name"]: t["template"] for t in template}.get("default")
        return template


def write_tokenizer(writer, folder, shape):
    v = Vocabulary(folder, shape)
    writer.add_tokenizer_model("gpt2" if v.by_bytes else "llama")
    writer.add_tokenizer_pre(v.rule if v.by_bytes else "default")
    writer.add_token_list(v.tokens)
    writer.add_token_types(v.types)
    if v.by_bytes:
        writer.add_token_merges([f"{a} {b}" for a, b in v.merges])
    else:
        writer.add_token_scores(v.scores())
        writer.add_add_space_prefix(v.prefix)
    ends = v.ends(shape)
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if len(ends) > 2:
        print(f"export_gguf: of {len(ends)} tokens that end a text, {ends[2:]} have no place in the file", file=sys.stderr)
    bos = v.special("bos_token")
    bos = shape.config.get("bos_token_id") if bos is None else bos
    for id, add in ((bos, writer.add_bos_token_id), (v.special("unk_token"), writer.add_unk_token_id), (v.special("pad_token"), writer.add_pad_token_id)):
        if isinstance(id, int):
            add(id)
    for tokens, own, where, add in zip(v.around(), (bos, ends[0] if ends else None), ("before", "behind"), (writer.add_add_bos_token, writer.add_add_eos_token)):
        if tokens and [v.id_of.get(text) for text in tokens] != [own]:
            raise Refused(f"{v.path}: puts {tokens} {where} every text: llama.cpp puts one token there, the one that begins or ends a text")
        add(bool(tokens))
    template = v.template(folder)
    if template:
        writer.add_chat_template(template)


# --- the tensors ---


def gguf_name(name):
    """llama.cpp's name of a tensor; none where it has no place."""
    if name in WHOLE:
        return WHOLE[name]
    parts = name.split(".")
    if parts[:2] != ["model", "layers"] or len(parts) < 5:
        return None
    module, end = BLOCK.get(".".join(parts[3:-1])), parts[-1]
    return f"blk.{parts[2]}.{module}.{end}" if module and end in ("weight", "bias") else None


def turned(values, heads):
    """Rows of queries or keys from halves, as Hugging Face turns them, to neighbours, as llama.cpp's llama does."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def values_of(weights, name, shape):
    values = weights.get(name)
    if shape.arch == "llama":
        for part, heads in (("q_proj", shape.heads), ("k_proj", shape.kv_heads)):
            if f".self_attn.{part}." in name:
                values = turned(values, heads)
    return values


def kind_of(tensor_shape, wanted):
    """How a tensor is stored."""
    kinds = gguf.GGMLQuantizationType
    if len(tensor_shape) == 1 or wanted == "f32":
        return kinds.F32
    if wanted == "q8_0" and tensor_shape[-1] % 32 == 0:
        return kinds.Q8_0
    return kinds.F16


def stored(values, kind, name):
    if kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > 65504:
        raise Refused(f"tensor `{name}` has values that f16 does not: use --type f32")
    return gguf.quants.quantize(np.ascontiguousarray(values), kind)


def plan_tensors(weights, shape):
    """(Hugging Face's name, llama.cpp's) of every tensor to write. The head of a tied model is its embedding."""
    pairs = [(name, gguf_name(name)) for name in weights.tensors if not (shape.tied and name == "lm_head.weight")]
    pairs = [(name, to) for name, to in pairs if not name.endswith("rotary_emb.inv_freq")]
    for name, to in pairs:
        if to is None:
            raise Refused(f"tensor `{name}` has no place in a GGUF file of a {shape.family} model")
    needed = {"token_embd.weight", "output_norm.weight"} | (set() if shape.tied else {"output.weight"})
    products = ["attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    needed |= {f"blk.{l}.{p}.weight" for l in range(shape.layers) for p in products}
    missing = sorted(needed - {to for _, to in pairs})
    if missing:
        raise Refused(f"{len(missing)} tensors are missing, the first is llama.cpp's {missing[0]}")
    return sorted(pairs, key=lambda pair: (pair[1].startswith("blk."), pair[1]))


def export(folder, out, kind="f16", tokenizer=True):
    """Writes the file `out`, which must not exist; the number of its tensors."""
    shape, weights = Shape(folder), Weights(folder)
    pairs = plan_tensors(weights, shape)
    writer = gguf.GGUFWriter(out, shape.arch)
    try:
        writer.add_name(folder.resolve().name)
        writer.add_file_type({"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_vocab_size(shape.vocab)
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.hidden)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.ffn)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_layer_norm_rms_eps(shape.eps)
        factors = rope_metadata(writer, shape)
        if tokenizer:
            write_tokenizer(writer, folder, shape)
        else:
            writer.add_tokenizer_model("none")
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for name, to in pairs:
            how = kind_of(weights.shape(name), kind)
            size = gguf.quant_shape_to_byte_shape(weights.shape(name), how) if how == gguf.GGMLQuantizationType.Q8_0 else weights.shape(name)
            dtype = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(how, np.uint8)
            writer.add_tensor_info(to, size, np.dtype(dtype), int(np.prod(size)) * np.dtype(dtype).itemsize, how)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for name, _ in pairs:
            writer.write_tensor_data(stored(values_of(weights, name, shape), kind_of(weights.shape(name), kind), name))
    finally:
        writer.close()
    return len(pairs)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", choices=["f16", "q8_0", "f32"], default="f16")
    parser.add_argument("--without-tokenizer", action="store_true", help="for programs that give and take token ids")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    if gguf is None:
        sys.exit("export_gguf: needs PyPI's gguf: pip install gguf")
    if args.out.exists() and not args.overwrite:
        sys.exit(f"export_gguf: {args.out}: exists; --overwrite replaces it")
    if not args.out.parent.is_dir():
        sys.exit(f"export_gguf: {args.out.parent}: no such folder")
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".gguf-") as folder:
        part = Path(folder) / "part.gguf"
        try:
            tensors = export(args.model, part, args.type, not args.without_tokenizer)
        except (Refused, OSError) as e:
            sys.exit(f"export_gguf: {e}")
        size = part.stat().st_size
        os.replace(part, args.out)
    print(f"{args.out}: {tensors} tensors, {args.type}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
