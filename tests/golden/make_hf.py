"""Makes `hf/`: tiny random checkpoints as Hugging Face transformers saves them, and its own logits; and
`quantize.json`: floats and the blocks that the `gguf` package makes of them.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 gguf==0.19.0
    python make_hf.py

Run by hand when a class of models is added; not part of the tests. Weights come from a fixed seed, rounded to
bfloat16, and are saved with `save_pretrained`. The models are then loaded anew from those files and
run in float64 (transformers itself computes norms, softmax and rotations in float32) with its eager
attention. Weights that are bfloat16 are the same in every float type, so the logits serve for all.
"""

import json
import math
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

OUT = Path(__file__).parent / "hf"
VOCAB, TOKENS = 288, 100
POSITIONS = [0, 1, 15, 16, 17, 33, 64, 99]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=512, bos_token_id=None, eos_token_id=259,
             pad_token_id=257)
GEMMA = SIZES | dict(head_dim=32, num_key_value_heads=1, query_pre_attn_scalar=48)
PHI = {k: v for k, v in SIZES.items() if k != "head_dim"} | dict(
    num_attention_heads=2, num_key_value_heads=1, rope_theta=1e4)
LONG = dict(rope_type="longrope", long_factor=[1.0 + 0.9 * i for i in range(6)],
            short_factor=[1.0 + 0.1 * i for i in range(6)])


def rope(theta=1e4, **scaling):
    return dict(rope_parameters=dict(rope_theta=theta, rope_type="default") | scaling)


MODELS = {
    "llama": hf.LlamaConfig(**SIZES, **rope()),
    "llama3": hf.LlamaConfig(**SIZES, tie_word_embeddings=True,
                             **rope(5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                    original_max_position_embeddings=48)),
    "llama-linear": hf.LlamaConfig(**SIZES, attention_bias=True, **rope(rope_type="linear", factor=4.0)),
    "llama-yarn": hf.LlamaConfig(**SIZES | dict(head_dim=32, num_key_value_heads=1, max_position_embeddings=256),
                                 **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": hf.MistralConfig(**SIZES, sliding_window=16, **rope(1e6)),
    "qwen2": hf.Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"} | dict(num_attention_heads=2),
                            tie_word_embeddings=True, use_sliding_window=True, sliding_window=24,
                            max_window_layers=1, **rope(1e6)),
    "qwen3": hf.Qwen3Config(**SIZES, **rope(1e6)),
    "gemma": hf.GemmaConfig(**{k: v for k, v in GEMMA.items() if k != "query_pre_attn_scalar"}, **rope()),
    "gemma2": hf.Gemma2Config(**GEMMA, sliding_window=16, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
                              **rope()),
    "gemma3": hf.Gemma3TextConfig(**GEMMA | dict(num_hidden_layers=4), sliding_window=16, sliding_window_pattern=3,
                                  rope_parameters=dict(
                                      full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                                      sliding_attention=dict(rope_type="default", rope_theta=1e4))),
    "phi3": hf.Phi3Config(**PHI, sliding_window=16),
    "phi3-long": hf.Phi3Config(**PHI | dict(hidden_size=32), original_max_position_embeddings=64,
                               partial_rotary_factor=0.75, rope_scaling=LONG),
}


def fill(model, seed):
    """Random weights, large enough that scores, caps and windows matter; embeddings as wide as the stream."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        if p.dim() == 2:
            gain = 1.4 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1.0
            scale = 1.0 if "embed" in name and "gemma" not in model.config.model_type else gain / math.sqrt(p.shape[1])
            p.data = noise * scale
        elif "norm" in name:
            p.data = p.data + 0.2 * noise
        else:
            p.data = 0.4 * noise


def tokenizer():
    """The byte-level alphabet, one merge, and the special tokens of ChatML."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))] + ["ab"]
    inner = Tokenizer(models.BPE({t: n for n, t in enumerate(tokens)}, [("a", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIALS)
    outer = hf.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    outer.chat_template = CHATML
    return outer


def save(name, config, seed):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = hf.AutoModelForCausalLM.from_config(config)
    fill(model, seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def logits(folder, ids):
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def quantize():
    rng = np.random.default_rng(7)
    rows = np.concatenate([rng.standard_normal((24, 32)) * s for s in (1.0, 1e-3, 50.0)]).astype(np.float32)
    rows[0], rows[1, 5:] = 0.0, 0.0
    types = dict(q8_0=gguf.GGMLQuantizationType.Q8_0, q4_0=gguf.GGMLQuantizationType.Q4_0)
    made = {name: gguf.quants.quantize(rows, kind).tobytes().hex() for name, kind in types.items()}
    return dict(floats=rows.tobytes().hex(), **made)


def main():
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(20241124)
    for seed, (name, config) in enumerate(MODELS.items()):
        ids = [int(t) for t in rng.integers(0, VOCAB, TOKENS)]
        folder = save(name, config, seed)
        out = logits(folder, ids)
        rows = {str(n): [float(f"{x:.7g}") for x in out[n]] for n in POSITIONS}
        text = json.dumps(dict(tokens=ids, logits=rows), separators=(",", ":"))
        (folder / "expected.json").write_text(text + "\n")
        print(f"{name}: logits up to {np.abs(out).max():.2f}, {sum(f.stat().st_size for f in folder.iterdir())} bytes")
    # The first again, as floats and in shards.
    folder = OUT / "llama-shards"
    shutil.rmtree(folder, ignore_errors=True)
    model = hf.AutoModelForCausalLM.from_pretrained(OUT / "llama", dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer().save_pretrained(folder)
    (Path(__file__).parent / "quantize.json").write_text(json.dumps(quantize()) + "\n")


if __name__ == "__main__":
    main()
