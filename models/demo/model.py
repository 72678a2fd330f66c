"""The Qwen3 architecture in plain PyTorch, for training on a CPU, and its Hugging Face files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: Keys and values of every layer, each (1, kv_heads, tokens, head_dim).
Cache = list[tuple[Tensor, Tensor]]


@dataclass
class Shape:
    vocab: int = 2048
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 512
    theta: float = 1e6
    eps: float = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, chunk: int = 128) -> Tensor:
    """Plain attention, a chunk of queries at a time so that most of the masked half is never computed.

    Compiled, this is three times as fast on one core as PyTorch's own, forward and backward.
    """
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out = []
    for start in range(0, q.shape[2], chunk):
        end = min(start + chunk, q.shape[2])
        scores = (q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)).float() * q.shape[3] ** -0.5
        future = torch.arange(end)[None, :] > torch.arange(start, end)[:, None]
        weights = scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype)
        out.append(weights @ v[:, :, :end])
    return torch.cat(out, 2)


def attention_after(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor) -> Tensor:
    """Causal attention of every row behind the same past, whose keys and values are (1, heads, tokens, head_dim).

    The queries of all rows meet the past in one product, so that a long past costs no copies.
    """
    batch, heads, length, size = q.shape
    flat = q.transpose(0, 1).reshape(heads, batch * length, size)
    old = (flat @ past_k[0].transpose(-1, -2)).float() * size**-0.5
    new = (q @ k.transpose(-1, -2)).float() * size**-0.5
    future = torch.arange(length)[None, :] > torch.arange(length)[:, None]
    new = new.masked_fill(future, float("-inf")).transpose(0, 1).reshape(heads, batch * length, length)
    highest = torch.maximum(old.amax(-1, keepdim=True), new.amax(-1, keepdim=True)).detach()
    old, new = (old - highest).exp(), (new - highest).exp()
    total = old.sum(-1, keepdim=True) + new.sum(-1, keepdim=True)
    from_old = old.to(v.dtype) @ past_v[0]
    from_new = new.to(v.dtype).view(heads * batch, length, length) @ v.transpose(0, 1).reshape(heads * batch, length, size)
    out = (from_old.float() + from_new.view(heads, batch * length, size).float()) / total
    return out.to(v.dtype).view(heads, batch, length, size).transpose(0, 1)


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.q_proj = nn.Linear(shape.hidden, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.gate_proj = nn.Linear(shape.hidden, shape.ff, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ff, bias=False)
        self.down_proj = nn.Linear(shape.ff, shape.hidden, bias=False)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, (batch, length, _) = self.shape, x.shape
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(self.input_layernorm(x), weight).view(batch, length, -1, s.head_dim)
        q, k, v = heads.split((s.heads, s.kv_heads, s.kv_heads), dim=2)
        q = rotate(self.q_norm(q), cos, sin).to(v.dtype).transpose(1, 2)
        k = rotate(self.k_norm(k), cos, sin).to(v.dtype).transpose(1, 2)
        return q, k, v.transpose(1, 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_attention_layernorm(x)
        gate, up = F.linear(h, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x, cos, sin)
        repeat = self.shape.heads // self.shape.kv_heads
        return self.finish(x, causal_attention(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)))

    def forward_after(self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor) -> Tensor:
        """As forward, behind keys and values of a past that all rows share."""
        q, k, v = self.qkv(x, cos, sin)
        repeat = self.shape.heads // self.shape.kv_heads
        k, v, past_k, past_v = (t.repeat_interleave(repeat, 1).to(q.dtype) for t in (k, v, past_k, past_v))
        return self.finish(x, attention_after(q, k, v, past_k, past_v))

    def remember(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As forward, also returning keys and values; for long inputs, without gradient."""
        q, k, v = self.qkv(x, cos, sin)
        repeat = self.shape.heads // self.shape.kv_heads
        attended = F.scaled_dot_product_attention(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), is_causal=True)
        return self.finish(x, attended), (k, v)


class Model(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.eps)
        frequencies = shape.theta ** (-torch.arange(0, shape.head_dim, 2).double() / shape.head_dim)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.embed.weight, std=0.02)
        for block in self.blocks:
            for name, parameter in block.named_parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * 0.6)
                if name in ("o_proj.weight", "down_proj.weight"):
                    nn.init.zeros_(parameter)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[:, :, None, None].float() * self.frequencies
        return angle.cos(), angle.sin()

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states after the last norm."""
        x, (cos, sin) = self.embed(ids), self.angles(positions)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    def forward_after(self, ids: Tensor, positions: Tensor, past: Cache) -> Tensor:
        x, (cos, sin) = self.embed(ids), self.angles(positions)
        for block, (past_k, past_v) in zip(self.blocks, past):
            x = block.forward_after(x, cos, sin, past_k, past_v)
        return self.norm(x)

    @torch.no_grad()
    def remember(self, ids: list[int]) -> Cache:
        """Keys and values of a text from position 0 on."""
        x, (cos, sin) = self.embed(torch.tensor([ids])), self.angles(torch.arange(len(ids))[None])
        cache: Cache = []
        for block in self.blocks:
            x, pair = block.remember(x, cos, sin)
            cache.append(pair)
        return cache

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.weight)

    # --- Hugging Face files ---

    def _names(self) -> dict[str, str]:
        names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
        for name, _ in self.named_parameters():
            if name.startswith("blocks."):
                _, layer, rest = name.split(".", 2)
                part = "self_attn." if rest.split("_")[0] in ("q", "k", "v", "o") else "mlp." if "proj" in rest else ""
                names[name] = f"model.layers.{layer}.{part}{rest}"
        return names

    def save(self, folder: Path) -> None:
        """Writes weights and configurations; each file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(self.named_parameters())
        tensors = {hf: state[own].detach().to(torch.bfloat16).contiguous() for own, hf in self._names().items()}
        temporary = folder / ".model.safetensors.part"
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
        os.replace(temporary, folder / "model.safetensors")
        s = self.shape
        config = {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": s.vocab,
            "hidden_size": s.hidden,
            "intermediate_size": s.ff,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rms_norm_eps": s.eps,
            "rope_theta": s.theta,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_cache": True,
            "initializer_range": 0.02,
            "bos_token_id": None,
            "eos_token_id": s.vocab - 9,
            "pad_token_id": s.vocab - 11,
            "torch_dtype": "bfloat16",
        }
        generation = {"do_sample": False, "eos_token_id": [s.vocab - 9, s.vocab - 11], "pad_token_id": s.vocab - 11}
        for name, value in {"config.json": config, "generation_config.json": generation}.items():
            (folder / f".{name}.part").write_text(json.dumps(value, indent=2) + "\n")
            os.replace(folder / f".{name}.part", folder / name)

    @classmethod
    def load(cls, folder: Path) -> Model:
        config = json.loads((folder / "config.json").read_text())
        model = cls(
            Shape(config["vocab_size"], config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"],
                  config["num_key_value_heads"], config["head_dim"], config["intermediate_size"], config["rope_theta"], config["rms_norm_eps"])
        )
        tensors = load_file(folder / "model.safetensors")
        model.load_state_dict({own: tensors[hf].float() for own, hf in model._names().items()})
        return model

    def describe(self) -> dict:
        return asdict(self.shape) | {"parameters": sum(p.numel() for p in self.parameters())}
