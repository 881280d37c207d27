"""A Llama forward pass in plain torch, one sequence at a time: the oracle where transformers is not installed.

Usage:   from plain_llama import PlainLlama; PlainLlama(directory, dtype, device).token_logps(prompt_ids, response_ids)
Input:   a Hugging Face directory: Llama or Qwen2 with one model.safetensors, rotary embeddings without scaling.
Output:  log-probability of each response token, float64, on the CPU. Every operation rounds to the dtype, as a plain
         implementation does; softmax and norms compute in float32 (float64 where that is the dtype).
Needs:   torch.
"""

import json
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def read_safetensors(path):
    """Name -> tensor."""
    data = bytearray(Path(path).read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(bytes(data[8 : 8 + length]))
    result = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in info["data_offsets"])
        dtype = DTYPES[info["dtype"]]
        count = (end - begin) // torch.empty((), dtype=dtype).element_size()
        result[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(info["shape"])
    return result


class PlainLlama:
    def __init__(self, directory, dtype, device="cpu"):
        directory = Path(directory)
        self.config = config = json.loads((directory / "config.json").read_text())
        if config["model_type"] not in ("llama", "qwen2") or config.get("rope_scaling"):
            raise ValueError(f"{directory}: plain_llama knows Llama and Qwen2 without scaled rotary embeddings")
        self.weights = {name: t.to(device, dtype) for name, t in read_safetensors(directory / "model.safetensors").items()}
        self.dtype, self.device = dtype, device
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        heads = config["num_attention_heads"]
        self.head_dim = config.get("head_dim") or config["hidden_size"] // heads

    def linear(self, x, name):
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def norm(self, x, name):
        wide = x.to(self.wide)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return normed.to(self.dtype) * self.weights[name + ".weight"]

    def rotate(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x, layer, cos, sin):
        n, hd = x.shape[0], self.head_dim
        split = lambda name: self.linear(x, f"{layer}self_attn.{name}_proj").view(n, -1, hd).transpose(0, 1)
        q, k, v = self.rotate(split("q"), cos, sin), self.rotate(split("k"), cos, sin), split("v")
        repeat = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = (q @ k.transpose(1, 2)).to(self.wide) * hd**-0.5
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), float("-inf"))
        out = scores.softmax(-1).to(self.dtype) @ v
        return self.linear(out.transpose(0, 1).reshape(n, -1), f"{layer}self_attn.o_proj")

    @torch.no_grad()
    def hidden(self, ids):
        x = self.weights["model.embed_tokens.weight"][ids]
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=self.device) / self.head_dim
        angles = torch.arange(len(ids), dtype=torch.float64, device=self.device)[:, None] * self.config.get("rope_theta", 1e4) ** -half
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            x = x + self.attention(self.norm(x, layer + "input_layernorm"), layer, cos, sin)
            y = self.norm(x, layer + "post_attention_layernorm")
            y = F.silu(self.linear(y, layer + "mlp.gate_proj")) * self.linear(y, layer + "mlp.up_proj")
            x = x + self.linear(y, layer + "mlp.down_proj")
        return self.norm(x, "model.norm")

    @torch.no_grad()
    def token_logps(self, prompt, response):
        """Without a prompt the first response token has no predictor and is left out."""
        scored = response if prompt else response[1:]
        hidden = self.hidden(torch.tensor(prompt + response, device=self.device))[-len(scored) - 1 : -1]
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        logits = F.linear(hidden, head).to(torch.float64)
        target = torch.tensor(scored, device=self.device)
        return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0].cpu()
