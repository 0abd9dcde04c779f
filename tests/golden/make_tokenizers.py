#!/usr/bin/env python3
"""Makes tokenizers.json: small tokenizers, strings, and the ids that independent programs give them.

Run by hand where the packages are: pip install tokenizers==0.23.3 sentencepiece==0.2.3
    python3 make_tokenizers.py > tokenizers.json

Byte-level BPE: Hugging Face's `tokenizers` (its own regular expression engine, Oniguruma, and merge
loop) with the pre-tokenizer that each model's tokenizer.json publishes. The vocabulary is trained on
text that was not cut into words, so that a wrong cut shows in the ids.
SentencePiece: Google's `sentencepiece`, a tiny BPE model with byte fallback, with and without the
space that it puts before a text.
tokenizer.json: small files laid out as those of Qwen, Llama 3 and Llama 2, read back by `tokenizers`.
"""

import io
import json
import sys

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Hello, world! Don't stop; we've 123 apples and 4567 pears, haven't we? It's John's, I'll say.",
    "DON'T SHOUT, WE'VE HEARD. HTTPServer getURLPath camelCase ÉCOLE Été naïve façade über straße",
    "def f(x):\n    return x ** 2\n\n\nfor i in range(10):\n\t\tprint(i)\r\n\r\n  end  of   line    ",
    "日本語のテキストです。中文字符测试，你好世界！ 한국어 문장입니다. ไทยไม่มีช่องว่าง नमस्ते दुनिया",
    "Привет, как дела? Добрый день! γειά σου Κόσμε. مرحبا بالعالم שלום עולם",
    "🦙🔥🚀 emoji 😀😀 mix ❤️ vs ❤ 👩‍👩‍👧 flags 🇫🇷 1,000,000.50 3.14159 ½ ² ① Ⅷ ٣٤٥",
    "https://example.com/a/b?q=1&r=2#frag <html><body class=\"x\">&amp;</body></html> {\"a\": [1, 2.5]}",
]

STRINGS = CORPUS + [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", " \n \n  x", "\t\tx\t", "\r\n\r\n", "a\r\nb\rc\n", "x   ", "   x",
    "1", "12", "123", "1234", "12345678", " 1 22 333 4444", "1a2b3c", "3.14e-10", "٣٤٥٦", "½²①Ⅷ", "x²y", "１２３４",
    "don't DON'T Don'T we'Ve I'M he'LL 'tis 'S 's' it''s ’s don’t", "'ſ", "a'b'c", "O'Neill's",
    "camelCaseHTTPServer", "ABC", "ABCdef", "abcDEF", "ÀÉÎ", "Àéî", "ǅ ǆ Ǆ", "ʰˢ", "ªº",
    "e\u0301te\u0301", "\u0301", "a\u0301\u0302b", "नमस्ते", "क्ष", "ไทย", "شَدَّة", "日本語", "日本語abc", "abc日本語123", "한국어와English",
    "Ωμέγα", "Ω K Å ℵ", "ბქ ᲑᲥ", "աբգ ԱԲԳ", "ꙋѣ", "𐐀𐐨", "𝕳𝖊𝖑𝖑𝖔", "ﬁne ﬀ", "Ｈｅｌｌｏ！ ～", "‘x’ “y” „z‟",
    "。、！？", " 。 ", "a。b", "!!!???...", " !!!", "!!! ", "!\n\n!", "/path/to\n/x", "//\n//", "*/\n/*", "a/b/\n", "<|im_start|>",
    "-- --- ----", "$100 €5 £6", "_a_b_", "a_b", "\u00a0nbsp\u00a0", "\u2003em", "\u3000全角", "\u200bzero\u200bwidth", "\ufeffbom",
    "\u0000\u0001\u0007\u001b[0m", "\ufffd\ufffd", "\U0010ffff", "\ue000\uf8ff", "😀", "😀😀", " 😀", "👩‍👩‍👧‍👦", "🇫🇷🇩🇪", "❤️", "a😀b",
    "x" * 50, " " * 40, " " * 40 + "x", "\n" * 20, "ab " * 20, "é" * 20, "<0x0A> <0xFF>", "▁ ▁▁ a▁b", "Ġ Ċ Ġa", "</s><s><unk>",
]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_LETTERS = ("[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗ"
                    "ὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮ"
                    "ⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]")


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
BYTES_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# name in GGUF: (pre-tokenizer of the model's tokenizer.json, ignore_merges)
PRE = {
    "gpt-2": ([BYTES_GPT2], False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), BYTES_GPT2], False),
    "llama-bpe": ([split(LLAMA3), BYTES], True),
    "qwen2": ([split(QWEN2), BYTES], False),
    "tekken": ([split(TEKKEN), BYTES], True),
    "deepseek-llm": ([
        split(r"[\r\n]"), split(r"\s?" + DEEPSEEK_LETTERS + "+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
        split(r"[一-龥ࠀ-一가-퟿]+"), pre_tokenizers.Digits(individual_digits=True), BYTES,
    ], False),
}


def byte_level():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = BYTES
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1400, initial_alphabet=alphabet, max_token_length=6, show_progress=False)
    trained.train_from_iterator(STRINGS * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    # Tokens that no merges make: only `ignore_merges` finds them.
    for word in ["Ġcamel", "ABCdef", "ĠHTTPServer", "123", "!!!???..."]:
        vocab.setdefault(word, len(vocab))
    ids = {}
    for name, (steps, ignore) in PRE.items():
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        ids[name] = [tokenizer.encode(text).ids for text in STRINGS]
    tokens = sorted(vocab, key=vocab.get)
    return {"tokens": tokens, "merges": [" ".join(pair) for pair in merges], "ids": ids}


def sentence_piece(prefix):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS * 4 for line in text.split("\n")), model_writer=model,
        model_type="bpe", vocab_size=700, byte_fallback=True, add_dummy_prefix=prefix, normalization_rule_name="identity",
        remove_extra_whitespaces=False, user_defined_symbols=["<tag>", "\n\n"], character_coverage=0.98,
        hard_vocab_limit=False, allow_whitespace_only_pieces=True, minloglevel=2)
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(spm.get_piece_size())
    kind = lambda n: (2 if spm.is_unknown(n) else 3 if spm.is_control(n) else 6 if spm.is_byte(n)
                      else 4 if spm.id_to_piece(n) in ("<tag>", "\n\n") else 1)
    strings = STRINGS + ["a<tag>b", "<tag>", "x\n\n\ny"]
    # llama.cpp, whose files we read, puts the space after special tokens, too: no such strings with it.
    strings = [s for s in strings if not (prefix and ("\n\n" in s or "<tag>" in s))]
    # SentencePiece takes a NUL for the end of a text.
    strings = [s for s in strings if "\0" not in s]
    return {
        "tokens": [spm.id_to_piece(n) for n in numbers], "scores": [spm.get_score(n) for n in numbers],
        "kinds": [kind(n) for n in numbers], "add_space_prefix": prefix,
        "strings": strings, "ids": [spm.encode(text) for text in strings],
    }


def tokenizer_json(layout, model):
    """A file with the parts that `layout`'s tokenizer.json has, around a byte-level vocabulary if it is one."""
    if layout == "llama2":
        trained = Tokenizer(models.BPE())
        trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        special = ["<unk>", "<s>", "</s>"] + [f"<0x{n:02X}>" for n in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, max_token_length=6)
        trained.train_from_iterator(CORPUS[:4], trainer)
        parts = json.loads(trained.to_str())["model"]
        tokenizer = Tokenizer(models.BPE(vocab=parts["vocab"], merges=[tuple(p) for p in parts["merges"]],
                                         unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = trained.normalizer
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(" ", 1, 0)])
        tokenizer.add_special_tokens(special[:3])
        first, end = "<s>", "</s>"
    else:
        vocab = {token: n for n, token in enumerate(model["tokens"])}
        steps, ignore = PRE["qwen2" if layout == "qwen2" else "llama-bpe"]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in model["merges"]], ignore_merges=ignore))
        tokenizer.normalizer = normalizers.NFC() if layout == "qwen2" else None
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        first, end = (None, "<|im_end|>") if layout == "qwen2" else ("<|begin|>", "<|eot_id|>")
        tokenizer.add_special_tokens([t for t in (first, end) if t])
        tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if first:
        number = tokenizer.token_to_id(first)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, number)])
    strings = [s for s in STRINGS if layout != "llama2" or "<" not in s] + (
        [] if layout == "llama2" else [f"<think>a{end}\nb<think> ", end, "<think>"])
    text = tokenizer.to_str()
    ids = [tokenizer.encode(s).ids for s in strings]
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(s).ids for s in strings]
    texts = [tokenizer.decode(i, skip_special_tokens=True) for i in ids]
    return {"json": text, "end": tokenizer.token_to_id(end), "strings": strings, "ids": ids, "plain": plain, "texts": texts}


model = byte_level()
files = [tokenizer_json(layout, model) for layout in ("qwen2", "llama3", "llama2")]
json.dump({"strings": STRINGS, "byte_level": model, "sentence_piece": [sentence_piece(True), sentence_piece(False)],
           "files": files}, sys.stdout, ensure_ascii=True, separators=(",", ":"))
print()
