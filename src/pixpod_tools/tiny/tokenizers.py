"""Tokenizers made here, so that nothing has to be downloaded.

CLIP: byte-level BPE learnt from captions. T5: a unigram vocabulary written by hand, whole words in
three cases and single characters for everything else.
"""

import json

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from pixpod_tools.tiny.captions import SEEN_WORDS, vary
from pixpod_tools.tiny.scenes import Colour, Shape, sample_training_scene

CLIP_VOCABULARY = 640
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = (
    *Colour, *Shape, "a", "an", "the", "of", "on", "at", "in", "with", "against", "and",
    "background", "photo", "picture", "image", "small", "large", "left", "right", "top", "bottom",
    *SEEN_WORDS,
)  # fmt: skip
_WORD_SCORE, _CHARACTER_SCORE, _SPACE_SCORE = -6.0, -10.0, -4.0


def build_clip_tokenizer() -> CLIPTokenizer:
    """About 620 tokens; lower-cases as CLIP does, and no text is unknown to it."""
    wanted = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = wanted.normalizer
    tokenizer.pre_tokenizer = wanted.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY - 2 - len(alphabet),
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    # Every byte also ends a word, as in CLIP's own vocabulary.
    for token in (*alphabet, *(f"{byte}</w>" for byte in alphabet)):
        vocabulary.setdefault(token, len(vocabulary))
    for token in (_START, _END):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _corpus() -> list[str]:
    rng = np.random.default_rng(0)
    captions = [sample_training_scene(rng).caption for _ in range(3000)]
    return captions + [vary(sample_training_scene(rng), rng) for _ in range(1000)]


def build_t5_tokenizer() -> T5Tokenizer:
    """Whole words as one token, so that a short sequence holds a caption."""
    vocabulary = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": _SPACE_SCORE}
    for word in _WORDS:
        for form in (word, word.capitalize(), word.upper()):
            vocabulary.setdefault(f"▁{form}", _WORD_SCORE)
    for code in (*range(0x21, 0x7F), *range(0xA1, 0x100)):
        vocabulary.setdefault(chr(code), _CHARACTER_SCORE)
    return T5Tokenizer(vocab=list(vocabulary.items()), extra_ids=0, model_max_length=512)
