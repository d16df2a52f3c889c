"""Captions for training, from many templates and with much noise around them.

The canonical caption is `Scene.caption`; everything here makes the models robust to other wording.
`UNSEEN_WORDS` never occur in training, so that tests with them measure generalisation.
"""

import string

import numpy as np

from pixpod_tools.tiny.scenes import Scene, pick, with_article

DROPPED_SHARE = 0.08
"""Share of empty captions, for guidance without a prompt."""
NO_BACKGROUND_SHARE = 0.10

_CANONICAL_SHARE = 0.5
_TEMPLATES = (
    "{subject}, {background} background",
    "a picture of {a_subject} on {a_background} background",
    "{background} background with {a_subject}",
    "a photo of {a_subject} against {a_background} background, high quality",
    "{subject} on {background}",
    "{a_subject}, {background} background",
)
_TEMPLATES_WITHOUT_BACKGROUND = ("{a_subject}", "{subject}", "a picture of {a_subject}")

SEEN_WORDS = (
    "cinematic", "lighting", "style", "anime", "realistic", "watercolor", "oil", "painting",
    "drawing", "portrait", "landscape", "high", "quality", "detailed", "blurry", "low", "bad",
    "ugly", "cat", "dog", "robot", "tree", "house", "car", "sky", "sea", "mountain", "city",
    "river", "moon", "sun", "night", "day", "sunset", "forest", "flower", "bird", "castle",
)  # fmt: skip
UNSEEN_WORDS = (
    "golden hour", "masterpiece", "bokeh", "volumetric fog", "trending", "sharp focus", "8k",
    "vintage film", "macro lens",
)  # fmt: skip


def vary(scene: Scene, rng: np.random.Generator) -> str:
    """Return one of many captions of a scene; some are empty, some omit the background."""
    if rng.random() < DROPPED_SHARE:
        return ""
    return _in_some_case(_among_other_words(_in_some_template(scene, rng), rng), rng)


def _in_some_template(scene: Scene, rng: np.random.Generator) -> str:
    if rng.random() < NO_BACKGROUND_SHARE:
        template = pick(rng, _TEMPLATES_WITHOUT_BACKGROUND)
    elif rng.random() < _CANONICAL_SHARE:
        return scene.caption
    else:
        template = pick(rng, _TEMPLATES)
    return template.format(
        subject=scene.subject,
        a_subject=with_article(scene.subject),
        background=scene.background,
        a_background=with_article(scene.background),
    )


def _among_other_words(caption: str, rng: np.random.Generator) -> str:
    where = rng.random()
    if where < 0.25:
        caption = f"{caption}, {_other_words(rng)}"
    elif where < 0.33:
        caption = f"{_other_words(rng)}{pick(rng, (' of ', ', ', ' '))}{caption}"
    return caption.replace(",", "") if rng.random() < 0.15 else caption


def _other_words(rng: np.random.Generator) -> str:
    return " ".join(
        _gibberish(rng) if rng.random() < 0.35 else pick(rng, SEEN_WORDS)
        for _ in range(int(rng.integers(1, 4)))
    )


def _gibberish(rng: np.random.Generator) -> str:
    """Return random letters, which teach a model that unknown words have no meaning."""
    letters = string.ascii_lowercase + "0123456789" * (rng.random() < 0.1)
    return "".join(pick(rng, letters) for _ in range(int(rng.integers(2, 9))))


def _in_some_case(caption: str, rng: np.random.Generator) -> str:
    case = rng.random()
    if case < 0.12:
        caption = caption.capitalize()
    elif case < 0.19:
        caption = caption.title()
    elif case < 0.26:
        caption = caption.upper()
    return f"{caption}." if rng.random() < 0.15 else caption
