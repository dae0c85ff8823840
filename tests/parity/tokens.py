"""Makes tests/parity/tokens.json: small tokenizers, and what the libraries that they are of make of texts.

    pip install transformers sentencepiece protobuf && python tests/parity/tokens.py [FOLDER]

`gguf` has tokenizers as GGUF files keep them, with the tokens of texts as sentencepiece (kind llama) and the
classes of transformers (kind gpt2) tell them. `folders` has the files of Hugging Face folders, with the tokens of
prompts and of whole texts as transformers tells them. No weights, no torch.
"""

import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

CORPUS = """The boat goes on and on, and the oars go in and out of the cold river. It's 1024 strokes to the bridge; they'll
have counted 365 of them by noon. "Hold water!" said the coxswain, "you're late again." We've seen 42 boats in 2023.
Größe und Übermut sind nahe beieinander; der Fluß ist tief. La rivière est froide, l'été est court.
fn main() { let x = 10; println!("{x}"); }
""" * 20
TEXTS = ["", " ", "Hello", "The boat goes on.", "  two  blanks\tand\n\nlines\r\n", "It's 12345 o'clock, they'LL say",
         "Größe naïve e\u0301t\u00e9 \u4f60\u597d \U0001F6A3!", "x=1;y=22;z=333", "\u2581under", "a</s>b<s> <|end|>c", "tab\there ",
         "McDonald AND iPhone/USB", "and and  and   and"]


def sentence_pieces():
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS.splitlines()), model_prefix=f"{folder}/m", vocab_size=420, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
            character_coverage=0.98, split_digits=True, user_defined_symbols=["<|end|>"])
        sp = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")
    kinds = [(sp.is_unknown, 2), (sp.is_control, 3), (sp.is_byte, 6), (sp.is_unused, 5)]
    all_ids = range(sp.vocab_size())
    types = [next((kind for of, kind in kinds if of(i)), 1) for i in all_ids]
    tokens = [sp.id_to_piece(i) for i in all_ids]
    types[tokens.index("<|end|>")] = 4
    # A text that begins with a token of the user's gets no blank, here and there; what follows it gets one there.
    texts = [text for text in TEXTS if "<|end|>" not in text]
    return {"model": "llama", "tokens": tokens, "scores": [sp.get_score(i) for i in all_ids], "token_type": types,
            "bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(), "unknown_token_id": sp.unk_id(),
            "cases": [[text, sp.encode(text)] for text in texts]}


def byte_level():
    """One vocabulary with its merges, for all ways to cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([CORPUS], trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def cuts(vocab, merges):
    """Tokenizers of transformers' own classes, by GGUF's names of how they cut."""
    yield "gpt-2", hf.GPT2Tokenizer(vocab=vocab, merges=merges)
    yield "qwen2", hf.Qwen2Tokenizer(vocab=vocab, merges=merges)
    for name, pattern in (("llama-bpe", None), ("tekken", TEKKEN)):
        converter = TikTokenConverter(pattern=pattern) if pattern else TikTokenConverter()
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(converter.pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        yield name, hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    yield "smollm", hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def template(single, tokens):
    return processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=tokens)


def folders():
    """Names, tokenizers and the files beside them: one for each way in which a text is framed."""
    def bpe(words, post=None):
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator([CORPUS], trainers.BpeTrainer(
            vocab_size=320, special_tokens=words, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        tokenizer.post_processor = post or processors.ByteLevel(trim_offsets=False)
        return tokenizer

    llama = dict(model_type="llama", eos_token_id=[1, 2], bos_token_id=0, max_position_embeddings=64)
    yield "begins", bpe(["<s>", "</s>", "<|im_end|>"], template("<s> $A", [("<s>", 0)])), llama, \
        dict(bos_token="<s>", eos_token="</s>"), dict(eos_token_id=[2, 1], temperature=0.6)
    yield "plain", bpe(["<|endoftext|>"]), dict(model_type="gpt2", eos_token_id=0, bos_token_id=0), \
        dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", add_bos_token=False), None
    yield "bart", bpe(["<s>", "<pad>", "</s>", "<mask>"], template("<s> $A </s>", [("<s>", 0), ("</s>", 2)])), \
        dict(model_type="bart", bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
             forced_bos_token_id=0), \
        dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"), None
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator([CORPUS], trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    pieces.post_processor = template("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)])
    yield "bert", pieces, dict(model_type="bert", pad_token_id=0), \
        dict(cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]",
             model_max_length=24), None
    extra = [f"<extra_id_{i}>" for i in reversed(range(3))]
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    unigram.train_from_iterator([CORPUS], trainers.UnigramTrainer(
        vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    unigram.add_special_tokens(extra)
    unigram.post_processor = template("$A </s>", [("</s>", 1)])
    yield "t5", unigram, dict(model_type="t5", eos_token_id=1, pad_token_id=0, decoder_start_token_id=0), \
        dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>"), None


PROMPTS = ["Hello", "The boat goes on", "", "say <|im_end|> or </s> or <mask>", "a <extra_id_0> b <extra_id_1> c",
           "It's 12345 o'clock\n", "[MASK] the river [SEP]"]


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    vocab, merges = byte_level()
    by_id = [token for token, _ in sorted(vocab.items(), key=lambda pair: pair[1])]
    cases = {name: [[text, tokenizer(text, add_special_tokens=False)["input_ids"]] for text in TEXTS]
             for name, tokenizer in cuts(vocab, merges)}
    gguf = {"llama": sentence_pieces(), "gpt2": {
        "model": "gpt2", "tokens": by_id, "merges": [" ".join(merge) for merge in merges],
        "token_type": [3 if token.startswith("<|") else 1 for token in by_id], "eos_token_id": 1, "bos_token_id": 0,
        "cuts": cases}}
    all_folders = {}
    for name, tokenizer, config, words, generation in folders():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            files = {"tokenizer.json": json.loads(tokenizer.to_str()), "config.json": config,
                     "tokenizer_config.json": {**words, "tokenizer_class": "PreTrainedTokenizerFast"}}
            files |= {"generation_config.json": generation} if generation else {}
            for file, of in files.items():
                (folder / file).write_text(json.dumps(of))
            theirs = hf.PreTrainedTokenizerFast.from_pretrained(folder)
        all_folders[name] = {"files": files, "vocab": len(theirs),
                             "prompts": [[text, theirs(text)["input_ids"]] for text in PROMPTS],
                             "cut": [theirs(TEXTS[6] * 3, truncation=True, max_length=12)["input_ids"], 12]}
    (out / "tokens.json").write_text(json.dumps({"gguf": gguf, "folders": all_folders}, ensure_ascii=False))
    print(f"{(out / 'tokens.json').stat().st_size} bytes")


main()
