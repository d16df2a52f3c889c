"""Sensitive texts are masked in each form in which something prints them, by any thread."""

import io
import json
import sys
import threading
import time
from urllib.parse import quote, quote_plus

import pytest

from pixpod.logs import MaskedStream
from pixpod.masking import MAX_ENDED_JOBS, Masks
from pixpod.sensitive_forms import MASK, MIN_PIECE_CHARACTERS

PROMPT = 'a "red" café\non a blue / background & more'
LONG = " ".join(f"word{number}" for number in range(400))
FORMS = {
    "plain": PROMPT,
    "repr": repr(PROMPT),
    "repr of bytes": repr(PROMPT.encode()),
    "JSON": json.dumps({"prompt": PROMPT}),
    "JSON in Unicode": json.dumps([PROMPT], ensure_ascii=False),
    "JSON in JSON": json.dumps(json.dumps(PROMPT)),
    "repr in JSON": json.dumps(f"ValueError({PROMPT!r})"),
    "path of a URL": quote(PROMPT),
    "query of a URL": quote(PROMPT, safe=""),
    "form": quote_plus(PROMPT),
}


def masked(text, *sensitive):
    masks = Masks()
    with masks.hiding(sensitive):
        return masks.mask(text)


@pytest.mark.parametrize("form", FORMS)
def test_text_is_masked_in_each_form(form):
    shown = masked(f"before {FORMS[form]} after", PROMPT)
    assert MASK in shown
    assert not [word for word in ("red", "caf", "blue", "background") if word in shown]
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_longest_text_is_masked_first():
    assert masked("a lighthouse at dusk", "lighthouse", "a lighthouse at dusk") == MASK


def test_short_texts_and_other_words_stay():
    assert masked("a red circle", "red", "circles.") == "a red circle"


def test_pieces_of_a_text_that_was_cut_are_masked():
    cut = f"{LONG[:200]} ...TRUNCATED 900 CHARACTERS... {LONG[-200:]}"
    assert masked(cut, LONG) == f"{MASK} ...TRUNCATED 900 CHARACTERS... {MASK}"
    for begin in range(50):
        piece = LONG[begin : begin + MIN_PIECE_CHARACTERS]
        assert masked(f"<{piece}>", LONG) == f"<{MASK}>"


def test_lines_of_a_text_between_other_things_are_masked():
    """As in the traceback of an exception group."""
    lines = [f"line {number} of a prompt with several of them" for number in range(4)]
    shown = masked("\n".join(f"  | {line}" for line in lines), "\n".join(lines))
    assert shown.count(MASK) == 4
    assert "prompt" not in shown


def test_signatures_are_masked_always():
    url = "https://host/key?X-Amz-Credential=AKIA%2F1&X-Amz-Date=1&X-Amz-Signature=0123abc&design=2"
    shown = f"https://host/key?X-Amz-Credential={MASK}&X-Amz-Date=1&X-Amz-Signature={MASK}&design=2"
    assert Masks().mask(url) == shown
    assert Masks().mask("'?se=2026&sig=abc%3D'") == f"'?se=2026&sig={MASK}'"


def test_texts_are_masked_for_some_jobs_after_their_own():
    masks = Masks()
    with masks.hiding(["the first prompt"]):
        with masks.hiding(["the second prompt"]):
            assert masks.mask("the first prompt, the second prompt") == f"{MASK}, {MASK}"
        assert masks.mask("the second prompt") == MASK
    for number in range(MAX_ENDED_JOBS - 1):
        with masks.hiding([f"another prompt {number}"]), masks.hiding([]):
            pass
    with masks.hiding(["one more prompt"]):
        assert masks.mask("the first prompt") == MASK
        assert masks.mask("the second prompt") == "the second prompt"
    with masks.hiding(["the last prompt"]):
        assert masks.mask("the first prompt") == "the first prompt"


def test_signal_between_two_instructions_may_log():
    """The lock is taken again by the thread that has it."""
    masks = Masks()
    with masks.hiding(["a red circle"]), masks._lock:
        assert masks.mask("a red circle") == MASK


def test_secrets_are_masked_for_good():
    masks = Masks()
    masks.keep(["whsec_pomegranate"])
    for _ in range(2 * MAX_ENDED_JOBS):
        with masks.hiding(["some prompt"]):
            pass
    assert masks.mask("secret whsec_pomegranate") == f"secret {MASK}"


def test_values_are_masked_at_any_depth_and_keep_their_types():
    masks = Masks()
    with masks.hiding(["a red circle"]):
        value = {"a red circle": ["a red circle", {"n": 1, "x": None}], "t": (1.5, True)}
        assert masks.mask_value(value) == {
            MASK: [MASK, {"n": 1, "x": None}],
            "t": [1.5, True],
        }
        assert masks.mask_value(ValueError("a red circle")) == MASK


def test_other_threads_mask_while_jobs_come_and_go():
    masks, errors, is_over = Masks(), [], threading.Event()

    def look():
        while not is_over.is_set():
            if "circle" in masks.mask("a red circle, for good"):
                errors.append("shown")

    with masks.hiding(["a red circle"]):
        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(300):
            with masks.hiding([f"prompt number {number}"]):
                pass
        is_over.set()
        for thread in threads:
            thread.join()
    assert errors == []


HOSTILE = {
    "many texts": [f"{number:04} {'x' * 1000}" for number in range(128)],
    "one letter": ["a" * 16_000, "a" * 15_000],
    "many of one beginning": ["a" * 30 + f"{number:03}" for number in range(128)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_cost_little(kind):
    """Masking runs on the event loop: what takes 20 ms may take 1 s on a busy machine."""
    masks, began_at = Masks(), time.perf_counter()
    with masks.hiding(HOSTILE[kind]):
        masks.mask("a" * 8_000 + "b" + "x" * 8_000)
        masks.mask("a" * 40 + "\n" + "job failed " * 500)
    assert time.perf_counter() - began_at < 1


class TestStream:
    @pytest.fixture
    def written(self):
        return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")

    @pytest.fixture
    def masks(self):
        masks = Masks()
        with masks.hiding(["a red circle", "requestId", 'x", "level": "']):
            yield masks

    @pytest.fixture
    def stream(self, written, masks):
        stream = MaskedStream(written, masks)
        yield stream
        stream.detach()

    def text(self, written):
        return written.buffer.getvalue().decode()

    def test_prints_are_masked_at_once(self, stream, written):
        print("a red circle", 5, file=stream)
        assert self.text(written) == f"{MASK} 5\n"

    def test_tracebacks_are_masked(self, stream, written, monkeypatch):
        monkeypatch.setattr(sys, "stderr", stream)
        try:
            raise ValueError("a red circle")
        except ValueError as exc:
            sys.__excepthook__(type(exc), exc, exc.__traceback__)
        assert f"ValueError: {MASK}" in self.text(written)

    def test_json_objects_keep_their_form(self, stream, written):
        line = {"requestId": "7", "message": "a red circle", "level": "x", "more": [1]}
        print(json.dumps(line), file=stream, flush=True)
        assert json.loads(self.text(written)) == {**line, "message": MASK}

    def test_half_surrogates_and_other_json_are_written(self, stream, written):
        print("\ud800", '["a red circle"]', file=stream)
        assert self.text(written) == f'\\ud800 ["{MASK}"]\n'
