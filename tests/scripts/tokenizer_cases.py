"""Makes tokenizer folders at random and says what transformers 5 makes of them.

    python tokenizer_cases.py OUT COUNT SEED

Every folder of OUT has a small tokenizer.json (BPE, WordLevel, WordPiece, Unigram) and, at random, the files that add tokens to it.
OUT/cases.jsonl has a line for each: its name, texts, and their ids with and without special tokens, or why it is refused.
What transformers makes of the folder when it saves it is in its folder `resaved`; `again` are the ids that it gives.
"""

import json
import os
import random
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoTokenizer, logging  # noqa: E402

logging.set_verbosity_error()

CORPUS = [
    "the quick brown fox jumps over the lazy dog and then the other one in on another",
    "Hello world, this is a test. It's not the end: 12345 and 67, don't stop!",
    "été naïve café façade — 日本語 text 😀 and\nnew lines\n\nfollow here \t tabs",
    "call the function foo and bar with baz; return x y z <s> text </s> again",
]
CONTENTS = [
    "<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<call>", "</call>", "foo", "bar baz", "é", " x", "▁the",
    "Ġthe", "the", "THE", "<|endoftext|>", "<mask>", "[SEP]", "日", "\n\n", "a", "😀", "ﬁ", "<extra_0>", "th",
]  # fmt: skip
PIECES = CONTENTS + [
    " ", "  ", "the ", " quick", "Hello", "world", ".", ",", "'t", "n't", "12345", " 7", "é", "e\u0301", "日本", "x", "y z",
    "\n", "\t", "<", ">", "call", "Foo", "  the", "▁", "ß", "İ", "\u200d", "don't", "\r\n", "zq", "(", "ſ",
]  # fmt: skip
NAMED = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
CLASSES = [
    "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer",
    "GPT2TokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPTNeoXTokenizerFast", "PreTrainedTokenizer", "NoSuchTokenizer",
]  # fmt: skip


def base(rng):
    kind = rng.choice(["bytes", "bytes", "meta", "meta", "level", "piece", "unigram", "chars"])
    size = rng.randint(300, 420)
    special = rng.sample(["<s>", "</s>", "<unk>", "<pad>"], rng.randint(1, 4))
    if "<unk>" not in special:
        special.append("<unk>")
    if kind == "bytes":
        tok = Tokenizer(models.BPE(fuse_unk=rng.random() < 0.2, ignore_merges=rng.random() < 0.2))
        tok.pre_tokenizer = rng.choice(
            [
                pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.3),
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                ),
                pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), behavior="isolated"),
                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                    ]
                ),
            ]
        )
        tok.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    elif kind in ("meta", "chars"):
        fallback = kind == "meta"
        tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=rng.random() < 0.7))
        if rng.random() < 0.5:
            tok.pre_tokenizer = pre_tokenizers.Metaspace(
                prepend_scheme=rng.choice(["always", "first", "never"]), split=rng.random() < 0.3
            )
        else:
            tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        more = [f"<0x{b:02X}>" for b in range(256)] if fallback else []
        trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special + more, show_progress=False)
    elif kind == "level":
        tok = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tok.pre_tokenizer = rng.choice([pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit()])
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    elif kind == "piece":
        tok = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tok.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        tok = Tokenizer(models.Unigram())
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=rng.choice(["always", "first"]))
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tok.train_from_iterator(CORPUS, trainer)
    return tok


def flags(rng, content):
    some = lambda p: rng.random() < p  # noqa: E731
    return {
        "content": content, "lstrip": some(0.2), "rstrip": some(0.2), "single_word": some(0.15),
        "normalized": some(0.5), "special": some(0.6),
    }  # fmt: skip


def folder(rng, tok, path):
    """Writes a folder; returns nothing: what it holds is what transformers reads."""
    tok = Tokenizer.from_str(tok.to_str())
    if rng.random() < 0.35:
        tok.normalizer = rng.choice(
            [
                normalizers.NFC(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(),
                normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
                normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
            ]
        )  # fmt: skip
    vocab = tok.get_vocab()
    for _ in range(rng.choice([0, 0, 1, 2, 4])):
        t = flags(rng, rng.choice(CONTENTS))
        tok.add_tokens([AddedToken(**t)])
    vocab = tok.get_vocab()
    around = [t for t in ("<s>", "</s>", "<pad>") if t in vocab]
    if around and rng.random() < 0.4:
        one, two = rng.choice(around), rng.choice(around)
        single = rng.choice([f"{one} $A", f"$A {two}", f"{one} $A {two}", f"{one} {two} $A"])
        tok.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(t, vocab[t]) for t in {one, two}]
        )
    elif rng.random() < 0.2:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    desc = json.loads(tok.to_str())
    if rng.random() < 0.3:  # an old file: merges as text, and no defaults
        model = desc["model"]
        if "merges" in model and not any(" " in a or " " in b for a, b in model["merges"]):
            model["merges"] = [f"{a} {b}" for a, b in model["merges"]]
        model.pop("ignore_merges", None)
    if rng.random() < 0.15:
        desc["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    if rng.random() < 0.15:
        desc["padding"] = {
            "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": rng.choice(["<pad>", "<filler>"]),
        }  # fmt: skip
    dump(path, "tokenizer.json", desc)

    def token(typed):
        content = rng.choice(CONTENTS)
        if rng.random() < 0.65:
            return content
        t = flags(rng, content)
        if typed:
            t["__type"] = "AddedToken"
        return t

    config = {}
    for name in NAMED:
        if rng.random() < 0.3:
            config[name] = token(True) if rng.random() < 0.9 else None
    if rng.random() < 0.5:
        config["tokenizer_class"] = rng.choice(CLASSES)
    if rng.random() < 0.2:
        config[rng.choice(["extra_special_tokens", "additional_special_tokens"])] = [
            rng.choice(CONTENTS) for _ in range(rng.randint(0, 3))
        ]
    elif rng.random() < 0.15:
        config["extra_special_tokens"] = {f"{n}_token": rng.choice(CONTENTS) for n in ("image", "audio")}
    if rng.random() < 0.15:
        config["image_token"] = token(True)
    if rng.random() < 0.35:
        start = rng.choice([0, len(vocab), len(vocab) - 2, 10_000])
        config["added_tokens_decoder"] = {
            str(start + i): flags(rng, rng.choice(CONTENTS)) for i in range(rng.randint(0, 5))
        }
        if rng.random() < 0.3:
            for t in config["added_tokens_decoder"].values():
                t.pop(rng.choice(list(t)[1:]))
    for key, values in [
        ("add_bos_token", [True, False]),
        ("add_eos_token", [True]),
        ("add_prefix_space", [True, False]),
        ("legacy", [True, False, None]),
        ("split_special_tokens", [True, False]),
        ("model_max_length", [512]),
    ]:
        if rng.random() < 0.12:
            config[key] = rng.choice(values)
    if rng.random() < 0.9:
        dump(path, "tokenizer_config.json", config)
    if rng.random() < 0.3:
        m = {n: token(False) for n in NAMED if rng.random() < 0.4}
        if rng.random() < 0.3:
            m["additional_special_tokens"] = [rng.choice(CONTENTS) for _ in range(rng.randint(0, 2))]
        if rng.random() < 0.1:
            m["extra_special_tokens"] = [rng.choice(CONTENTS)]
        if rng.random() < 0.2:
            m["video_token"] = token(False)
        dump(path, "special_tokens_map.json", m)
    if rng.random() < 0.3:
        start = rng.choice([len(vocab), len(vocab) + 7, 3])
        dump(path, "added_tokens.json", {t: start + i for i, t in enumerate(rng.sample(CONTENTS, rng.randint(0, 4)))})
    if rng.random() < 0.7:
        dump(path, "config.json", {"model_type": rng.choice(["llama", "llama", "mistral", "qwen2", "qwen3"])})


def mistral(rng, path):
    """Makes it large, as only Mistral's are for transformers, and asks for what mends their pattern; not always."""
    load = lambda name: json.load(open(os.path.join(path, name), encoding="utf-8"))  # noqa: E731, SIM115
    desc = load("tokenizer.json")
    first = 1 + max([t["id"] for t in desc["added_tokens"]] + [len(desc["model"]["vocab"])])
    more = [f"<x{i}>" for i in range(first, rng.choice([99_000, 100_001, 100_001, 100_400]))]
    vocab = desc["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab.update({t: first + i for i, t in enumerate(more)})
    else:
        vocab.extend([t, -20.0] for t in more)
    if rng.random() < 0.15:
        desc["pre_tokenizer"] = rng.choice([None, {"type": "Sequence", "pretokenizers": []}])
    dump(path, "tokenizer.json", desc)
    name = os.path.join(path, "tokenizer_config.json")
    config = load("tokenizer_config.json") if os.path.exists(name) else {}
    if rng.random() < 0.9:
        config["fix_mistral_regex"] = rng.choice([True, True, True, True, 1, False, None])
    dump(path, "tokenizer_config.json", config)
    model = {"model_type": rng.choice(["mistral"] * 5 + ["llama", "ministral", "qwen2"])}
    if rng.random() < 0.6:
        model["transformers_version"] = rng.choice(["4.57.1", "4.50.0.dev0", "5.0.0rc1", "5.0.0", "5.23.0", "", None])
    if rng.random() < 0.9:
        dump(path, "config.json", model)


def dump(path, name, value):
    with open(os.path.join(path, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False)


def ids(t, text, special):
    """None where the library panics, as it does where added tokens that strip spaces overlap."""
    try:
        return t(text, add_special_tokens=special)["input_ids"]
    except BaseException as e:  # noqa: BLE001
        if type(e).__name__ != "PanicException":
            raise
        return None


def main():
    out, count, rng = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))
    bases = [base(rng) for _ in range(min(24, 4 + count // 4))]
    with open(os.path.join(out, "cases.jsonl"), "w", encoding="utf-8") as told:
        for i in range(count):
            name = f"{i:06}"
            path = os.path.join(out, name)
            os.mkdir(path)
            folder(rng, rng.choice(bases), path)
            if sys.argv[4:] == ["mistral"]:
                mistral(rng, path)
            texts = ["".join(rng.choice(PIECES) for _ in range(rng.randint(0, 9))) for _ in range(8)]
            case = {"name": name, "texts": texts, "error": None}
            try:
                t = AutoTokenizer.from_pretrained(path)
                case["ids"] = [ids(t, x, True) for x in texts]
                case["bare"] = [ids(t, x, False) for x in texts]
                case["named"] = t.special_tokens_map
                case["eos"] = None if t.eos_token is None else t.eos_token_id
                case["class"] = type(t).__name__
                case["len"] = max(t.get_vocab().values()) + 1
                resaved = os.path.join(path, "resaved")
                t.save_pretrained(resaved)
                t = AutoTokenizer.from_pretrained(resaved)
                case["again"] = [ids(t, x, True) for x in texts]
            except Exception as e:  # noqa: BLE001
                case["error"] = f"{type(e).__name__}: {e}"[:200]
            told.write(json.dumps(case) + "\n")


main()
