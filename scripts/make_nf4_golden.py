#!/usr/bin/env python3
"""Makes tests/golden/nf4/: tensors, and what bitsandbytes makes of them on a CPU: cases.safetensors; and small model
directories that transformers wrote with them, with the log-probs that it computes: models.json.

For tests/model/nf4.rs: with --inputs FILE --out FILE, what bitsandbytes makes of every tensor in FILE (safetensors); with
--load DIR, the log-probs of the golden's rows under the model that transformers loads from DIR, as JSON on stdout.

Needs torch, bitsandbytes, safetensors; for the directories transformers and accelerate.
Run from the project's root: python scripts/make_nf4_golden.py
"""
import argparse
import json
import os
from pathlib import Path

# The mean of the magnitudes is summed in an order that depends on both; these are the ones that fusedpo has.
os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch  # noqa: E402

torch.set_num_threads(1)
import bitsandbytes.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

GOLDEN = Path("tests/golden")
HERE = GOLDEN / "nf4"


def back(codes, state):
    """The numbers again. bitsandbytes 0.50.2's AVX-512 code mixes up the blocks of rows that are a multiple of 16 long and not of
    64, which no GPU does: for those, the formula of its code for other devices."""
    if state.shape[-1] % 16 or state.shape[-1] % 64 == 0:
        return F.dequantize_4bit(codes, state).reshape(state.shape)
    absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    places = torch.stack([codes.flatten() >> 4, codes.flatten() & 15], dim=1).flatten()[: state.shape.numel()].int()
    scale = absmax.repeat_interleave(state.blocksize)[: state.shape.numel()]
    return (state.code[places] * scale).to(state.dtype).reshape(state.shape)


def made(name, tensor):
    """What the two ways of quantising give, by bitsandbytes' names, and what is read back."""
    out = {}
    for kind, double in [("plain", False), ("double", True)]:
        codes, state = F.quantize_4bit(tensor, quant_type="nf4", compress_statistics=double)
        out[f"{name}.{kind}.weight"] = codes
        for key, value in state.as_dict(packed=True).items():
            out[f"{name}.{kind}.weight.{key}"] = value
        out[f"{name}.{kind}.back"] = back(codes, state)
    return {k: v.contiguous().clone() for k, v in out.items()}


def tensors():
    """Small tensors of every kind: odd sizes, zeros, constants, huge and tiny numbers, levels and the places between."""
    g = torch.Generator().manual_seed(16)
    code = F.get_4bit_type("nf4", device="cpu")
    between = (code[1:] + code[:-1]) / 2
    normal = lambda *shape: torch.randn(*shape, generator=g)
    few = {
        "one": torch.tensor([[0.3]]),
        "pair": torch.tensor([[0.0, -2.0]]),
        "odd": normal(7, 9),
        "block": normal(8, 8),
        "partial": normal(13, 11),
        "many": normal(53, 62) * torch.logspace(-3, 1, 62),
        "zeros": torch.zeros(3, 30),
        "constant": torch.full((5, 40), -0.37),
        "huge": normal(4, 33) * 1e36,
        "tiny": normal(4, 33) * 1e-40,
        "some-zero": torch.cat([normal(64), torch.zeros(64), normal(10)]).reshape(6, 23),
        "levels": code.repeat(10).reshape(16, 10),
        "between": torch.cat([between, torch.nextafter(between, torch.full_like(between, 2.0)), code[:2], -code[:2]]).repeat(4)[:130].reshape(10, 13),
    }
    all = {f"{k}-f32": v for k, v in few.items()}
    for k in ["odd", "partial", "many", "constant", "between"]:
        all[f"{k}-bf16"] = few[k].bfloat16()
        all[f"{k}-f16"] = few[k].half()
    all["tiny-bf16"] = few["tiny"].bfloat16()
    all["tiny-f16"] = (normal(4, 33) * 1e-6).half()
    return {k: v.contiguous() for k, v in all.items()}


def logps(model, prompt, response):
    ids = torch.tensor([prompt + response])
    table = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return sum(table[i - 1, ids[0, i]].item() for i in range(max(len(prompt), 1), ids.shape[1]))


def dense_logps(base, held):
    """Computed in f32 all through, from the weights that four bits leave."""
    import transformers

    golden = json.loads((GOLDEN / "golden.json").read_text())
    plain = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / base, dtype=torch.float32, attn_implementation="eager")
    left = {k: back(p, p.quant_state) if p.dtype == torch.uint8 else p for k, p in held.named_parameters()}
    plain.load_state_dict(left, strict=not plain.config.tie_word_embeddings)
    with torch.no_grad():
        return [logps(plain, r["prompt_ids"], x) for r in golden["rows"] for x in r["responses_ids"]]


# Base, folder, double quantisation, dtype, and what stays as it is: by the end of a name, by its beginning, by a regular expression.
MODELS = [
    ("qwen2", "qwen2-plain", False, "float32", None),
    ("llama3-tied", "llama3-tied-double", True, "bfloat16", None),
    ("qwen2", "qwen2-skip", False, "float32", ["lm_head", "k_proj", "model.layers.1.mlp", r"model.layers.\d+.self_attn.o_proj"]),
    ("llama3-tied", "llama3-tied-skip", True, "bfloat16", ["lm_head", "0.self_attn.q_proj", "up_proj", "model.layers.1.mlp.gate"]),
]


def models():
    import transformers

    said = {}
    for base, name, double, dtype, skip in MODELS:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype="float32",
            llm_int8_skip_modules=skip,
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            GOLDEN / base, dtype=getattr(torch, dtype), quantization_config=config, device_map="cpu", attn_implementation="eager"
        )
        model.save_pretrained(HERE / name)
        said[name] = dense_logps(base, model)
    return said


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--base", help="with --load: the golden model that DIR was made of")
    args = parser.parse_args()
    if args.load:
        import transformers

        held = transformers.AutoModelForCausalLM.from_pretrained(args.load, device_map="cpu")
        assert any(p.dtype == torch.uint8 for p in held.parameters())
        return print(json.dumps(dense_logps(args.base, held)))
    if args.inputs:
        given = load_file(args.inputs)
        save_file({k: v for name, t in given.items() for k, v in made(name, t).items()}, args.out)
        return
    HERE.mkdir(exist_ok=True)
    given = tensors()
    cases = {f"{name}.input": t for name, t in given.items()}
    for name, t in given.items():
        cases |= made(name, t)
        # The same 256 and 16 numbers in all of them.
        for key in [f"{name}.{kind}.weight.{map}" for kind in ["plain", "double"] for map in ["quant_map", "nested_quant_map"]]:
            if key in cases and name != "one-f32":
                del cases[key]
    save_file(cases, HERE / "cases.safetensors")
    (HERE / "models.json").write_text(json.dumps(models()) + "\n")


if __name__ == "__main__":
    main()
