"""A tokenizer of one word a token, for made-up models: commands that must be given a tokenizer then take them too.

Usage:   from word_tokenizer import EOS, write_tokenizer     (a module; it has no command line)
Output:  tokenizer.json and tokenizer_config.json; ids 0, 1, 2 are <unk>, <s>, </s>, id N is the word "wN".
Needs:   Python alone.
"""

import json

SPECIAL = ("<unk>", "<s>", "</s>")
EOS = 2


def write_tokenizer(folder, vocab):
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocab))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": word, **flags} for i, word in enumerate(SPECIAL)],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
