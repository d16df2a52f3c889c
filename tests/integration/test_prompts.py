"""Weights of prompts, long prompts and clip_skip, through a worker and beside diffusers."""

import copy

import numpy as np
import pytest
import torch
from support.loras import lora_file, with_loras
from support.tiny_models import Desk, build_tiny_worker, share, to_pixels

from pixpod.engine.adapters.copies import AdaptedCopies
from pixpod.engine.adapters.reading import read_adapter
from pixpod.engine.adapters.store import AdapterStore
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.conditions import LoraCondition, Prepared
from pixpod.engine.execution.conditions.text import TextCondition, text_key
from pixpod.engine.execution.pipelines import calls_of, refiner_calls_of
from pixpod.errors import InvalidInput
from pixpod.job import LongPrompt
from pixpod.methods import StageName, batch_key_of
from pixpod.testing.random_loras import random_lora
from pixpod_tools.tiny.checker import recognise
from pixpod_tools.tiny.scenes import Shape

MODELS = ("sdxl-tiny", "sd15-tiny")
FEW, MANY = 8, 40
BACKGROUNDS = ("white", "yellow", "green", "black")
PROMPT = "a red circle on a blue background"
FILLER = "high quality detailed, "
"""Words that the models learned to ignore."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("out"),
        PIXPOD_MODELS=",".join(MODELS),
        PIXPOD_PRECISION=",".join(f"{model}=float32" for model in MODELS),
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


@pytest.fixture(scope="module", params=MODELS)
def model(request, desk):
    return desk.worker.engine.loader.load(request.param).result().loaded


def images(desk, jobs):
    found = desk.replies(jobs)
    assert not [reply["error"] for reply in found if "error" in reply]
    return [to_pixels(reply["images"][0]) for reply in found]


def prepared(model, is_checked=True, **given):
    """A request as it is queued."""
    request = model.spec.default_request(**given)
    condition = TextCondition(ConditionCache(0))
    found = condition.prepare(model, Prepared(request=request)).request
    if is_checked:
        condition.check(model, found)
    return found


def encoded(model, pipe=None, **given):
    request = prepared(model, **given)
    with torch.inference_mode():
        calls = calls_of(model.spec.family)
        return calls.encode_text(pipe or model.full_pipeline(), request, model.device)


def are_equal(some, others):
    assert some.keys() == others.keys()
    return all(torch.equal(some[name], others[name]) for name in some)


def two_colours(number, red="red", blue="blue"):
    one, two = (red, blue) if number % 2 else (blue, red)
    shape = list(Shape)[number % 4]
    return f"a {one} or {two} {shape} on a {BACKGROUNDS[number // 4 % 4]} background"


def red_by_blue(image):
    red, _, blue = image.reshape(-1, 3).mean(axis=0)
    return red / blue


def judge_weights(desk, model, count):
    """Weights shift the colours of most prompts in their direction, either way."""

    def ratios(red, blue, **given):
        jobs = [
            {"model": model, "prompt": two_colours(n, red, blue), "seed": n, **given}
            for n in range(count)
        ]
        return [red_by_blue(image) for image in images(desk, jobs)]

    plain = ratios("red", "blue")
    redder = ratios("(red)1.5", "(blue)0.5", prompt_weights=True)
    bluer = ratios("(red)0.5", "(blue)1.5", prompt_weights=True)
    shifts = (
        share([after > before for before, after in zip(plain, redder, strict=True)]),
        share([after < before for before, after in zip(plain, bluer, strict=True)]),
    )
    print(f"{model}: {shifts[0]:.0%} redder, {shifts[1]:.0%} bluer")
    assert min(shifts) >= 0.8


@pytest.mark.parametrize("name", MODELS)
def test_weights_shift_the_colours(desk, name):
    judge_weights(desk, name, FEW)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", MODELS)
def test_weights_shift_the_colours_of_many_prompts(desk, name):
    judge_weights(desk, name, MANY)


def test_without_weights_the_embeddings_are_equal(model):
    for text in (PROMPT, "state-of-the-art, 1.5 ...  x", "(red circle)", "red\\) circle"):
        letters = {"(red circle)": "red circle", "red\\) circle": "red) circle"}.get(text, text)
        plain, weighted = (
            encoded(model, prompt=letters),
            encoded(model, prompt=text, negative_prompt=None, prompt_weights=True),
        )
        assert are_equal(plain, weighted), text


def test_compel_computes_what_diffusers_does(model):
    """What compel computes is byte-equal to diffusers where nothing has a weight."""
    plain = encoded(model, prompt=PROMPT, negative_prompt="green")
    text = plain["prompt_embeds"].shape[1]
    chunked = encoded(model, prompt=PROMPT, negative_prompt="green", num_chunks=2)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        assert torch.equal(chunked[name][:, :text], plain[name])


def test_brackets_are_letters_without_the_field(desk, model):
    text = "a (red)1.5 circle++"
    pipe = model.full_pipeline()
    with torch.inference_mode():
        stock = pipe.encode_prompt(
            prompt=text,
            device=model.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )[0]
    assert torch.equal(encoded(model, prompt=text)["prompt_embeds"], stock)
    weighted = encoded(model, prompt=text, prompt_weights=True)["prompt_embeds"]
    assert not torch.equal(weighted, stock)


def test_negative_prompt_and_second_prompt_have_weights_too(model):
    given = {"prompt": PROMPT, "prompt_weights": True}
    plain = encoded(model, **given, negative_prompt="green")
    weighted = encoded(model, **given, negative_prompt="(green)1.4")
    assert torch.equal(plain["prompt_embeds"], weighted["prompt_embeds"])
    if "pooled_prompt_embeds" in plain:  # of the text without the syntax
        name = "pooled_prompt_embeds"
        marked = encoded(model, prompt=PROMPT.replace("red", "(red)1.5"), prompt_weights=True)
        assert torch.equal(marked[name], plain[name])
    assert not torch.equal(plain["negative_prompt_embeds"], weighted["negative_prompt_embeds"])
    if "prompt_2" in model.spec.family.prompt_fields:
        first, second = (encoded(model, **given, prompt_2=text) for text in ("x", "(x)1.4"))
        half = first["prompt_embeds"].shape[-1] // 2
        assert torch.equal(first["prompt_embeds"][..., :half], second["prompt_embeds"][..., :half])
        assert not torch.equal(
            first["prompt_embeds"][..., half:], second["prompt_embeds"][..., half:]
        )
        assert torch.equal(first["pooled_prompt_embeds"], second["pooled_prompt_embeds"])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("(red:1.5) circle", "not (red:1.5)"),
        ("a (red circle", "pairs of brackets"),
        ("a red)1.5 circle", "pairs of brackets"),
        ("(" * 9 + "red" + ")" * 9, "at most 8 deep"),
        ("(red)3.1 circle", "from 0 to 3"),
        ("red" + "+" * 12 + " circle", "from 0 to 3"),
        ('("red", "blue").and()', "weights only"),
        ('("red", "blue").blend(1, 1)', "weights only"),
        ("red.swap(blue) circle", "weights only"),
        ("red withLora(x, 1)", "weights only"),
    ],
)
def test_what_is_no_weight_is_refused(desk, text, part):
    reply = desk.reply(model="sdxl-tiny", prompt=PROMPT, negative_prompt=text, prompt_weights=True)
    assert reply["error"].startswith("invalid_input: ")
    assert '"field": "negative_prompt"' in reply["error"]
    assert part in reply["error"]


def test_refiner_reads_weights_chunks_and_clip_skip_too(desk):
    model = desk.worker.engine.loader.load("sdxl-tiny").result().loaded
    text = long_prompt(model, "a (red)1.5 circle")
    name = "prompt_embeds"

    def refined(**given):
        request = prepared(model, prompt_weights=True, guidance_scale=5.0, **given)
        with torch.inference_mode():
            calls = refiner_calls_of(model.spec.family)
            found = calls.encode_text(model.full_pipeline(), request, model.device)
        assert found[name].shape == found["negative_prompt_embeds"].shape
        return found[name]

    plain, weighted = (refined(prompt=f"a {red} circle") for red in ("red", "(red)1.5"))
    skipped = refined(prompt="a red circle", clip_skip=1)
    assert plain.shape == weighted.shape == skipped.shape
    assert not torch.equal(plain, weighted) and not torch.equal(plain, skipped)
    assert refined(prompt=text, on_long_prompt=LongPrompt.CHUNK).shape[1] == 231


# --- long prompts --------------------------------------------------------------------------


def long_prompt(model, last_words, least=140):
    count = next(n for n in range(400) if num_tokens(model, FILLER * n) >= least)
    return FILLER * count + last_words


def num_tokens(model, text):
    return len(model.tokenizers["tokenizer"](text, truncation=False, verbose=False).input_ids)


def test_long_prompt_obeys_its_last_words(desk, model):
    endings = [
        (colour, f"a {colour} {list(Shape)[n % 4]} on a {BACKGROUNDS[n]} background", n)
        for n in range(4)
        for colour in ("red", "blue")
    ]
    jobs = [
        {
            "model": model.spec.name,
            "prompt": long_prompt(model, words),
            "seed": seed,
            "on_long_prompt": "chunk",
        }
        for _, words, seed in endings
    ]
    assert num_tokens(model, jobs[0]["prompt"]) >= 145
    found = [recognise(image).colour for image in images(desk, jobs)]
    hits = share([one == colour for one, (colour, _, _) in zip(found, endings, strict=True)])
    print(f"{model.spec.name}: the last words of {hits:.0%} are obeyed")
    assert hits >= 0.75


def test_chunks_are_those_of_the_text_and_short_texts_are_filled_up(model):
    text = long_prompt(model, PROMPT)
    found = encoded(model, prompt=text, negative_prompt="", on_long_prompt=LongPrompt.CHUNK)
    assert {found[name].shape[1] for name in found if "pooled" not in name} == {231}
    one = encoded(model, prompt=PROMPT, on_long_prompt=LongPrompt.CHUNK)
    assert are_equal(one, encoded(model, prompt=PROMPT))
    empty = encoded(model, prompt="", guidance_scale=5.0, negative_prompt="")["prompt_embeds"]
    assert torch.equal(found["negative_prompt_embeds"], torch.cat([empty] * 3, dim=1))
    cut = encoded(model, prompt=text, on_long_prompt=LongPrompt.TRUNCATE)["prompt_embeds"]
    brief = found["prompt_embeds"][:, :70]  # a chunk ends with a word, truncation may not
    assert torch.equal(brief, cut[:, :70])


def test_brackets_are_letters_in_chunks_and_weights_go_with_them(model):
    text = long_prompt(model, "a (red)1.5 circle")
    given = {"prompt": text, "on_long_prompt": LongPrompt.CHUNK}
    letters, weighted = encoded(model, **given), encoded(model, **given, prompt_weights=True)
    plain = encoded(model, **{**given, "prompt": text.replace("(red)1.5", "red")})
    for name in ("prompt_embeds",):
        assert weighted[name].shape == plain[name].shape
        assert torch.equal(weighted[name][:, :77], plain[name][:, :77])
        assert not torch.equal(weighted[name], plain[name])
        assert not torch.equal(letters[name], weighted[name])


def test_number_of_chunks_parts_batches_and_embeddings(model):
    texts = (PROMPT, long_prompt(model, PROMPT), long_prompt(model, "", least=160))
    short, long, other = (
        prepared(model, prompt=text, on_long_prompt=LongPrompt.CHUNK) for text in texts
    )
    assert [each.text.num_chunks for each in (short, long, other)] == [1, 3, 3]
    assert batch_key_of(short) != batch_key_of(long) == batch_key_of(other)
    keys = {
        text_key(model, prepared(model, prompt=texts[1], **given))
        for given in (
            {"on_long_prompt": LongPrompt.CHUNK},
            {"on_long_prompt": LongPrompt.TRUNCATE},
            {"on_long_prompt": LongPrompt.TRUNCATE, "clip_skip": 1},
        )
    }
    assert len(keys) == 3


def test_too_many_chunks_are_refused(model):
    with pytest.raises(InvalidInput) as caught:
        prepared(model, prompt="circle " * 400, on_long_prompt=LongPrompt.CHUNK)
    (problem,) = caught.value.problems
    assert (problem.field, problem.accepted) == ("prompt", "at most 4 chunks of 75 tokens")


def test_counting_leaves_the_tokenizers_of_the_device_thread_alone(model):
    """They keep how the last call has truncated, and another thread may be in a call."""
    for tokenizer in model.tokenizers.values():
        tokenizer._tokenizer.enable_truncation(12)
    prepared(model, prompt=PROMPT, on_long_prompt=LongPrompt.CHUNK, is_checked=False)
    kept = [tokenizer._tokenizer.truncation for tokenizer in model.tokenizers.values()]
    assert all(each["max_length"] == 12 for each in kept)


# --- clip_skip -----------------------------------------------------------------------------


def test_clip_skip_is_that_of_diffusers(desk, model):
    pipe = model.full_pipeline()
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):  # diffusers#14124: it looks there for the norm
        object.__setattr__(encoder, "text_model", encoder)
    given = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    scheduler = model.spec.defaults.scheduler
    pipe.scheduler = model.scheduler(scheduler)
    with torch.inference_mode():
        stock = pipe(
            prompt=PROMPT,
            negative_prompt="green",
            clip_skip=1,
            generator=[torch.Generator("cpu").manual_seed(5)],
            output_type="np",
            **given,
        ).images[0]
    job = {"model": model.spec.name, "prompt": PROMPT, "negative_prompt": "green", "seed": 5}
    skipped, plain = images(desk, [{**job, **given, "clip_skip": 1}, {**job, **given}])
    assert np.abs(skipped - stock * 255).max() <= 1
    assert not np.array_equal(skipped, plain)


def test_clip_skip_reads_the_same_state_for_weights_and_chunks(model):
    skipped = encoded(model, prompt=PROMPT, clip_skip=1)
    weak = {"prompt": "a (red)1.001 circle on a blue background", "prompt_weights": True}
    near, far = encoded(model, **weak, clip_skip=1), encoded(model, **weak)
    name = "prompt_embeds"
    assert torch.allclose(near[name], skipped[name], atol=0.05)
    assert not torch.allclose(far[name], skipped[name], atol=0.05)
    text = long_prompt(model, PROMPT)
    long = encoded(model, prompt=text, clip_skip=1, on_long_prompt=LongPrompt.CHUNK)
    cut = encoded(model, prompt=text, clip_skip=1, on_long_prompt=LongPrompt.TRUNCATE)
    assert torch.equal(long[name][:, :70], cut[name][:, :70])


def test_clip_skip_of_zero_is_none_and_one_beyond_the_layers_is_refused(desk, model):
    state = model.spec.family.clip_text.state
    most = model.components["text_encoder"].config.num_hidden_layers - state
    assert are_equal(encoded(model, prompt=PROMPT, clip_skip=0), encoded(model, prompt=PROMPT))
    encoded(model, prompt=PROMPT, clip_skip=most)
    reply = desk.reply(model=model.spec.name, prompt=PROMPT, clip_skip=most + 1)
    assert reply["error"].startswith("invalid_input: ")
    assert f"at most {most} for {model.spec.name}" in reply["error"]


def test_loras_of_text_encoders_go_with_weights_and_clip_skip(desk, model, tmp_path):
    file = lora_file(random_lora(model, tmp_path, 5, text=True))
    given = {"prompt": "a (red)1.5 circle", "prompt_weights": True, "clip_skip": 1}
    runner = desk.worker.engine.loader.load(model.spec.name).result().runner
    request = with_loras(model.spec.default_request(**given), file)
    lora = LoraCondition(AdapterStore(), AdaptedCopies())
    replaced = lora.components(
        model, StageName.TEXT_ENCODE, [runner.prepare(model, request).request]
    )
    family = model.spec.family
    assert set(replaced) == set(family.text_encoders)
    pipe = model.pipeline_with(family.default_pipeline, family.component_names, (), replaced)
    found = encoded(model, pipe, **given)["prompt_embeds"]
    without = encoded(model, **given)["prompt_embeds"]
    merged = {name: copy.deepcopy(model.components[name]) for name in family.text_encoders}
    adapter = read_adapter(file, model)
    with torch.no_grad():
        for component, module in merged.items():
            for name, pair in adapter.of(component).items():
                module.get_submodule(name).weight += torch.einsum("or,ri->oi", pair.up, pair.down)
    pipe = model.pipeline_with(family.default_pipeline, family.component_names, (), merged)
    expected = encoded(model, pipe, **given)["prompt_embeds"]
    assert torch.allclose(found, expected, atol=1e-3)
    assert not torch.allclose(found, without, atol=0.1)
    assert torch.equal(encoded(model, **given)["prompt_embeds"], without)
