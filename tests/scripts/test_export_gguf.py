"""export_gguf.py on models made here: what the file says, its tensors, what is refused; and llama.cpp's greedy text beside the
program's, where PyPI's gguf, a llama.cpp (xllamacpp) and a built program are at hand."""

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import numpy as np
except ImportError:
    np = None

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
if np is not None:
    import export_gguf  # noqa: E402
    from export_gguf import gguf  # noqa: E402
else:
    gguf = None
try:
    import xllamacpp
except ImportError:
    xllamacpp = None

PROGRAM = Path(os.environ.get("FUSEDPO_BIN", ROOT / "target/release/fusedpo"))
VOCAB = 300
BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama-bias": {"model_type": "llama", "attention_bias": True},
    "llama-tied-llama3": {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 32},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-yarn": {"model_type": "llama", "rope_parameters": {**YARN, "rope_theta": 5000.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 128},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-narrow": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
}


def bytes_to_text():
    """GPT-2's letters of bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    more = iter(range(256, 512))
    return {b: chr(b if b in plain else next(more)) for b in range(256)}


def tokenizer(**changes):
    letters = bytes_to_text()
    vocab = {letters[b]: b for b in range(256)}
    merges = [["t", "h"], ["th", "e"], ["\u0120", "the"]]
    vocab.update({"th": 256, "the": 257, "\u0120the": 258})
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 259, "content": "<s>", **special}, {"id": 260, "content": "</s>", **special}, {"id": 261, "content": "<x>", **special, "special": False}]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}
    model.update(changes.pop("model", {}))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model, **changes}


def tensors_of(config, seed=0):
    """Random weights; tokens that are no letters are never the likeliest."""
    rng = np.random.default_rng(seed)
    h, f, q = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    d = config.get("head_dim") or h // q
    kv = config["num_key_value_heads"]
    draw = lambda *shape: (rng.standard_normal(shape) * (1.2 / np.sqrt(shape[-1]))).astype(np.float32)  # noqa: E731
    norm = lambda n: (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)  # noqa: E731
    shown = np.array([97 <= i < 123 or i == 32 for i in range(VOCAB)])
    embedding = draw(VOCAB, h) * 8
    out = {"model.norm.weight": norm(h)}
    if config.get("tie_word_embeddings"):
        embedding[~shown] *= 0.05
    else:
        out["lm_head.weight"] = draw(VOCAB, h) * shown[:, None]
    out["model.embed_tokens.weight"] = embedding
    bias = config["model_type"] == "qwen2" or config.get("attention_bias")
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes = {"self_attn.q_proj": (q * d, h), "self_attn.k_proj": (kv * d, h), "self_attn.v_proj": (kv * d, h),
                  "self_attn.o_proj": (h, q * d), "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f)}
        for module, shape in shapes.items():
            out[f"{name}{module}.weight"] = draw(*shape) * 2
            if bias and module[10:11] in "qkv" or module.endswith("o_proj") and config.get("attention_bias"):
                out[f"{name}{module}.bias"] = (0.5 * rng.standard_normal(shape[0])).astype(np.float32)
        for module in ("input_layernorm", "post_attention_layernorm"):
            out[f"{name}{module}.weight"] = norm(h)
        if config["model_type"] == "qwen3":
            out[f"{name}self_attn.q_norm.weight"], out[f"{name}self_attn.k_norm.weight"] = norm(d), norm(d)
    return {k: v for k, v in out.items() if not (k.endswith("bias") and "mlp" in k)}


def write_model(folder, config, tensors=None, tokens=None, bf16=False, **files):
    folder.mkdir(parents=True, exist_ok=True)
    config = {**BASE, "bos_token_id": 259, "eos_token_id": 260, **config}
    tensors = tensors_of(config) if tensors is None else tensors
    header, data = {}, b""
    for name, values in tensors.items():
        raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes() if bf16 else values.astype("<f4").tobytes()
        header[name] = {"dtype": "BF16" if bf16 else "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokens or tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return tensors


def exported(model, out, *options):
    """Runs the script; its exit's line, or none."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            export_gguf.main(["--model", str(model), "--out", str(out), *options])
        except SystemExit as e:
            return str(e.code)
    return None


def fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


@unittest.skipIf(gguf is None, "skipped: numpy and PyPI's gguf are not installed")
class Files(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.at = Path(temporary.name)

    def export(self, config, *options, **files):
        tensors = write_model(self.at / "m", config, **files)
        self.assertIsNone(exported(self.at / "m", self.at / "m.gguf", "--overwrite", *options))
        self.assertEqual(sorted(p.name for p in self.at.iterdir()), ["m", "m.gguf"])
        return tensors, gguf.GGUFReader(self.at / "m.gguf")

    def test_tensors_are_those_of_the_model(self):
        for family, config in FAMILIES.items():
            for kind in ("f32", "f16", "q8_0"):
                tensors, reader = self.export(config, "--type", kind, bf16=kind == "f16")
                stored = {t.name: t for t in reader.tensors}
                shape = {**BASE, **config}
                self.assertEqual(len(stored), len(tensors) + ("llama3" in family), family)
                for name, values in tensors.items():
                    to = stored[export_gguf.gguf_name(name)]
                    got = gguf.quants.dequantize(to.data, to.tensor_type).reshape(values.shape)
                    want = (values.view(np.uint32) >> 16 << 16).view(np.float32) if kind == "f16" else values
                    for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                        if f".{part}." in name and config["model_type"] in ("llama", "mistral"):
                            # Row 2 i of a head is row i, row 2 i + 1 is row i + half.
                            rows = np.arange(len(want)).reshape(shape[heads], 2, -1)
                            want = want[np.stack([rows[:, 0], rows[:, 1]], axis=-1).ravel()]
                    if want.ndim == 1 or kind == "f32":
                        np.testing.assert_array_equal(got, want, f"{family} {kind} {name}")
                    elif kind == "f16":
                        np.testing.assert_array_equal(got, want.astype(np.float16).astype(np.float32), f"{family} {name}")
                    else:
                        self.assertEqual(to.tensor_type, gguf.GGMLQuantizationType.Q8_0, name)
                        blocks = np.abs(want.reshape(-1, 32)).max(1, keepdims=True)
                        off = np.abs(got - want).reshape(-1, 32) / np.maximum(blocks, 1e-30)
                        self.assertLess(off.max(), 0.5 / 127 + 1e-3, name)
                        self.assertGreater(off.max(), 0, name)

    def test_rows_that_have_no_blocks_are_f16(self):
        _, reader = self.export({"model_type": "qwen3", "head_dim": 6, "num_attention_heads": 3, "num_key_value_heads": 3}, "--type", "q8_0")
        kinds = {t.name: t.tensor_type.name for t in reader.tensors}
        self.assertEqual((kinds["blk.0.attn_output.weight"], kinds["blk.0.attn_q.weight"]), ("F16", "Q8_0"))

    def test_metadata(self):
        _, reader = self.export(FAMILIES["qwen3"], chat_template__jinja="{{ messages[0].content }}",
                                generation_config__json=json.dumps({"eos_token_id": [261, 260]}))
        f = fields(reader)
        want = {"general.architecture": "qwen3", "qwen3.block_count": 2, "qwen3.embedding_length": 64, "qwen3.feed_forward_length": 96,
                "qwen3.attention.head_count": 4, "qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 32,
                "qwen3.attention.value_length": 32, "qwen3.rope.dimension_count": 32, "qwen3.context_length": 256,
                "qwen3.vocab_size": VOCAB, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.bos_token_id": 259, "tokenizer.ggml.eos_token_id": 260, "tokenizer.ggml.eot_token_id": 261,
                "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": "{{ messages[0].content }}"}
        self.assertEqual({k: f.get(k) for k in want}, want)
        self.assertAlmostEqual(f["qwen3.attention.layer_norm_rms_epsilon"], 1e-5, places=9)
        tokens, types = f["tokenizer.ggml.tokens"], f["tokenizer.ggml.token_type"]
        self.assertEqual((len(tokens), tokens[258], tokens[260], tokens[299]), (VOCAB, "\u0120the", "</s>", "[PAD299]"))
        self.assertEqual([types[i] for i in (0, 259, 261, 262)], [1, 3, 4, 5])
        self.assertEqual(f["tokenizer.ggml.merges"], ["t h", "th e", "\u0120 the"])
        self.assertEqual(fields(self.export(FAMILIES["mistral"])[1])["llama.context_length"], 128)

    def test_rotary_embeddings(self):
        _, reader = self.export(FAMILIES["llama-yarn"])
        f = fields(reader)
        self.assertEqual([f["llama.rope.scaling." + k] for k in ("type", "factor", "original_context_length")], ["yarn", 4.0, 64])
        self.assertEqual(f["llama.rope.freq_base"], 5000.0)
        self.assertEqual(fields(self.export(FAMILIES["llama-linear"])[1])["llama.rope.scaling.type"], "linear")
        _, reader = self.export(FAMILIES["llama-tied-llama3"])
        factors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
        self.assertEqual(len(factors), 8)
        self.assertTrue(factors[0] == 1 and factors[-1] == 8 and (np.diff(factors) >= 0).all() and ((1 < factors) & (factors < 8)).any())
        self.assertNotIn("llama.rope.scaling.type", fields(reader))

    def test_splitting_rules(self):
        split = lambda regex: {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},  # noqa: E731
                               {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}
        for regex, name in export_gguf.SPLITS.items():
            model = {"ignore_merges": name in export_gguf.WHOLE_WORDS}
            normalizer = {"type": "NFC"} if name == "qwen2" else None
            tokens = tokenizer(pre_tokenizer=split(regex), model=model, normalizer=normalizer)
            self.assertEqual(fields(self.export(FAMILIES["llama"], tokens=tokens)[1])["tokenizer.ggml.pre"], name)
        post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
        f = fields(self.export(FAMILIES["llama"], tokens=tokenizer(post_processor=post))[1])
        self.assertEqual((f["tokenizer.ggml.add_bos_token"], f["tokenizer.ggml.add_eos_token"]), (True, False))

    def test_sentencepiece_like_tokenizers(self):
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "t", "h", "e", "th", "the", "\u2581the"]
        merges = [["t", "h"], ["th", "e"], ["\u2581", "the"], ["\u2581t", "he"]]
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [{"id": i, "content": pieces[i], **special} for i in range(3)]
        model = {"byte_fallback": True, "unk_token": "<unk>", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        metaspace = {"type": "Metaspace", "replacement": "\u2581", "split": False}
        for normalizer, pre, prefix in [
            ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace]}, None, True),
            (replace, None, False),
            (None, {**metaspace, "prepend_scheme": "always"}, True),
            (None, {**metaspace, "prepend_scheme": "never"}, False),
        ]:
            tokens = tokenizer(model=model, added_tokens=added, normalizer=normalizer, pre_tokenizer=pre)
            f = fields(self.export(FAMILIES["llama"], tokens=tokens)[1])
            self.assertEqual((f["tokenizer.ggml.model"], f["tokenizer.ggml.add_space_prefix"]), ("llama", prefix))
            self.assertEqual(f["tokenizer.ggml.token_type"][:4] + f["tokenizer.ggml.token_type"][259:261], [2, 3, 3, 6, 1, 1])
            scores = dict(zip(f["tokenizer.ggml.tokens"], f["tokenizer.ggml.scores"]))
            self.assertTrue(scores["th"] > scores["the"] > scores["\u2581the"] > scores["t"], scores)

    def test_what_cannot_be_said_is_refused_by_name(self):
        merged = {"model": {"byte_fallback": True}}
        cases = [
            ({"model_type": "gemma"}, {}, "model type gemma"),
            ({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}, {}, "quantization_config"),
            ({"model_type": "llama", "rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, {}, "`longrope`"),
            ({"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {}, "`dynamic`"),
            ({"model_type": "llama", "rope_scaling": {**YARN, "beta_fast": 16}}, {}, "`beta_fast`"),
            ({"model_type": "qwen2", "rope_scaling": LLAMA3}, {}, "`llama3`"),
            ({"model_type": "qwen3", "attention_bias": True}, {}, "`attention_bias`"),
            ({"model_type": "llama", "vocab_size": 200}, {}, "token id 261"),
            ({"model_type": "llama"}, {"model": {"type": "WordLevel"}}, "WordLevel"),
            ({"model_type": "llama"}, {"model": {"ignore_merges": True}}, "`ignore_merges` true"),
            ({"model_type": "llama"}, {"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
            ({"model_type": "llama"}, {"normalizer": {"type": "Lowercase"}}, "Lowercase"),
            ({"model_type": "llama"}, {"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
            ({"model_type": "llama"}, merged, "byte fallback"),
            ({"model_type": "llama"}, {"post_processor": {"type": "BertProcessing"}}, "BertProcessing"),
        ]
        for i, (config, changes, want) in enumerate(cases):
            write_model(self.at / "m", config, tensors=tensors_of({**BASE, **config}), tokens=tokenizer(**changes))
            why = exported(self.at / "m", self.at / "no.gguf")
            self.assertTrue(why and want in why and "\n" not in why, f"{want}: {why}")
            self.assertEqual([p.name for p in self.at.iterdir()], ["m"], want)
        config = FAMILIES["llama"]
        for name, change, want in [("model.layers.0.mlp.router.weight", np.ones(4, np.float32), "router"),
                                   ("model.norm.weight", None, "missing"), ("model.norm.weight", np.full(64, np.nan, np.float32), "NaN"),
                                   ("lm_head.weight", np.full((VOCAB, 64), 1e6, np.float32), "--type f32")]:
            tensors = tensors_of({**BASE, **config})
            tensors.pop(name, None) if change is None else tensors.update({name: change})
            write_model(self.at / "m", config, tensors=tensors)
            why = exported(self.at / "m", self.at / "no.gguf")
            self.assertTrue(why and want in why and not (self.at / "no.gguf").exists(), f"{want}: {why}")
        (self.at / "m" / "adapter_config.json").write_text("{}")
        self.assertIn("fusedpo merge", exported(self.at / "m", self.at / "no.gguf"))
        (self.at / "taken.gguf").write_text("mine")
        self.assertIn("--overwrite", exported(self.at / "m", self.at / "taken.gguf"))
        self.assertEqual((self.at / "taken.gguf").read_text(), "mine")

    def test_without_a_tokenizer(self):
        write_model(self.at / "m", FAMILIES["llama"], tokens={"model": {"type": "Unigram"}})
        self.assertIsNone(exported(self.at / "m", self.at / "m.gguf", "--without-tokenizer"))
        self.assertEqual(fields(gguf.GGUFReader(self.at / "m.gguf"))["tokenizer.ggml.model"], "none")


def greedy(path, prompts, tokens):
    """llama.cpp's greedy text, its cache in f32."""
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.verbosity = str(path), 256, 1, False, -1
    p.cpuparams.n_threads = 1
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, out = xllamacpp.Server(p), []
    for prompt in prompts:
        request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "top_k": 1, "cache_prompt": False}
        answer = server.handle_completions(request)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        out.append(answer["choices"][0]["text"])
    return out


def generated(model, prompts, tokens):
    """The program's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        command = [PROGRAM, "generate", "--model", model, "--input", path, "--max-new-tokens", str(tokens), "--temperature", "0",
                   "--chat-template", "none", "--device", "cpu"]
        ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise AssertionError(ran.stderr)
    return ran.stdout


@unittest.skipIf(gguf is None or xllamacpp is None or not PROGRAM.exists(), "skipped: needs gguf, xllamacpp and a built program")
class Texts(unittest.TestCase):
    PROMPTS = ["the quick brown", "a  b, c 12345!", "x" * 90, "thethe \u00fc\u4f60 the"]

    def test_llama_cpp_says_what_the_program_says(self):
        with tempfile.TemporaryDirectory() as folder:
            for family, config in FAMILIES.items():
                at = Path(folder) / family
                write_model(at, config)
                self.assertIsNone(exported(at, Path(folder) / "m.gguf", "--type", "f32", "--overwrite"))
                ours = [json.loads(line)["completion"] for line in generated(at, self.PROMPTS, 12).splitlines()]
                theirs = greedy(Path(folder) / "m.gguf", self.PROMPTS, 12)
                self.assertEqual(theirs, ours, family)
                self.assertGreater(len(set("".join(ours))), 5, "texts of a single letter show nothing")


    def check_model(self, model, kind, prompts):
        with tempfile.TemporaryDirectory() as folder:
            self.assertIsNone(exported(model, Path(folder) / "m.gguf", "--type", kind))
            ours = [json.loads(line)["completion"] for line in generated(model, prompts, 24).splitlines()]
            theirs = greedy(Path(folder) / "m.gguf", prompts, 24)
        # A SentencePiece-like decoder takes a space from the front of a text.
        self.assertEqual([t.lstrip() for t in theirs], [o.lstrip() for o in ours])

    def test_stories(self):
        data = os.environ.get("FUSEDPO_TEST_DATA")
        if not data:
            self.skipTest("FUSEDPO_TEST_DATA is not set")
        self.check_model(Path(data) / "data/stories260k", "f32", ["Once upon a time", "Lily and Tom", " 3 cats", "Caf\u00e9 \u4f60 <s>"])

    def test_smollm2(self):
        model = os.environ.get("FUSEDPO_TEST_MODEL")
        if not model:
            self.skipTest("FUSEDPO_TEST_MODEL is not set")
        self.check_model(Path(model), "f16", ["The capital of France is", "\u00dcber 1234  stra\u00dfe:\tx", "def f(n):\n    return",
                                              "<|im_start|>user\nHow many legs have 3 cats?<|im_end|>\n<|im_start|>assistant\n"])


if __name__ == "__main__":
    unittest.main()
