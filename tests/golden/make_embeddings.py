"""What texts mean to models: the golden files of embeddings.

    pip install sentence-transformers; python make_embeddings.py FOLDER_OF_ALL_MINILM_L6_V2

Writes `hf/bert`, a tiny random checkpoint as sentence-transformers has them, and `embeddings.json`: of that one and of some of
the generating checkpoints in `hf` by transformers in float64, of the real model by sentence-transformers in float32.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers as hf

HERE = Path(__file__).parent
BERT = HERE / "hf" / "bert"
TEXTS = [
    "hello world",
    "The cat sits outside.",
    "A man is playing guitar.",
    "The new movie is awesome!",
    "Das Wetter ist heute schön; Ünïcödé, naïve café.",
    "東京は日本の首都です。",
    'fn main() { println!("{}", 1 + 1); }',
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a",
    "",
    "   tabs\tand\nlines \u200b and emoji 🙂 ",
    # Longer than the 256 tokens that count.
    "The quick brown fox jumps over the lazy dog. " * 60,
]
LENGTHS = [1, 2, 17, 64, 100]


def unit(row, digits):
    row = row / np.linalg.norm(row)
    return [float(f"{x:.{digits}g}") for x in row]


def make_bert():
    shutil.rmtree(BERT, ignore_errors=True)
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    words.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    words.train_from_iterator((HERE / "perplexity.txt").read_text().splitlines(), trainer)
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    config = hf.BertConfig(
        vocab_size=words.get_vocab_size(), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=160, layer_norm_eps=1e-12,
    )
    model = hf.BertModel(config)
    rng = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() == 1 else 1.5 / p.shape[-1] ** 0.5
            p.copy_(torch.randn(p.shape, generator=rng) * scale + ("LayerNorm.weight" in name))
    model.to(torch.bfloat16).save_pretrained(BERT)
    words.save(str(BERT / "tokenizer.json"))
    (BERT / "1_Pooling").mkdir()
    pooling = dict(word_embedding_dimension=64, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    (BERT / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")
    (BERT / "sentence_bert_config.json").write_text(json.dumps(dict(max_seq_length=128)) + "\n")


def of_bert():
    model = hf.BertModel.from_pretrained(BERT, dtype=torch.float64, attn_implementation="eager").eval()
    words = tokenizers.Tokenizer.from_file(str(BERT / "tokenizer.json"))
    words.enable_truncation(128)
    out = []
    for text in TEXTS:
        ids = words.encode(text).ids
        with torch.no_grad():
            rows = model(torch.tensor([ids])).last_hidden_state[0].numpy()
        out.append(dict(text=text, tokens=ids, embedding=unit(rows.mean(0), 7)))
    return out


def of_generating(name):
    folder = HERE / "hf" / name
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    tokens = json.loads((folder / "expected.json").read_text())["tokens"]
    out = []
    for length in LENGTHS:
        with torch.no_grad():
            rows = model(torch.tensor([tokens[:length]])).last_hidden_state[0].numpy()
        out.append(dict(tokens=tokens[:length], embedding=unit(rows[-1], 7)))
    return out


def of_minilm(folder):
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    most = model.max_seq_length
    tokens = [model.tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in TEXTS]
    rows = model.encode(TEXTS, normalize_embeddings=True, batch_size=1)
    return [dict(text=t, tokens=i, embedding=unit(row, 6)) for t, i, row in zip(TEXTS, tokens, rows)]


def main():
    make_bert()
    made = {"bert": of_bert(), "llama": of_generating("llama"), "gemma3": of_generating("gemma3")}
    made["all-minilm"] = of_minilm(sys.argv[1])
    (HERE / "embeddings.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
