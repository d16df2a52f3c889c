"""Tokenizers with one token per character, which need no published vocabulary; ids below 512."""

import string
from collections.abc import Callable, Mapping

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer, T5Tokenizer

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


_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if not enable_thinking %}<think>

</think>

{% endif -%}
{%- endif -%}
"""


def qwen_tokenizer() -> Qwen2Tokenizer:
    vocabulary = {piece: number for number, piece in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


_TOKENIZERS: Mapping[str, Callable[[], PreTrainedTokenizerBase]] = {
    "CLIP": clip_tokenizer,
    "T5": t5_tokenizer,
    "Qwen3": qwen_tokenizer,
}


def tokenizer_for(class_name: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer for a text encoder of this class."""
    makers = (make for begin, make in _TOKENIZERS.items() if class_name.startswith(begin))
    return next(makers)()
