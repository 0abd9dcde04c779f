"""Makes `arch/`: a tiny random model of each architecture and the logits it must give.

    pip install numpy gguf==0.19.0 xllamacpp==2026.10.11549 llama-cpp-py-sync==0.11739
    python make_arch.py

Run by hand when an architecture is added; not part of the tests. Weights come from a fixed seed in
the layout of Hugging Face checkpoints. `forward` is written in f64 after the models' code in
transformers 5.23.0 (`models/*/modeling_*.py`, `modeling_rope_utils.py`, `masking_utils.py`) and
makes the expected logits. `write` stores the weights as llama.cpp's conversion does. llama.cpp
itself (f32 weights, f32 KV, no flash attention) then reads the file: how far its logits are from
`forward`'s is printed and stored beside them. Of the two packages the first carries llama.cpp for
any Linux and hides its C interface, the second declares that interface. Without them it is skipped.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

OUT = Path(__file__).parent / "arch"
VOCAB, WIDTH, FF, TOKENS = 288, 32, 64, 100
POSITIONS = [0, 1, 15, 16, 17, 33, 64, 99]

BASE = dict(arch="llama", layers=3, heads=4, kv_heads=2, head_dim=16, rotated=16, theta=1e4, eps=1e-5, context=512,
            act="silu", window=None, period=1, tied=False, qkv_bias=False, o_bias=False, head_norms=False,
            post_norms=False, plus_one=False, embed_scale=1.0, query_scalar=16, score_cap=None, logit_cap=None,
            local_theta=None, rope=None, fused=False)
GEMMA = BASE | dict(head_dim=32, rotated=32, query_scalar=32, kv_heads=1, eps=1e-6, act="gelu", tied=True,
                    plus_one=True, embed_scale=math.sqrt(WIDTH))
PHI = BASE | dict(arch="phi3", heads=2, kv_heads=1, rotated=12, fused=True)
LONG = dict(kind="longrope", long=[1.0 + 0.9 * i for i in range(6)], short=[1.0 + 0.1 * i for i in range(6)],
            original=64)
SHORT = LONG | dict(original=256)
MODELS = {
    "llama": BASE,
    "llama3": BASE | dict(theta=5e5, tied=True, head_dim=32, rotated=32, query_scalar=32, kv_heads=1,
                          rope=dict(kind="llama3", factor=8.0, low=1.0, high=4.0, original=48)),
    "llama-linear": BASE | dict(tied=True, qkv_bias=True, o_bias=True, rope=dict(kind="linear", factor=4.0)),
    "qwen2": BASE | dict(arch="qwen2", heads=2, kv_heads=1, theta=1e6, eps=1e-6, qkv_bias=True, tied=True),
    "qwen3": BASE | dict(arch="qwen3", theta=1e6, eps=1e-6, head_norms=True, head_dim=32, rotated=32,
                         query_scalar=32, kv_heads=1, tied=True),
    "gemma": GEMMA | dict(arch="gemma"),
    "gemma2": GEMMA | dict(arch="gemma2", layers=4, post_norms=True, score_cap=2.0, logit_cap=3.0, window=16,
                           period=2),
    "gemma3": GEMMA | dict(arch="gemma3", layers=7, post_norms=True, head_norms=True, window=16, period=6, theta=1e6,
                           local_theta=1e4, rope=dict(kind="linear", factor=8.0)),
    "phi3": PHI | dict(window=16),
    "phi3-long": PHI | dict(rope=LONG),
    "phi3-short": PHI | dict(context=256, rope=SHORT),
}


def make(m, rng):
    """Weights as a checkpoint has them: (out, in) matrices."""
    q, kv = m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"]
    # Large enough that scores, caps and windows matter.
    mat = lambda rows, cols, gain=1.0: (rng.standard_normal((rows, cols)) * gain / math.sqrt(cols)).astype(np.float32)
    vec = lambda n, mid, spread: (mid + spread * rng.standard_normal(n)).astype(np.float32)
    norm = lambda n: vec(n, 0.0 if m["plus_one"] else 1.0, 0.2)
    w = dict(embed=mat(VOCAB, WIDTH, math.sqrt(WIDTH) / m["embed_scale"]), norm=norm(WIDTH), layers=[])
    w["head"] = w["embed"] if m["tied"] else mat(VOCAB, WIDTH)
    for _ in range(m["layers"]):
        l = dict(input_norm=norm(WIDTH), q=mat(q, WIDTH, 1.4), k=mat(kv, WIDTH, 1.4), v=mat(kv, WIDTH),
                 o=mat(WIDTH, q), ff_norm=norm(WIDTH), gate=mat(FF, WIDTH), up=mat(FF, WIDTH), down=mat(WIDTH, FF))
        if m["qkv_bias"]:
            l |= dict(q_bias=vec(q, 0, 0.5), k_bias=vec(kv, 0, 0.5), v_bias=vec(kv, 0, 0.5))
        if m["o_bias"]:
            l |= dict(o_bias=vec(WIDTH, 0, 0.3))
        if m["head_norms"]:
            l |= dict(q_norm=norm(m["head_dim"]), k_norm=norm(m["head_dim"]))
        if m["post_norms"]:
            l |= dict(post_attn=norm(WIDTH), post_ff=norm(WIDTH))
        w["layers"].append(l)
    return w


def llama3_divisors(r, theta, dim):
    """What transformers' `_compute_llama3_parameters` divides the frequencies by."""
    freq = theta ** (-np.arange(0, dim, 2) / dim)
    wavelength = 2 * math.pi / freq
    low, high = r["original"] / r["low"], r["original"] / r["high"]
    smooth = (r["original"] / wavelength - r["low"]) / (r["high"] - r["low"])
    medium = (1 - smooth) * freq / r["factor"] + smooth * freq
    scaled = np.where(wavelength > low, freq / r["factor"], np.where(wavelength < high, freq, medium))
    return freq / scaled


def frequencies(m, local):
    """Inverse frequencies, and what cos and sin are multiplied by."""
    dim, r = m["rotated"], m["rope"]
    theta = m["local_theta"] if local else m["theta"]
    freq = theta ** (-np.arange(0, dim, 2) / dim)
    if r is None or local:
        return freq, 1.0
    if r["kind"] == "linear":
        return freq / r["factor"], 1.0
    if r["kind"] == "llama3":
        return freq / llama3_divisors(r, theta, dim).astype(np.float32), 1.0
    return freq / np.float32(r["long"] if m["context"] > r["original"] else r["short"]), attention_factor(m)


def attention_factor(m):
    # As Phi-3.5 has it, whose short variant here keeps the factor of a context four times as long.
    return math.sqrt(1 + math.log(4.0) / math.log(m["rope"]["original"]))


def rotate(x, m, local):
    """`apply_rotary_pos_emb`: x (tokens, heads, head_dim)."""
    freq, magnitude = frequencies(m, local)
    angle = np.arange(len(x))[:, None] * freq[None]
    cos = np.concatenate([np.cos(angle)] * 2, -1)[:, None] * magnitude
    sin = np.concatenate([np.sin(angle)] * 2, -1)[:, None] * magnitude
    turned, rest = x[..., : m["rotated"]], x[..., m["rotated"] :]
    half = m["rotated"] // 2
    rotated = np.concatenate([-turned[..., half:], turned[..., :half]], -1)
    return np.concatenate([turned * cos + rotated * sin, rest], -1)


def rms_norm(x, weight, m):
    weight = 1.0 + weight.astype(np.float64) if m["plus_one"] else weight
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + m["eps"]) * weight


def gate(x, m):
    if m["act"] == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def is_sliding(m, layer):
    if m["window"] is None:
        return False
    return m["period"] == 1 or (layer + 1) % m["period"] != 0


def attention(h, l, m, layer):
    t, d = len(h), m["head_dim"]
    local = is_sliding(m, layer) and m["local_theta"] is not None
    project = lambda n, heads: (h @ l[n].T + l.get(f"{n}_bias", 0)).reshape(t, heads, d)
    q, k, v = project("q", m["heads"]), project("k", m["kv_heads"]), project("v", m["kv_heads"])
    if m["head_norms"]:
        q, k = rms_norm(q, l["q_norm"], m), rms_norm(k, l["k_norm"], m)
    q, k = rotate(q, m, local), rotate(k, m, local)
    k, v = (np.repeat(x, m["heads"] // m["kv_heads"], 1) for x in (k, v))
    scores = np.einsum("thd,uhd->htu", q, k) * m["query_scalar"] ** -0.5
    if m["score_cap"]:
        scores = np.tanh(scores / m["score_cap"]) * m["score_cap"]
    at = np.arange(t)
    seen = at[None] <= at[:, None]
    if is_sliding(m, layer):
        seen &= at[None] > at[:, None] - m["window"]
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("htu,uhd->thd", p, v).reshape(t, -1) @ l["o"].T + l.get("o_bias", 0)


def forward(m, w, ids):
    x = w["embed"][ids].astype(np.float64) * m["embed_scale"]
    for n, l in enumerate(w["layers"]):
        y = attention(rms_norm(x, l["input_norm"], m), l, m, n)
        x = x + (rms_norm(y, l["post_attn"], m) if m["post_norms"] else y)
        h = rms_norm(x, l["ff_norm"], m)
        y = (gate(h @ l["gate"].T, m) * (h @ l["up"].T)) @ l["down"].T
        x = x + (rms_norm(y, l["post_ff"], m) if m["post_norms"] else y)
    logits = rms_norm(x, w["norm"], m) @ w["head"].T
    return np.tanh(logits / m["logit_cap"]) * m["logit_cap"] if m["logit_cap"] else logits


def permute(x, heads):
    """llama.cpp's `LlamaModel.permute`: halves become neighbours."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def vocabulary():
    """The byte-level alphabet and fillers; one merge, because a list cannot be empty."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))] + ["ab"]
    return tokens + [f"<filler_{n}>" for n in range(VOCAB - len(tokens))], ["a b"]


def write(path, m, w):
    f = gguf.GGUFWriter(path, m["arch"])
    f.add_block_count(m["layers"])
    f.add_context_length(m["context"])
    f.add_embedding_length(WIDTH)
    f.add_feed_forward_length(FF)
    f.add_head_count(m["heads"])
    f.add_head_count_kv(m["kv_heads"])
    f.add_key_length(m["head_dim"])
    f.add_value_length(m["head_dim"])
    f.add_layer_norm_rms_eps(m["eps"])
    f.add_rope_dimension_count(m["rotated"])
    f.add_rope_freq_base(m["theta"])
    if m["window"]:
        f.add_sliding_window(m["window"])
    if m["score_cap"]:
        f.add_attn_logit_softcapping(m["score_cap"])
    if m["logit_cap"]:
        f.add_final_logit_softcapping(m["logit_cap"])
    r = m["rope"] or dict(kind=None)
    if r["kind"] == "linear":
        f.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        f.add_rope_scaling_factor(r["factor"])
    elif r["kind"] == "llama3":
        f.add_tensor("rope_freqs.weight", llama3_divisors(r, m["theta"], m["rotated"]).astype(np.float32))
    elif r["kind"] == "longrope":
        f.add_rope_scaling_orig_ctx_len(r["original"])
        f.add_rope_scaling_attn_factors(attention_factor(m))
        f.add_tensor("rope_factors_long.weight", np.float32(r["long"]))
        f.add_tensor("rope_factors_short.weight", np.float32(r["short"]))
    tokens, merges = vocabulary()
    f.add_tokenizer_model("gpt2")
    f.add_tokenizer_pre("smollm")
    f.add_token_list(tokens)
    f.add_token_types([gguf.TokenType.NORMAL if n < 257 else gguf.TokenType.CONTROL for n in range(VOCAB)])
    f.add_token_merges(merges)
    f.add_add_bos_token(False)
    f.add_eos_token_id(VOCAB - 1)

    norm = lambda x: x + np.float32(1) if m["plus_one"] else x
    pairs = lambda x, heads: permute(x, heads) if m["arch"] == "llama" else x
    f.add_tensor("token_embd.weight", w["embed"])
    f.add_tensor("output_norm.weight", norm(w["norm"]))
    if not m["tied"]:
        f.add_tensor("output.weight", w["head"])
    for n, l in enumerate(w["layers"]):
        add = lambda name, x: f.add_tensor(f"blk.{n}.{name}", np.ascontiguousarray(x))
        add("attn_norm.weight", norm(l["input_norm"]))
        add("ffn_norm.weight", norm(l["ff_norm"]))
        if m["fused"]:
            add("attn_qkv.weight", np.concatenate([l["q"], l["k"], l["v"]]))
            add("ffn_up.weight", np.concatenate([l["gate"], l["up"]]))
        else:
            add("attn_q.weight", pairs(l["q"], m["heads"]))
            add("attn_k.weight", pairs(l["k"], m["kv_heads"]))
            add("attn_v.weight", l["v"])
            add("ffn_gate.weight", l["gate"])
            add("ffn_up.weight", l["up"])
        add("attn_output.weight", l["o"])
        add("ffn_down.weight", l["down"])
        if m["qkv_bias"]:
            add("attn_q.bias", pairs(l["q_bias"], m["heads"]))
            add("attn_k.bias", pairs(l["k_bias"], m["kv_heads"]))
            add("attn_v.bias", l["v_bias"])
        if m["o_bias"]:
            add("attn_output.bias", l["o_bias"])
        if m["head_norms"]:
            add("attn_q_norm.weight", norm(l["q_norm"]))
            add("attn_k_norm.weight", norm(l["k_norm"]))
        if m["post_norms"]:
            add("post_attention_norm.weight", norm(l["post_attn"]))
            add("post_ffw_norm.weight", norm(l["post_ff"]))
    f.write_header_to_file()
    f.write_kv_data_to_file()
    f.write_tensors_to_file()
    f.close()


def llama_cpp(path, ids, context):
    """llama.cpp's logits at every position; `None` if it is not installed."""
    try:
        import xllamacpp.xllamacpp as compiled
        from llama_cpp_py_sync._cffi_bindings import get_ffi
    except ImportError:
        return None
    ffi = get_ffi()
    lib = ffi.dlopen(compiled.__file__)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model != ffi.NULL, path
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type, params.type_k, params.type_v = 0, 0, 0
    context = lib.llama_init_from_model(model, params)
    assert context != ffi.NULL, path
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for n, token in enumerate(ids):
        batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.logits[n] = token, n, 1, 1
        batch.seq_id[n][0] = 0
    assert lib.llama_decode(context, batch) == 0
    rows = [ffi.buffer(lib.llama_get_logits_ith(context, n), VOCAB * 4) for n in range(len(ids))]
    logits = np.stack([np.frombuffer(bytes(row), np.float32) for row in rows])
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return logits


def compare(path, m, w, ids):
    """The largest difference between llama.cpp's logits and `forward`'s."""
    peer = llama_cpp(path, ids, m["context"])
    # llama.cpp ignores the window of phi3.
    tokens = m["window"] if m["arch"] == "phi3" and m["window"] else len(ids)
    if peer is None:
        return None
    apart = np.abs(peer - forward(m, w, np.array(ids)))[:tokens].max()
    return dict(tokens=tokens, largest_difference=float(f"{apart:.2g}"))


def main():
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(20240607)
    names = sys.argv[1:]
    for name, m in MODELS.items():
        w, ids = make(m, rng), [int(t) for t in rng.integers(0, VOCAB, TOKENS)][: m["context"]]
        if names and name not in names:
            continue
        path = OUT / f"{name}.gguf"
        write(path, m, w)
        logits = forward(m, w, np.array(ids))
        result = dict(tokens=ids, llama_cpp=compare(path, m, w, ids))
        if m["act"] == "gelu":
            # llama.cpp looks gelu up in a table of f16. Closed gates leave all but the gelu to compare.
            closed = w | dict(layers=[l | dict(gate=np.zeros_like(l["gate"])) for l in w["layers"]])
            with tempfile.TemporaryDirectory() as folder:
                write(f"{folder}/closed.gguf", m, closed)
                result["llama_cpp_closed_gates"] = compare(f"{folder}/closed.gguf", m, closed, ids)
        print(f"{name}: logits up to {np.abs(logits).max():.2f};", {k: v for k, v in result.items() if "llama" in k})
        rows = {str(n): [float(f"{x:.7g}") for x in logits[n]] for n in POSITIONS if n < len(ids)}
        result["logits"] = rows
        (OUT / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
