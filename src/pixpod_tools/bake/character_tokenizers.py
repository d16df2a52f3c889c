"""Tokenizers with one token per character, which need no published vocabulary; ids below 256."""

import string

from transformers import CLIPTokenizer, T5Tokenizer

_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def clip_tokenizer() -> CLIPTokenizer:
    pieces = [piece for character in _CHARACTERS for piece in (character, f"{character}</w>")]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = special + [(character, -3.0) for character in _CHARACTERS]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)
