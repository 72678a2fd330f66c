#!/usr/bin/env python3
"""Write tests/fixtures/: tiny random-weight checkpoints with reference logits, and tokenizers in two formats.

usage: make_reference_fixtures.py [OUT_DIR]          (default: tests/fixtures beside this script's folder)
needs: pip install torch transformers tokenizers safetensors gguf numpy

reference/{qwen3,qwen2,llama3}/
    config.json, generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors
    model-f16.gguf         the same weights (they are exact in f16)
    model-q8_0.gguf        the same weights, quantized
    reference.safetensors  prompt [P]; logits [17, V] and tokens [17]: at the last prompt position and after
                           each of 16 greedy tokens, by transformers in float32; logits_q8_0 and tokens_q8_0:
                           the same with the quantized weights dequantized
reference/element_types.{gguf,safetensors}
    one tensor of each GGUF element type, and its values by the gguf package
tokenizers/{gpt2,smollm,sentencepiece}/tokenizer.{json,gguf}
    the same tokenizer in both formats (a GGUF file without tensors)
"""
import itertools
import json
import os
import sys

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import generate_merges

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "..", "tests", "fixtures")
DECODE_STEPS = 16
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n'"
    " + message.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_USER_DEFINED = ["<tool_call>", "</tool_call>"]
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

# Shapes: grouped queries, heads whose size is not hidden / heads (qwen3), biases (qwen2), rope scaling (llama3).
COMMON = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=512, attention_dropout=0.0,
              initializer_range=0.02, use_cache=True)
CHECKPOINTS = {
    "qwen3": dict(COMMON, architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=320, head_dim=32,
                  attention_bias=False, rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
                  tie_word_embeddings=True, use_sliding_window=False, dtype="bfloat16"),
    "qwen2": dict(COMMON, architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=304, rope_theta=10000.0,
                  rope_scaling=None, tie_word_embeddings=False, use_sliding_window=False, torch_dtype="float16"),
    "llama3": dict(COMMON, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=320, rope_theta=10000.0,
                   attention_bias=False, mlp_bias=False, tie_word_embeddings=True, torch_dtype="float32",
                   rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                     original_max_position_embeddings=64)),
}
STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def corpus():
    with open(os.path.join(OUT, "tokenizers", "corpus.txt"), encoding="utf-8") as file:
        return file.read()


# ---------------------------------------------------------------------------------------------- tokenizers

def byte_level(kind, entries, specials, user_defined=()):
    """A byte-level BPE tokenizer of `entries` tokens, special ones last; splitting as `kind` does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    steps = {
        "qwen2": lambda: [pre_tokenizers.Split(Regex(WORDS % ""), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        "llama3": lambda: [pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        "gpt2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    }[kind]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=entries - len(specials) - len(user_defined), min_frequency=1, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([corpus()], trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in user_defined])
    if kind == "llama3":
        begin = specials[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, tokenizer.token_to_id(begin))])
    assert tokenizer.get_vocab_size() == entries, tokenizer.get_vocab_size()
    return tokenizer


def sentencepiece(entries):
    """A SentencePiece-like BPE with byte fallback as transformers converts Llama 2's; and its pieces' scores."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁(?!▁)"), "merged_with_next")
    ascii_text = "".join(c for c in corpus() if ord(c) < 0x250 and c != "\n")
    trained.train_from_iterator([ascii_text], trainers.BpeTrainer(vocab_size=entries - 259, min_frequency=1, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    letters = [piece for piece in sorted(learned["vocab"], key=learned["vocab"].get) if len(piece) == 1]
    merged = list(dict.fromkeys("".join(m) if isinstance(m, list) else m.replace(" ", "") for m in learned["merges"]))
    specials = ["<unk>", "<s>", "</s>"]
    pieces = specials + [f"<0x{byte:02X}>" for byte in range(256)] + merged + letters
    types = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(letters))
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(merged) + len(letters))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    assert len(vocab) == len(pieces)
    merges = generate_merges(vocab, dict(zip(pieces, scores)))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer, pieces, types, scores


def add_byte_level(writer, tokenizer, pre, names):
    """The metadata of a byte-level BPE tokenizer; `names` gives special token ids by their GGUF name."""
    data = json.loads(tokenizer.to_str())
    tokens = dict((index, text) for text, index in data["model"]["vocab"].items())
    types = {index: 1 for index in tokens}
    for added in data["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = 3 if added["special"] else 4
    order = range(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens[index] for index in order])
    writer.add_token_types([types[index] for index in order])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    for name, text in names.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", tokenizer.token_to_id(text))


def write_tokenizers():
    for kind, pre in (("gpt2", "gpt-2"), ("smollm", "smollm")):
        folder = os.path.join(OUT, "tokenizers", kind)
        os.makedirs(folder, exist_ok=True)
        tokenizer = byte_level(kind, 384, ["<|endoftext|>"], ["<tool_call>"])
        tokenizer.save(os.path.join(folder, "tokenizer.json"))
        writer = gguf.GGUFWriter(os.path.join(folder, "tokenizer.gguf"), "qwen2")
        add_byte_level(writer, tokenizer, pre, dict(eos="<|endoftext|>", bos="<|endoftext|>"))
        finish(writer)
    folder = os.path.join(OUT, "tokenizers", "sentencepiece")
    os.makedirs(folder, exist_ok=True)
    tokenizer, pieces, types, scores = sentencepiece(640)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    writer = gguf.GGUFWriter(os.path.join(folder, "tokenizer.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------------------------------------- checkpoints

def random_weights(model, seed):
    """Weights large enough to matter, and exact in bf16, f16 and f32 alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias") or "o_proj" in name or "down_proj" in name:
            value = 0.4 * noise  # so that the layers, not the embedding, decide
        else:
            value = 0.15 * noise
        value = value.to(torch.bfloat16).to(torch.float32)
        value[value.abs() < 2.0 ** -10] = 0.0
        parameter.data.copy_(value)


class TooClose(Exception):
    """Two tokens are so close that rounding could choose between them: another seed is needed."""


def greedy(model, prompt):
    """Logits at the last prompt position and after each greedy token, and these tokens; without a cache."""
    ids, logits, tokens = list(prompt), [], []
    with torch.no_grad():
        for _ in range(DECODE_STEPS + 1):
            row = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            best = torch.topk(row, 2)
            if best.values[0] - best.values[1] < 1e-3 * row.abs().max():
                raise TooClose
            logits.append(row.numpy().copy())
            tokens.append(int(best.indices[0]))
            ids.append(tokens[-1])
    return np.stack(logits), np.array(tokens, np.int32)


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    part = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
            "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}[module]
    return f"blk.{layer}.{part}.{kind}"


def interleave(weight, heads):
    """The row order of llama GGUF files: rotary pairs side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(config):
    """The content of rope_freqs.weight, as llama.cpp's converter computes it."""
    scaling, dim = config["rope_scaling"], config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1.0 / config["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    divisors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < high:
            divisors.append(1.0)
        elif wavelength > low:
            divisors.append(scaling["factor"])
        else:
            smooth = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
            divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def write_gguf(path, name, config, weights, tokenizer, template, quantized):
    """The checkpoint as GGUF: matrices in f16, or in Q8_0."""
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture == "llama":
        add_byte_level(writer, tokenizer, "llama-bpe", dict(bos="<|begin_of_text|>", eos="<|eot_id|>"))
        writer.add_add_bos_token(True)
    else:
        add_byte_level(writer, tokenizer, "qwen2", dict(bos="<|endoftext|>", eos="<|im_end|>", padding="<|endoftext|>"))
        writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    for tensor_name, value in weights.items():
        value = value.numpy()
        if architecture == "llama" and "q_proj" in tensor_name:
            value = interleave(value, config["num_attention_heads"])
        if architecture == "llama" and "k_proj" in tensor_name:
            value = interleave(value, config["num_key_value_heads"])
        value = np.ascontiguousarray(value)
        if value.ndim == 1:
            writer.add_tensor(gguf_name(tensor_name), value)
        elif quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(tensor_name), quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(tensor_name), value.astype(np.float16))
    finish(writer)


def write_checkpoint(name, config, prompt_tokens):
    folder = os.path.join(OUT, "reference", name)
    os.makedirs(folder, exist_ok=True)
    llama = config["model_type"] == "llama"
    tokenizer = byte_level("llama3", config["vocab_size"], LLAMA_SPECIALS) if llama else byte_level("qwen2", config["vocab_size"] - 2, QWEN_SPECIALS, QWEN_USER_DEFINED)
    if not llama:
        tokenizer.add_tokens(["[PAD0]", "[PAD1]"])
    template = LLAMA_CHAT if llama else CHATML
    ends = ["<|end_of_text|>", "<|eot_id|>"] if llama else ["<|im_end|>", "<|endoftext|>"]
    begin, end = (LLAMA_SPECIALS[0], ends[1]) if llama else (None, ends[0])
    config = dict(config, eos_token_id=tokenizer.token_to_id(end))
    write_json(os.path.join(folder, "config.json"), config)
    write_json(os.path.join(folder, "generation_config.json"), dict(eos_token_id=[tokenizer.token_to_id(text) for text in ends]))
    write_json(os.path.join(folder, "tokenizer_config.json"), dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=begin, eos_token=end, chat_template=template))
    tokenizer.save(os.path.join(folder, "tokenizer.json"))

    for attempt in itertools.count():
        try:
            weights, prompt, reference = run_reference(config, prompt_tokens, seed=1000 * prompt_tokens + attempt)
            break
        except TooClose:
            pass
    stored = STORED[config.get("dtype") or config["torch_dtype"]]
    save_torch({n: p.to(stored).contiguous() for n, p in weights.items()}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    write_gguf(os.path.join(folder, "model-f16.gguf"), name, config, weights, tokenizer, template, quantized=False)
    write_gguf(os.path.join(folder, "model-q8_0.gguf"), name, config, weights, tokenizer, template, quantized=True)
    save_numpy(dict(reference, prompt=prompt), os.path.join(folder, "reference.safetensors"))
    print(name, "attempts", attempt + 1, "logits up to", np.abs(reference["logits"]).max(), "tokens", reference["tokens"].tolist())


def run_reference(config, prompt_tokens, seed):
    """Random weights, a random prompt, and what transformers makes of them."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager").to(torch.float32).eval()
    random_weights(model, seed)
    weights = {n: p.data.clone() for n, p in model.named_parameters()}
    prompt = np.random.default_rng(seed).integers(0, 256, prompt_tokens).astype(np.int32)
    logits, tokens = greedy(model, prompt.tolist())
    for parameter in model.parameters():
        if parameter.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            parameter.data.copy_(torch.from_numpy(dequantize(quantize(parameter.data.numpy(), kind), kind)))
    quantized_logits, quantized_tokens = greedy(model, prompt.tolist())
    return weights, prompt, dict(logits=logits, tokens=tokens, logits_q8_0=quantized_logits, tokens_q8_0=quantized_tokens)


def write_element_types():
    """Blocks of random bytes with sane scales, and what the gguf package makes of them."""
    kinds = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
    modules = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    generator = np.random.default_rng(7)
    writer = gguf.GGUFWriter(os.path.join(OUT, "reference", "element_types.gguf"), "qwen2")
    expected = {}
    for index, kind_name in enumerate(kinds):
        kind = gguf.GGMLQuantizationType[kind_name]
        values = generator.standard_normal((4, 512)).astype(np.float32)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind_name.endswith("_K"):
            raw = generator.integers(0, 256, (4, 512 // block * size)).astype(np.uint8)
            blocks = raw.reshape(-1, size)
            scale = generator.uniform(0.01, 0.1, (len(blocks), 2)).astype(np.float16).view(np.uint8)
            if kind_name == "Q6_K":
                blocks[:, -2:] = scale[:, :2]
            else:
                blocks[:, :4] = scale
        elif kind_name == "F32":
            raw = values
        elif kind_name == "F16":
            raw = values.astype(np.float16)
        else:
            raw = quantize(values, kind)
        module, layer = modules[index % len(modules)], index // len(modules)
        writer.add_tensor(f"blk.{layer}.{module}.weight", raw, raw_dtype=kind)
        expected[f"blk.{layer}.{module}.weight"] = np.ascontiguousarray(dequantize(raw, kind).astype(np.float32))
    finish(writer)
    save_numpy(expected, os.path.join(OUT, "reference", "element_types.safetensors"))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    os.makedirs(os.path.join(OUT, "reference"), exist_ok=True)
    write_tokenizers()
    write_element_types()
    for (name, config), prompt_tokens in zip(CHECKPOINTS.items(), (141, 117, 129)):
        write_checkpoint(name, config, prompt_tokens)
