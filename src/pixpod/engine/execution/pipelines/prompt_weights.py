"""Reads the weights of a prompt in the syntax of compel, whose parser does the work."""

import re

import pyparsing
from compel.prompt_parser import Conjunction, FlattenedPrompt, Fragment, PromptParser

from pixpod.job import WeightedText

MAX_WEIGHT = 3.0
"""Weights above 1.6 begin to spoil images of SD 1.5, as compel's documentation says."""

MAX_DEPTH = 8
"""Brackets inside of brackets."""

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_COLON_WEIGHT = re.compile(r"\([^()]*:\s*\d+(\.\d+)?\s*\)")


class BadWeights(Exception):
    """A text cannot be read as it is meant. The message says what is expected."""


def read_weights(text: str) -> WeightedText:
    """Return the parts of a text. Raises BadWeights.

    A text without syntax comes back unchanged, as one part.
    """
    _check_brackets(_ESCAPED.sub("", text))
    # without it, the parser's time grows exponentially with the depth of brackets
    pyparsing.ParserElement.enable_packrat()
    try:
        parsed = PromptParser().parse_conjunction(text)
    except (pyparsing.ParseException, PromptParser.ParsingException, ValueError) as exc:
        raise BadWeights("weights such as (red)1.5, red++ or (red)0.5") from exc
    parts = [(part.text, part.weight) for part in _fragments(parsed) if part.text.strip()]
    if any(not 0 <= weight <= MAX_WEIGHT for _, weight in parts):
        raise BadWeights(f"weights from 0 to {MAX_WEIGHT:g}")
    if not parts or (len(parts) == 1 and parts[0][0].split() == text.split()):
        weight = parts[0][1] if parts else 1.0
        return WeightedText(parts=((text, weight),))
    return WeightedText(parts=tuple(parts))


def _check_brackets(text: str) -> None:
    """Raise BadWeights for brackets that the parser would silently take for text."""
    if _COLON_WEIGHT.search(text):
        raise BadWeights("weights behind the bracket: (red)1.5, not (red:1.5)")
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not 0 <= depth <= MAX_DEPTH:
            break
    if depth:
        raise BadWeights(
            f"pairs of brackets, at most {MAX_DEPTH} deep; those of the text itself are \\( and \\)"
        )


def _fragments(parsed: Conjunction) -> list[Fragment]:
    """Raise BadWeights for what is no weight."""
    prompts = parsed.prompts
    is_plain = len(prompts) == 1 and isinstance(prompts[0], FlattenedPrompt)
    parts: list[Fragment] = prompts[0].children if is_plain else []
    if not is_plain or parsed.lora_weights or not all(type(part) is Fragment for part in parts):
        raise BadWeights("weights only: .and(), .blend(), .swap() and withLora() are not supported")
    return parts
