"""Makes `gemma3.numpy.json`: log-probabilities of gemma3:270m in f64, as `make_arch.forward` computes them.

    pip install numpy gguf==0.19.0
    python make_gemma3.py gemma-3-270m-q4_k_m.gguf

For each step of `gemma3.greedy.f32.json` the same 20 tokens, along the same ids; then, for one text longer
than the sliding window, made of those ids, the 20 likeliest tokens at some places. llama.cpp looks
gelu up in a table of f16: how far it is from this is printed.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from make_arch import GEMMA, forward

SHAPE = GEMMA | dict(arch="gemma3", layers=18, heads=4, kv_heads=1, head_dim=256, rotated=256, query_scalar=256,
                     post_norms=True, head_norms=True, window=512, period=6, theta=1e6, local_theta=1e4,
                     embed_scale=np.sqrt(640.0))
LONG = 700
PLACES = [510, 511, 512, 513, 600, LONG - 1]


def weights(path):
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in gguf.GGUFReader(path).tensors}
    norm = lambda name: tensors[name].astype(np.float64) - 1  # the file has the one already added
    at = dict(q="attn_q", k="attn_k", v="attn_v", o="attn_output", gate="ffn_gate", up="ffn_up", down="ffn_down")
    norms = dict(input_norm="attn_norm", ff_norm="ffn_norm", q_norm="attn_q_norm", k_norm="attn_k_norm",
                 post_attn="post_attention_norm", post_ff="post_ffw_norm")
    layer = lambda n: ({k: tensors[f"blk.{n}.{v}.weight"] for k, v in at.items()}
                       | {k: norm(f"blk.{n}.{v}.weight") for k, v in norms.items()})
    embed = tensors["token_embd.weight"]
    layers = [layer(n) for n in range(SHAPE["layers"])]
    return dict(embed=embed, head=embed, norm=norm("output_norm.weight"), layers=layers)


def log_probabilities(w, ids, places):
    # The head only where it is asked for: the vocabulary is large.
    hidden = forward(SHAPE, w | dict(head=np.eye(w["embed"].shape[1])), np.array(ids))
    for n in places:
        logits = w["head"] @ hidden[n].astype(np.float64)
        yield logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def main():
    here, w = Path(__file__).parent, weights(sys.argv[1])
    cases = json.loads((here / "gemma3.greedy.f32.json").read_text())["raw"]
    short = lambda ids, row: [[int(t), float(f"{row[t]:.7g}")] for t in ids]
    steps, apart = [], []
    for case in cases:
        first, golden = len(case["prompt_ids"]) - 1, case["top20_steps"]
        rows = log_probabilities(w, case["prompt_ids"] + case["output_ids"], range(first, first + len(golden)))
        rows = list(rows)
        steps.append([short([t for t, _ in step], row) for step, row in zip(golden, rows)])
        apart += [max(abs(row[t] - p) for t, p in step) for step, row in zip(golden, rows)]
    print(f"llama.cpp is up to {max(apart):.4f} away, beyond 0.01 in {sum(a > 0.01 for a in apart)} of {len(apart)}")
    ids = ([t for c in cases for t in c["prompt_ids"] + c["output_ids"]] * 3)[:LONG]
    rows = zip(PLACES, log_probabilities(w, ids, PLACES))
    long = dict(tokens=ids, after={str(n): short(np.argsort(-row)[:20], row) for n, row in rows})
    text = json.dumps(dict(top20_steps=steps, long=long), separators=(",", ":"))
    (here / "gemma3.numpy.json").write_text(text + "\n")


main()
