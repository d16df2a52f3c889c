"""Payloads that must be refused, and how, as data: for the parser and for the real handler.

They suit `factories.OFFER`: all built-in models, delivery inline or to a directory. `expected`
pairs each field that is named with a part of what is said about it, in the order of the reply.
"""

from dataclasses import dataclass
from typing import Any

PROMPT = "a red circle on a blue background"
MAX_SEED = 2**53 - 1
HUGE = 10**400


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPayload:
    """`job` is what the platform hands over. Any: JSON documents, some of them broken."""

    id: str
    job: dict[str, Any]
    expected: tuple[tuple[str, str], ...]
    code: str = "invalid_input"


def _bad(id, *expected, code="invalid_input", model="sdxl", **fields):
    given = {"model": model, "prompt": PROMPT} | fields
    return BadPayload(id=id, job={"id": "job-1", "input": given}, expected=expected, code=code)


def _bad_output(id, *expected, code="invalid_input", **fields):
    return _bad(id, *expected, code=code, output=fields)


def _bad_job(id, job, *expected):
    return BadPayload(id=id, job=job, expected=expected)


_GOOD_INPUT = {"model": "sdxl", "prompt": PROMPT}
_NUL_TEXT = "without NUL"
_IMAGE_URL = "https://app.example/image.png"
_UNICODE = "valid Unicode"
_WHOLE = "a whole number"
_BOOLEAN = "true or false"

_JOBS = (
    _bad_job("id missing", {"input": _GOOD_INPUT}, ("id", "a string")),
    _bad_job("id null", {"id": None, "input": _GOOD_INPUT}, ("id", "a string")),
    _bad_job("id empty", {"id": "", "input": _GOOD_INPUT}, ("id", "not empty")),
    _bad_job("id a number", {"id": 7, "input": _GOOD_INPUT}, ("id", "a string")),
    _bad_job("id no Unicode", {"id": "\ud800", "input": _GOOD_INPUT}, ("id", _UNICODE)),
    _bad_job("input missing", {"id": "job-1"}, ("input", "an object")),
    _bad_job("input null", {"id": "job-1", "input": None}, ("input", "an object")),
    _bad_job("input a list", {"id": "job-1", "input": [_GOOD_INPUT]}, ("input", "an object")),
    _bad_job("input a string", {"id": "job-1", "input": "{}"}, ("input", "an object")),
    _bad_job("id and input missing", {}, ("id", "a string"), ("input", "an object")),
    _bad_job(
        "input empty",
        {"id": "job-1", "input": {}},
        ("model", "required"),
        ("prompt", "required"),
    ),
)

_NAMES = (
    _bad("unknown field", ("flavour", "a field of the contract"), flavour="salt"),
    _bad("misspelt field", ("num_inference_step", "'num_inference_steps'"), num_inference_step=4),
    _bad("a name of A1111", ("cfg_scale", "here it is guidance_scale"), cfg_scale=7),
    _bad("a name of OpenAI", ("size", "width and height"), size="1024x1024"),
    _bad("webhook inside input", ("webhook", "webhook_url"), webhook="https://example.org"),
    _bad("a dotted name", ("output.quality", "a field of"), **{"output.quality": 5}),
    _bad("a dotted reserved name", ("output.put_urls", "a field of"), **{"output.put_urls": []}),
    _bad("a dotted strange name", ("a.b", "a field of the contract"), **{"a.b": 1}),
    _bad("an empty name", ("", "a field of the contract"), **{"": 1}),
    _bad("a name no Unicode", ("?", "a field of the contract"), **{"\ud800": 1}),
    _bad("a long name", ("x" * 80 + "...", "a field of"), **{"x" * 100_000: 1}),
    _bad_output("nested unknown field", ("output.colour", "a field of the contract"), colour=1),
    _bad_output("nested misspelt field", ("output.formt", "'format'"), formt="png"),
    _bad_output("nested name no Unicode", ("output.?", "a field of the contract"), **{"\udc00": 1}),
)

_TYPES = (
    _bad("model unknown", ("model", "'sdxl-tiny'"), model="sdxl-tinny"),
    _bad("model a number", ("model", "a string"), model=15),
    _bad("model null", ("model", "a string"), model=None),
    _bad("model no Unicode", ("model", "one of"), model="\ud800"),
    _bad("prompt null", ("prompt", "a string"), prompt=None),
    _bad("prompt a number", ("prompt", "a string"), prompt=5),
    _bad("prompt a list", ("prompt", "a string"), prompt=[PROMPT]),
    _bad("prompt empty", ("prompt", "not empty"), prompt=""),
    _bad("prompt blank", ("prompt", "not blank"), prompt=" \n\t\u00a0\u3000"),
    _bad("prompt only NUL", ("prompt", "not blank"), prompt="\0"),
    _bad("prompt with NUL", ("prompt", _NUL_TEXT), prompt="a\0b"),
    _bad("prompt no Unicode", ("prompt", _UNICODE), prompt="a \ud83d circle"),
    _bad("prompt too long", ("prompt", "at most 10000 characters"), prompt="x" * 10_001),
    _bad("prompt_2 empty", ("prompt_2", "not empty"), prompt_2=""),
    _bad("prompt_2 with NUL", ("prompt_2", _NUL_TEXT), prompt_2="\0"),
    _bad("negative_prompt with NUL", ("negative_prompt", _NUL_TEXT), negative_prompt="\0"),
    _bad("negative_prompt true", ("negative_prompt", "a string"), negative_prompt=True),
    _bad("negative_prompt too long", ("negative_prompt", "10000"), negative_prompt="x" * 10_001),
    _bad("width a string", ("width", _WHOLE), width="1024"),
    _bad("width a boolean", ("width", _WHOLE), width=True),
    _bad("width a float", ("width", _WHOLE), width=1024.0),
    _bad("width zero", ("width", "more than 0"), width=0),
    _bad("width negative", ("width", "more than 0"), width=-1024),
    _bad("width huge", ("width", "512 to 2048"), width=HUGE),
    _bad("height a list", ("height", _WHOLE), height=[1024]),
    _bad("steps zero", ("num_inference_steps", "at least 1"), num_inference_steps=0),
    _bad("steps a boolean", ("num_inference_steps", _WHOLE), num_inference_steps=True),
    _bad("guidance a string", ("guidance_scale", "a number"), guidance_scale="7"),
    _bad("guidance a boolean", ("guidance_scale", "a number"), guidance_scale=True),
    _bad("guidance negative", ("guidance_scale", "at least 0"), guidance_scale=-0.1),
    _bad("guidance NaN", ("guidance_scale", "finite"), guidance_scale=float("nan")),
    _bad("guidance infinite", ("guidance_scale", "finite"), guidance_scale=float("inf")),
    _bad("guidance huge", ("guidance_scale", "a number"), guidance_scale=HUGE),
    _bad("quality unknown", ("quality", "'turbo'"), quality="turb"),
    _bad("quality of a JPEG", ("quality", "one of 'max', 'default'"), quality=90),
    _bad("deterministic a number", ("deterministic", _BOOLEAN), deterministic=1),
    _bad("deterministic a string", ("deterministic", _BOOLEAN), deterministic="true"),
    _bad("on_long_prompt unknown", ("on_long_prompt", "'truncate'"), on_long_prompt="truncat"),
    _bad("prompt_weights a number", ("prompt_weights", _BOOLEAN), prompt_weights=1),
    _bad("clip_skip negative", ("clip_skip", "at least 0"), clip_skip=-1),
    _bad("clip_skip a boolean", ("clip_skip", _WHOLE), clip_skip=True),
    _bad("api_version 2", ("api_version", "at most 1"), api_version=2),
    _bad("api_version 0", ("api_version", "at least 1"), api_version=0),
    _bad("api_version a string", ("api_version", _WHOLE), api_version="1"),
    _bad("scheduler a number", ("scheduler", "a string"), scheduler=1),
    _bad("output a string", ("output", "an object"), output="png"),
    _bad("output a number", ("output", "an object"), output=1),
    _bad("output a list", ("output", "an object"), output=[]),
)

_SEEDS = (
    _bad("seed negative", ("seed", "at least 0"), seed=-1),
    _bad("seed 2^53", ("seed", f"at most {MAX_SEED}"), seed=MAX_SEED + 1),
    _bad("seed huge", ("seed", f"at most {MAX_SEED}"), seed=HUGE),
    _bad("seed a boolean", ("seed", _WHOLE), seed=True),
    _bad("seed a string", ("seed", _WHOLE), seed="42"),
    _bad("seed a float", ("seed", _WHOLE), seed=1.0),
    _bad("seed an object", ("seed", _WHOLE), seed={}),
    _bad("seed an empty list", ("seed", "not empty"), seed=[]),
    _bad("seed a nested list", ("seed[0]", _WHOLE), seed=[[1]]),
    _bad("one bad seed of three", ("seed[1]", _WHOLE), seed=[1, None, 3]),
    _bad("a bad seed alone in its list", ("seed[0]", "at least 0"), seed=[-1]),
    _bad("too many seeds", ("seed", "at most 8 seeds"), seed=list(range(9))),
    _bad("fewer seeds than images", ("seed", "or 3 as"), seed=[1, 2], num_images=3),
    _bad("more seeds than images", ("seed", "or 1 as"), seed=[1, 2], num_images=1),
    _bad("num_images zero", ("num_images", "at least 1"), num_images=0),
    _bad("num_images a boolean", ("num_images", _WHOLE), num_images=True),
    _bad("too many images", ("num_images", "at most 8 for sdxl"), num_images=9),
    _bad("huge num_images", ("num_images", "at most 8 for sdxl"), num_images=HUGE),
)

_MODEL_RULES = (
    _bad("width too small", ("width", "512 to 2048"), width=504),
    _bad("height too large", ("height", "512 to 2048"), height=2056),
    _bad("sdxl multiple", ("width", "1016 and 1024"), width=1020),
    _bad("flux multiple", ("width", "1024 and 1040"), model="flux-dev", width=1032),
    _bad("sd15 multiple", ("height", "512 and 520"), model="sd15", height=515),
    _bad(
        "too many pixels", ("width", "nearest of this shape is 1448x1448"), width=2048, height=2048
    ),
    _bad(
        "too many pixels for tiny", ("width", "128x128"), model="sdxl-tiny", width=256, height=256
    ),
    _bad(
        "both sides wrong",
        ("width", "512 to 2048"),
        ("height", "1000 and 1008"),
        width=9,
        height=1001,
    ),
    _bad(
        "steps for schnell",
        ("num_inference_steps", "12"),
        model="flux-schnell",
        num_inference_steps=13,
    ),
    _bad(
        "steps for lightning",
        ("num_inference_steps", "4, for which sdxl-lightning is made"),
        model="sdxl-lightning",
        num_inference_steps=8,
    ),
    _bad(
        "steps for sdxl-turbo",
        ("num_inference_steps", "1 or 2 or 3 or 4"),
        model="sdxl-turbo",
        num_inference_steps=5,
    ),
    _bad(
        "scheduler for lightning",
        ("scheduler", "one of Euler trailing"),
        model="sdxl-lightning",
        scheduler="Euler",
    ),
    _bad(
        "guidance on lightning",
        ("guidance_scale", "distilled"),
        ("negative_prompt", "runs without guidance"),
        model="sdxl-lightning",
        guidance_scale=2,
        negative_prompt="blurred",
    ),
    _bad(
        "guidance on sdxl-turbo",
        ("guidance_scale", "distilled"),
        model="sdxl-turbo",
        guidance_scale=0,
    ),
    _bad(
        "mask for kontext",
        ("mask", "absent: flux-kontext takes none"),
        model="flux-kontext",
        image=_IMAGE_URL,
        mask=_IMAGE_URL,
    ),
    _bad(
        "strength for kontext",
        ("strength", "absent: flux-kontext edits an image as a whole"),
        model="flux-kontext",
        image=_IMAGE_URL,
        strength=0.5,
    ),
    _bad(
        "nothing to fill",
        ("image", "required by flux-fill"),
        ("mask", "required by flux-fill"),
        model="flux-fill",
    ),
    _bad("no mask to fill", ("mask", "required"), model="flux-fill", image=_IMAGE_URL),
    _bad("no image to fill", ("image", "required"), model="flux-fill", mask=_IMAGE_URL),
    _bad(
        "true_cfg_scale for fill",
        ("true_cfg_scale", "use guidance_scale"),
        ("negative_prompt", "no effect on FLUX Fill"),
        model="flux-fill",
        image=_IMAGE_URL,
        mask=_IMAGE_URL,
        true_cfg_scale=2,
        negative_prompt="blurred",
    ),
    _bad("turbo for kontext", ("quality", "max, default"), model="flux-kontext", quality="turbo"),
    _bad(
        "two images for kontext",
        ("image", "one image for flux-kontext"),
        model="flux-kontext",
        image=["https://app.example/1.png", "https://app.example/2.png"],
    ),
    _bad(
        "five images for klein",
        ("image", "at most 4 images for flux2-klein"),
        model="flux2-klein",
        image=["https://app.example/1.png"] * 5,
    ),
    _bad("no image in a list", ("image", "a list that is not empty"), image=[]),
    _bad("number in a list of images", ("image[1]", "a string"), image=["QUJD", 5]),
    _bad(
        "mask for klein",
        ("mask", "absent: flux2-klein takes none"),
        model="flux2-klein",
        image="https://app.example/1.png",
        mask="https://app.example/2.png",
    ),
    _bad(
        "guidance for z-image-turbo",
        ("guidance_scale", "distilled"),
        model="z-image-turbo",
        guidance_scale=3,
    ),
    _bad("turbo for sdxl", ("quality", "max, default for sdxl"), quality="turbo"),
    _bad("turbo for schnell", ("quality", "many steps"), model="flux-schnell", quality="turbo"),
    _bad("steps for sdxl", ("num_inference_steps", "at most 150"), num_inference_steps=151),
    _bad(
        "guidance on schnell",
        ("guidance_scale", "distilled"),
        model="flux-schnell",
        guidance_scale=0,
    ),
    _bad("guidance too high", ("guidance_scale", "0 to 30"), guidance_scale=30.5),
    _bad("true_cfg_scale on sdxl", ("true_cfg_scale", "use guidance_scale"), true_cfg_scale=2),
    _bad(
        "true_cfg_scale on sd15",
        ("true_cfg_scale", "SD 1.5 models do not have it"),
        model="sd15",
        true_cfg_scale=1,
    ),
    _bad(
        "true_cfg_scale below 1",
        ("true_cfg_scale", "at least 1"),
        model="flux-dev",
        true_cfg_scale=0.5,
    ),
    _bad(
        "true_cfg_scale too high",
        ("true_cfg_scale", "1 to 30"),
        model="flux-dev",
        true_cfg_scale=31,
        negative_prompt="",
    ),
    _bad(
        "true_cfg_scale without negative",
        ("true_cfg_scale", "give a negative_prompt"),
        model="flux-dev",
        true_cfg_scale=2,
    ),
    _bad(
        "negative without true_cfg_scale",
        ("negative_prompt", "true_cfg_scale is above 1"),
        model="flux-dev",
        negative_prompt="text",
    ),
    _bad(
        "negative with true_cfg_scale 1",
        ("negative_prompt", "true_cfg_scale is above 1"),
        model="flux-schnell",
        negative_prompt="text",
        true_cfg_scale=1,
    ),
    _bad(
        "negative without guidance",
        ("negative_prompt", "guidance_scale is above 1"),
        negative_prompt="text",
        guidance_scale=1,
    ),
    _bad(
        "max_sequence_length on sdxl",
        ("max_sequence_length", "SDXL models do not have it"),
        max_sequence_length=77,
    ),
    _bad(
        "512 tokens on schnell",
        ("max_sequence_length", "at most 256"),
        model="flux-schnell",
        max_sequence_length=257,
    ),
    _bad(
        "max_sequence_length zero",
        ("max_sequence_length", "at least 1"),
        model="flux-dev",
        max_sequence_length=0,
    ),
    _bad("weights on flux", ("prompt_weights", "absent"), model="flux-dev", prompt_weights=True),
    _bad("clip_skip on flux", ("clip_skip", "absent"), model="flux-dev", clip_skip=0),
    _bad(
        "chunks on flux", ("on_long_prompt", "truncate"), model="flux-dev", on_long_prompt="chunk"
    ),
    _bad("clip_skip of all layers", ("clip_skip", "at most 11"), model="sd15", clip_skip=12),
    _bad("clip_skip of sdxl", ("clip_skip", "at most 10"), model="sdxl", clip_skip=11),
    _bad(
        "weighted prompt too long",
        ("prompt", "at most 2000"),
        prompt_weights=True,
        prompt="x" * 2001,
    ),
    _bad(
        "prompt_2 on sd15",
        ("prompt_2", "SD 1.5 models do not have it"),
        model="sd15",
        prompt_2="a cat",
    ),
    _bad(
        "scheduler misspelt", ("scheduler", "'EulerDiscreteScheduler'"), scheduler="EulerDiscrete"
    ),
    _bad(
        "scheduler of another family",
        ("scheduler", "one of Euler"),
        scheduler="FlowMatchEulerDiscreteScheduler",
    ),
    _bad(
        "scheduler with strange text", ("scheduler", "one of Euler"), scheduler="\ud800__import__"
    ),
)

_OUTPUT = (
    _bad_output("format unknown", ("output.format", "did you mean 'jpeg'?"), format="jpg"),
    _bad_output("format a list", ("output.format", "one of 'png'"), format=["png"]),
    _bad_output("quality with png", ("output.quality", "jpeg or webp"), quality=80, format="png"),
    _bad_output("quality without format", ("output.quality", "PNG is lossless"), quality=80),
    _bad_output("quality zero", ("output.quality", "at least 1"), quality=0, format="jpeg"),
    _bad_output("quality 101", ("output.quality", "at most 100"), quality=101, format="webp"),
    _bad_output("quality a boolean", ("output.quality", _WHOLE), quality=True, format="jpeg"),
    _bad_output("delivery unknown", ("output.delivery", "one of 's3'"), delivery="email"),
    _bad_output("delivery not offered", ("output.delivery", "inline, directory"), delivery="s3"),
    _bad_output("key_prefix climbs", ("output.key_prefix", "other than"), key_prefix="a/../../b"),
    _bad_output("key_prefix absolute", ("output.key_prefix", "other than"), key_prefix="/etc"),
    _bad_output("key_prefix with a gap", ("output.key_prefix", "other than"), key_prefix="a//b"),
    _bad_output("key_prefix with a space", ("output.key_prefix", "A-Z"), key_prefix="a b"),
    _bad_output("key_prefix with backslash", ("output.key_prefix", "A-Z"), key_prefix="a\\..\\b"),
    _bad_output("key_prefix with newline", ("output.key_prefix", "A-Z"), key_prefix="a\n"),
    _bad_output("key_prefix no Unicode", ("output.key_prefix", "A-Z"), key_prefix="\ud800"),
    _bad_output("key_prefix too long", ("output.key_prefix", "200"), key_prefix="x" * 201),
    _bad("idempotency_key empty", ("idempotency_key", "1 to 64"), idempotency_key=""),
    _bad("idempotency_key with a dot", ("idempotency_key", "A-Z"), idempotency_key="a.b"),
    _bad("idempotency_key too long", ("idempotency_key", "1 to 64"), idempotency_key="x" * 65),
    _bad("idempotency_key a number", ("idempotency_key", "a string"), idempotency_key=7),
    _bad("idempotency_key without s3", ("idempotency_key", "bucket"), idempotency_key="order-7"),
    _bad_output("name of a file empty", ("output.name", "1 to 80"), name=""),
    _bad_output("name of a file with a slash", ("output.name", "A-Z"), name="a/b"),
    _bad_output("name of a file hidden", ("output.name", "no dot"), name=".png"),
    _bad_output("name of a file with newline", ("output.name", "A-Z"), name="a\n"),
    _bad_output("name of a file too long", ("output.name", "1 to 80"), name="x" * 81),
    _bad_output("name of a file a number", ("output.name", "a string"), name=7),
    _bad_output("metadata a string", ("output.metadata", _BOOLEAN), metadata="no"),
)

_PUT = "https://example.org/put"
_S3_CONFIG = {
    "endpointUrl": "https://s3.eu-west-3.amazonaws.com",
    "bucketName": "mine",
    "accessId": "id",
    "accessSecret": "hidden",
}


def _bad_s3_config(id: str, *expected: tuple[str, str], code: str = "invalid_input", **changes):
    config = _S3_CONFIG | changes
    return BadPayload(
        id=id,
        job={"id": "job-1", "input": _GOOD_INPUT, "s3Config": config},
        expected=expected,
        code=code,
    )


_PLACES = (
    _bad_output("put_urls a text", ("output.put_urls", "a list"), put_urls=_PUT),
    _bad_output("put_urls empty", ("output.put_urls", "not empty"), put_urls=[]),
    _bad_output("put_urls of numbers", ("output.put_urls[0]", "an object"), put_urls=[5]),
    _bad_output("put_url no URL", ("output.put_urls[0].url", "required"), put_urls=[{}]),
    _bad_output("put_url unknown field", ("output.put_urls[0]", "url and"), put_urls=[{"a": 1}]),
    _bad_output(
        "put_url with Host",
        ("output.put_urls[0].headers", "only content-type"),
        put_urls=[{"url": _PUT, "headers": {"Host": "inside"}}],
    ),
    _bad_output(
        "put_url with a line break",
        ("output.put_urls[0].headers", "printable"),
        put_urls=[{"url": _PUT, "headers": {"x-amz-meta-a": "a\r\nHost: b"}}],
    ),
    _bad_output(
        "put_url with a header of a number",
        ("output.put_urls[0].headers", "printable"),
        put_urls=[{"url": _PUT, "headers": {"x-amz-meta-a": 1}}],
    ),
    _bad_output(
        "put_url with a header twice",
        ("output.put_urls[0].headers", "once"),
        put_urls=[{"url": _PUT, "headers": {"X-Amz-A": "1", "x-amz-a": "1"}}],
    ),
    _bad_output(
        "put_urls too many",
        ("output.put_urls", "1 URLs"),
        code="put_refused",
        put_urls=[_PUT, _PUT],
    ),
    _bad_output(
        "put_url without TLS",
        ("output.put_urls[0]", "https"),
        code="put_refused",
        put_urls=["http://example.org/put"],
    ),
    _bad_output(
        "put_url inside",
        ("output.put_urls[0]", "public"),
        code="put_refused",
        put_urls=["https://169.254.169.254/latest"],
    ),
    _bad_output(
        "put_url expired",
        ("output.put_urls[0]", "it expired"),
        code="put_refused",
        put_urls=[f"{_PUT}?X-Amz-Date=20200101T000000Z&X-Amz-Expires=60&X-Amz-Signature=a"],
    ),
    _bad(
        "put_url inside and a mistake",
        ("width", "more than 0"),
        ("output.put_urls[0]", "public"),
        width=0,
        output={"put_urls": ["https://10.0.0.1/"]},
    ),
    _bad_output("delivery by put without URLs", ("output.delivery", "put_urls"), delivery="put"),
    _bad_output(
        "delivery by s3_config without it", ("output.delivery", "s3Config"), delivery="s3_config"
    ),
    _bad_output(
        "put_urls with another delivery",
        ("output.put_urls", "absent"),
        put_urls=[_PUT],
        delivery="inline",
    ),
    _bad_output("fallback a text", ("output.fallback", "true or false"), fallback="no"),
    BadPayload(
        id="s3Config a text",
        job={"id": "job-1", "input": _GOOD_INPUT, "s3Config": "mine"},
        expected=(("s3Config", "an object of endpointUrl"),),
    ),
    _bad_s3_config("s3Config unknown field", ("s3Config", "an object of"), region="eu"),
    _bad_s3_config("s3Config endpoint null", ("s3Config.endpointUrl", "string"), endpointUrl=None),
    _bad_s3_config("s3Config bucket odd", ("s3Config.bucketName", "A-Z"), bucketName="a/b"),
    _bad_s3_config("s3Config secret empty", ("s3Config.accessSecret", "empty"), accessSecret=""),
    _bad_s3_config("s3Config path climbs", ("s3Config.objectPath", "parts"), objectPath="../a"),
    _bad_s3_config(
        "s3Config inside",
        ("s3Config.endpointUrl", "public"),
        code="put_refused",
        endpointUrl="https://10.0.0.1:9000",
    ),
)

_HOOK = "https://app.example/hook"
_WEBHOOKS = (
    _bad("webhook a number", ("webhook_url", "a string"), webhook_url=1),
    _bad("webhook empty", ("webhook_url", "a URL with https"), webhook_url=""),
    _bad("webhook by http", ("webhook_url", "a URL with https"), webhook_url="http://app.example/"),
    _bad("webhook to a file", ("webhook_url", "a URL with https"), webhook_url="file:///etc/hosts"),
    _bad("webhook into the network", ("webhook_url", "public"), webhook_url="https://10.0.0.1/"),
    _bad("webhook to metadata", ("webhook_url", "public"), webhook_url="https://169.254.169.254/"),
    _bad(
        "webhook with a user", ("webhook_url", "without user"), webhook_url="https://a:b@c.example/"
    ),
    _bad("webhook to a port", ("webhook_url", "a port of"), webhook_url="https://app.example:22/"),
    _bad(
        "webhook no Unicode",
        ("webhook_url", "without spaces"),
        webhook_url="https://app.example/\ud800",
    ),
    _bad("events alone", ("webhook_events", "absent without"), webhook_events=["completed"]),
    _bad(
        "events unknown",
        ("webhook_events[1]", "did you mean 'completed'"),
        webhook_url=_HOOK,
        webhook_events=["failed", "complete"],
    ),
    _bad(
        "events empty",
        ("webhook_events", "not empty"),
        webhook_url=_HOOK,
        webhook_events=[],
    ),
    _bad(
        "events a string", ("webhook_events", "a list"), webhook_url=_HOOK, webhook_events="failed"
    ),
)

_IMAGE = "https://example.org/a.png"

_CONDITIONS = (
    _bad("image a number", ("image", "a string"), image=1),
    _bad("image by ftp", ("image", "a URL with http or https"), image="ftp://example.org/a.png"),
    _bad("image in the network", ("image", "public addresses"), image="http://10.0.0.1/a.png"),
    _bad("image no base64", ("image", "base64 without line breaks"), image="a.png"),
    _bad("image empty", ("image", "data that is not empty"), image=""),
    _bad(
        "image and mask",
        ("image", "a URL with http or https"),
        ("mask", "base64 without line breaks"),
        image="file:///etc/passwd",
        mask="/etc/passwd",
    ),
    _bad("mask without image", ("mask", "absent without an image"), mask=_IMAGE),
    _bad("strength without image", ("strength", "absent without an image"), strength=0.5),
    _bad("resize without image", ("resize", "absent without an image"), resize="cover"),
    _bad("blur without mask", ("mask_blur", "absent without a mask"), image=_IMAGE, mask_blur=4),
    _bad("blur negative", ("mask_blur", "at least 0"), image=_IMAGE, mask=_IMAGE, mask_blur=-1),
    _bad("blur 65", ("mask_blur", "at most 64"), image=_IMAGE, mask=_IMAGE, mask_blur=65),
    _bad("strength zero", ("strength", "more than 0"), image=_IMAGE, strength=0),
    _bad("strength above 1", ("strength", "at most 1"), image=_IMAGE, strength=1.5),
    _bad(
        "strength of no step",
        ("strength", "at least 0.05, which is one of 20 steps"),
        image=_IMAGE,
        strength=0.04,
        num_inference_steps=20,
    ),
    _bad(
        "turbo with an image",
        ("quality", "default or max with an image"),
        model="flux-dev",
        image=_IMAGE,
        quality="turbo",
    ),
    _bad("resize unknown", ("resize", "did you mean 'cover'"), image=_IMAGE, resize="covered"),
)

_LORA = {"source": "https://example.org/a.safetensors"}
_B = {"source": "https://example.org/b.safetensors"}
_SHA256 = "0" * 64

_LORAS = (
    _bad("loras an object", ("loras", "a list"), loras=_LORA),
    _bad("loras a text", ("loras", "a list"), loras=_LORA["source"]),
    _bad("lora a text", ("loras[0]", "an object"), loras=[_LORA["source"]]),
    _bad("lora null", ("loras[1]", "an object"), loras=[_LORA, None]),
    _bad("lora a list", ("loras[0]", "an object"), loras=[[_LORA]]),
    _bad("lora without source", ("loras[0].source", "required"), loras=[{"scale": 1}]),
    _bad("lora source null", ("loras[0].source", "a string"), loras=[{"source": None}]),
    _bad("lora source empty", ("loras[0].source", "not empty"), loras=[{"source": ""}]),
    _bad("lora source of base64", ("loras[0].source", "a URL"), loras=[{"source": "AAAA" * 99}]),
    _bad("lora source unknown", ("loras[0].source", "a URL"), loras=[{"source": "frame"}]),
    _bad("lora source a path", ("loras[0].source", "a URL"), loras=[{"source": "../frame"}]),
    _bad("lora source no Unicode", ("loras[0].source", _UNICODE), loras=[{"source": "\ud800"}]),
    _bad("lora source ftp", ("loras[0].source", "http"), loras=[{"source": "ftp://a.org/a"}]),
    _bad(
        "lora source private",
        ("loras[1].source", "public"),
        loras=[_LORA, {"source": "http://10.0.0.1/a"}],
    ),
    _bad("lora scale a text", ("loras[0].scale", "a number"), loras=[_LORA | {"scale": "1"}]),
    _bad("lora scale 4.1", ("loras[0].scale", "at most 4"), loras=[_LORA | {"scale": 4.1}]),
    _bad("lora scale -5", ("loras[0].scale", "at least -4"), loras=[_LORA | {"scale": -5}]),
    _bad("lora scale NaN", ("loras[0].scale", "finite"), loras=[_LORA | {"scale": float("nan")}]),
    _bad("lora scale huge", ("loras[0].scale", "a number"), loras=[_LORA | {"scale": HUGE}]),
    _bad("lora sha256 short", ("loras[0].sha256", "64 of"), loras=[_LORA | {"sha256": "ab"}]),
    _bad("lora sha256 upper", ("loras[0].sha256", "64"), loras=[_LORA | {"sha256": "A" * 64}]),
    _bad("lora unknown field", ("loras[0].colour", "a field"), loras=[_LORA | {"colour": 1}]),
    _bad("lora misspelt field", ("loras[0].scal", "'scale'"), loras=[_LORA | {"scal": 1}]),
    _bad("lora weight", ("loras[0].weight", "here it is scale"), loras=[_LORA | {"weight": 1}]),
    _bad("lora name no Unicode", ("loras[1].?", "a field"), loras=[_LORA, {**_B, "\ud800": 1}]),
    _bad("a dotted lora", ("loras[0].scale", "a field"), **{"loras[0].scale": 1}),
    _bad("lora twice", ("loras[1].source", "each LoRA once"), loras=[_LORA, _LORA]),
    _bad(
        "lora content twice",
        ("loras[2].sha256", "each LoRA once"),
        loras=[
            _LORA | {"sha256": _SHA256},
            {"source": "https://b.org/b"},
            _B | {"sha256": _SHA256},
        ],
    ),
    _bad(
        "too many loras",
        ("loras", "at most 8 for sdxl"),
        loras=[{"source": f"https://example.org/{index}"} for index in range(9)],
    ),
    _bad(
        "several bad loras",
        ("loras[0].scale", "a number"),
        ("loras[2]", "an object"),
        ("loras[3].source", "each LoRA once"),
        ("loras[4].source", "a URL"),
        loras=[_B | {"scale": "1"}, _LORA, 5, _LORA, {"source": "frame"}],
    ),
    _bad(
        "a bad lora and a bad field",
        ("width", "more than 0"),
        ("loras[1].scale", "at most 4"),
        ("loras[2].source", "each LoRA once"),
        loras=[_LORA, _B | {"scale": 9}, _LORA],
        width=0,
    ),
)

_CANNY = {"type": "canny", "image": "https://example.org/edges.png"}


def _bad_control(id, *expected, model="sdxl-tiny", **fields):
    """`expected` has names of fields of the control."""
    named = ((f"controlnets[0].{name}", text) for name, text in expected)
    return _bad(id, *named, model=model, controlnets=[_CANNY | fields])


def _bad_controls(id, *expected, **fields):
    return _bad(id, *expected, model="sdxl-tiny", **fields)


_CONTROLS = (
    _bad_controls("controlnets an object", ("controlnets", "a list"), controlnets=_CANNY),
    _bad_controls("controlnets a text", ("controlnets", "a list"), controlnets="canny"),
    _bad_controls("control a text", ("controlnets[0]", "an object"), controlnets=["canny"]),
    _bad_controls("control null", ("controlnets[1]", "an object"), controlnets=[_CANNY, None]),
    _bad_controls(
        "control without type",
        ("controlnets[0].type", "required"),
        controlnets=[{"image": _CANNY["image"]}],
    ),
    _bad_controls(
        "control without image",
        ("controlnets[0].image", "required"),
        controlnets=[{"type": "canny"}],
    ),
    _bad_control("control type null", ("type", "a string"), type=None),
    _bad_control("control type empty", ("type", "not empty"), type=""),
    _bad_control("control type long", ("type", "at most 64"), type="c" * 65),
    _bad_control("control type unknown", ("type", "one of canny, depth"), type="pose"),
    _bad_control("control type misspelt", ("type", "did you mean 'canny'"), type="cany"),
    _bad_control(
        "control type of others", ("type", "SDXL models"), model="sd15-tiny", type="depth"
    ),
    _bad("controls of no net", ("controlnets", "no ControlNets"), controlnets=[_CANNY]),
    _bad_control("control image null", ("image", "a string"), image=None),
    _bad_control("control image empty", ("image", "not empty"), image=""),
    _bad_control("control image ftp", ("image", "http"), image="ftp://a.org/a"),
    _bad_control("control image private", ("image", "public"), image="http://10.0.0.1/a"),
    _bad_control("control image no base64", ("image", "base64"), image="?"),
    _bad_control("control scale a text", ("scale", "a number"), scale="1"),
    _bad_control("control scale 2.1", ("scale", "at most 2"), scale=2.1),
    _bad_control("control scale -1", ("scale", "at least 0"), scale=-1),
    _bad_control("control scale NaN", ("scale", "finite"), scale=float("nan")),
    _bad_control("control start 1.5", ("start", "at most 1"), start=1.5),
    _bad_control("control start -0.1", ("start", "at least 0"), start=-0.1),
    _bad_control("control start 1", ("start", "less than end, which is 1"), start=1),
    _bad_control("control end 0", ("end", "more than start, which is 0"), end=0),
    _bad_control("control end 1.5", ("end", "at most 1"), end=1.5),
    _bad_control("control start at end", ("start", "less than end"), start=0.5, end=0.5),
    _bad_control("control start after end", ("start", "less than end"), start=0.8, end=0.2),
    _bad_control("control of no step", ("end", "whole step of 12"), start=0.5, end=0.55),
    _bad_control("control unknown field", ("colour", "a field"), colour=1),
    _bad_control("control misspelt field", ("scal", "'scale'"), scal=1),
    _bad_control("control weight", ("weight", "here it is scale"), weight=1),
    _bad_controls("too many controls", ("controlnets", "at most 4"), controlnets=[_CANNY] * 5),
    _bad(
        "controls in turbo",
        ("quality", "max or default with controlnets"),
        model="flux-tiny",
        quality="turbo",
        controlnets=[_CANNY],
    ),
    _bad(
        "true CFG with image and controls",
        ("true_cfg_scale", "1 or absent with image and controlnets"),
        model="flux-tiny",
        image="https://example.org/a.png",
        true_cfg_scale=2.0,
        negative_prompt="text",
        controlnets=[_CANNY],
    ),
    _bad_controls(
        "several bad controls",
        ("controlnets[0].scale", "a number"),
        ("controlnets[2]", "an object"),
        ("controlnets[1].start", "less than end"),
        ("controlnets[3].type", "one of"),
        ("controlnets[3].image", "http"),
        controlnets=[
            _CANNY | {"scale": "1"},
            _CANNY | {"start": 1},
            5,
            {"type": "pose", "image": "ftp://a.org/a"},
        ],
    ),
    _bad_controls("controlnet of others", ("controlnet", "here it is controlnets"), controlnet=1),
)

_FRACTION = {"high_noise_frac": 0.5}


def _bad_refiner(id, *expected, model="sdxl-tiny", refiner=_FRACTION, **fields):
    return _bad(id, *expected, model=model, refiner=refiner, **fields)


_REFINERS = (
    _bad_refiner("refiner a number", ("refiner", "an object"), refiner=10),
    _bad_refiner("refiner a list", ("refiner", "an object"), refiner=[_FRACTION]),
    _bad_refiner("refiner of nothing", ("refiner", "num_inference_steps or"), refiner={}),
    _bad_refiner(
        "refiner of nulls",
        ("refiner", "num_inference_steps or high_noise_frac in it"),
        refiner={"num_inference_steps": None, "high_noise_frac": None},
    ),
    _bad_refiner(
        "refiner of both",
        ("refiner", "not both"),
        refiner=_FRACTION | {"num_inference_steps": 4},
    ),
    _bad_refiner(
        "refiner steps 0",
        ("refiner.num_inference_steps", "at least 1"),
        refiner={"num_inference_steps": 0},
    ),
    _bad_refiner(
        "refiner steps a text",
        ("refiner.num_inference_steps", _WHOLE),
        refiner={"num_inference_steps": "10"},
    ),
    _bad_refiner(
        "refiner steps over the limit",
        ("refiner.num_inference_steps", "at most 50"),
        refiner={"num_inference_steps": 39},
    ),
    _bad_refiner(
        "refiner share 0",
        ("refiner.high_noise_frac", "more than 0"),
        refiner={"high_noise_frac": 0},
    ),
    _bad_refiner(
        "refiner share 1",
        ("refiner.high_noise_frac", "less than 1"),
        refiner={"high_noise_frac": 1},
    ),
    _bad_refiner(
        "refiner share NaN",
        ("refiner.high_noise_frac", "finite"),
        refiner={"high_noise_frac": float("nan")},
    ),
    _bad_refiner(
        "refiner without a step",
        ("refiner.high_noise_frac", "0.083 to 0.917"),
        refiner={"high_noise_frac": 0.97},
    ),
    _bad_refiner(
        "no step before the refiner",
        ("refiner.high_noise_frac", "0.083 to 0.917"),
        refiner={"high_noise_frac": 0.03},
    ),
    _bad_refiner("one step to share", ("num_inference_steps", "at least 2"), num_inference_steps=1),
    _bad_refiner(
        "strength that leaves the refiner's steps only",
        ("strength", "at least 0.584, which is one of 12 steps before 6 of the refiner"),
        image="https://example.org/a.png",
        strength=0.5,
    ),
    _bad_refiner(
        "refiner name unknown",
        ("refiner.name", "one of sdxl-refiner-tiny"),
        refiner=_FRACTION | {"name": "other"},
    ),
    _bad_refiner(
        "refiner name misspelt",
        ("refiner.name", "did you mean 'sdxl-refiner-tiny'"),
        refiner=_FRACTION | {"name": "sdxl-refner-tiny"},
    ),
    _bad_refiner(
        "refiner name of a net",
        ("refiner.name", "one of sdxl-refiner-tiny"),
        refiner=_FRACTION | {"name": "sdxl-canny-tiny"},
    ),
    _bad_refiner(
        "refiner name empty",
        ("refiner.name", "not empty"),
        refiner=_FRACTION | {"name": ""},
    ),
    _bad_refiner("refiner for SD 1.5", ("refiner", "SD 1.5 models have none"), model="sd15-tiny"),
    _bad_refiner("refiner for FLUX", ("refiner", "FLUX models have none"), model="flux-tiny"),
    _bad_refiner("refiner with Heun", ("scheduler", "one of Euler"), scheduler="Heun"),
    _bad_refiner(
        "refiner's steps with LCM",
        ("num_inference_steps", "at most 50 steps with the scheduler LCM those of the refiner"),
        ("refiner.num_inference_steps", "at most 50"),
        scheduler="LCM",
        num_inference_steps=45,
        refiner={"num_inference_steps": 6},
    ),
    _bad_refiner(
        "control after the model's steps",
        ("controlnets[0].start", "one whole step of the first 6"),
        controlnets=[_CANNY | {"start": 0.5}],
    ),
    _bad_refiner("refiner unknown field", ("refiner.flavour", "a field"), refiner={"flavour": 1}),
    _bad_refiner(
        "refiner switch_at",
        ("refiner.switch_at", "here it is high_noise_frac"),
        refiner={"switch_at": 0.8},
    ),
    _bad(
        "refiner fields of others",
        ("refiner_switch_at", "here it is refiner.high_noise_frac"),
        refiner_switch_at=0.8,
    ),
    _bad_refiner(
        "several mistakes about a refiner",
        ("refiner.num_inference_steps", "at least 1"),
        ("refiner.name", "one of"),
        ("scheduler", "one of Euler"),
        scheduler="HeunDiscreteScheduler",
        refiner={"name": "other", "num_inference_steps": 0},
    ),
)

_STYLE = {"image": "https://example.org/style.png"}


def _bad_prompt(id, *expected, model="sd15-tiny", **fields):
    """`expected` has names of fields of the image prompt, "" for itself."""
    named = ((f"ip_adapter.{name}".rstrip("."), text) for name, text in expected)
    return _bad(id, *named, model=model, ip_adapter=_STYLE | fields)


def _bad_images(id, *expected, **fields):
    named = ((f"ip_adapter.{name}".rstrip("."), text) for name, text in expected)
    return _bad(id, *named, model="sd15-tiny", ip_adapter=fields)


_IMAGE_PROMPTS = (
    _bad("image prompt a text", ("ip_adapter", "an object"), model="sd15-tiny", ip_adapter="a"),
    _bad("image prompt a list", ("ip_adapter", "an object"), model="sd15-tiny", ip_adapter=[]),
    _bad("image prompt without adapter", ("ip_adapter", "sdxl takes no"), ip_adapter=_STYLE),
    _bad_images("image prompt empty", ("", "image or images in it")),
    _bad_images("image prompt of a scale", ("", "image or images in it"), scale=1),
    _bad_prompt("image and images", ("", "not both"), images=["https://example.org/a.png"]),
    _bad_prompt("prompt image empty", ("image", "not empty"), image=""),
    _bad_prompt("prompt image a number", ("image", "a string"), image=1),
    _bad_prompt("prompt image ftp", ("image", "http"), image="ftp://a.org/a"),
    _bad_prompt("prompt image private", ("image", "public"), image="http://10.0.0.1/a"),
    _bad_prompt("prompt image no base64", ("image", "base64"), image="?"),
    _bad_images("prompt images a text", ("images", "a list"), images="https://example.org/a"),
    _bad_images("prompt images empty", ("images", "not empty"), images=[]),
    _bad_images("prompt image null", ("images[1]", "a string"), images=["https://a.org/a", None]),
    _bad_images(
        "prompt images of two addresses",
        ("images[0]", "public"),
        ("images[2]", "http"),
        images=["http://10.0.0.1/a", "https://a.org/a", "ftp://a.org/a"],
    ),
    _bad_images("too many prompt images", ("images", "at most 4"), images=["https://a.org/a"] * 5),
    _bad_prompt("image scale a text", ("scale", "a number"), scale="1"),
    _bad_prompt("image scale 1.1", ("scale", "at most 1"), scale=1.1),
    _bad_prompt("image scale -1", ("scale", "at least 0"), scale=-1),
    _bad_prompt("image scale NaN", ("scale", "finite"), scale=float("nan")),
    _bad_prompt("adapter unknown", ("name", "one of sd15-plus"), name="face"),
    _bad_prompt("adapter misspelt", ("name", "did you mean 'sd15-plus'"), name="sd15-pus"),
    _bad_prompt("adapter of others", ("name", "ip_adapter for SDXL models"), name="sdxl-plus"),
    _bad_prompt("adapter empty", ("name", "not empty"), name=""),
    _bad_prompt("image prompt unknown field", ("colour", "a field"), colour=1),
    _bad_prompt("image prompt misspelt field", ("scal", "'scale'"), scal=1),
    _bad_prompt("image prompt weight", ("weight", "here it is scale"), weight=1),
    _bad(
        "true CFG with an image prompt",
        ("true_cfg_scale", "1 or absent with ip_adapter"),
        model="flux-tiny",
        true_cfg_scale=2.0,
        negative_prompt="text",
        ip_adapter=_STYLE,
    ),
    _bad(
        "resize of an image prompt",
        ("resize", "absent without an image"),
        model="sd15-tiny",
        resize="stretch",
        ip_adapter=_STYLE,
    ),
    _bad("image prompt of others", ("image_prompt", "here it is ip_adapter"), image_prompt=1),
)

_SAFETY = (_bad("safety of another kind", ("safety", "true or false"), safety="drop"),)

_PREPROCESS = (
    _bad(
        "preprocess a text",
        ("controlnets[0].preprocess", "true or false"),
        model="sdxl-tiny",
        controlnets=[{"type": "canny", "image": _IMAGE, "preprocess": "canny"}],
    ),
    _bad(
        "control images of none",
        ("output.controls", "absent unless a control image is made by"),
        output={"controls": True},
    ),
    _bad(
        "control images of ready ones",
        ("output.controls", "absent unless a control image is made by"),
        model="sdxl-tiny",
        controlnets=[{"type": "canny", "image": _IMAGE, "preprocess": False}],
        output={"controls": True},
    ),
    _bad(
        "control images a text",
        ("output.controls", "true or false"),
        output={"controls": "all"},
    ),
    _bad(
        "preprocessor by name",
        ("controlnets[0].preprocessor", "here it is preprocess"),
        model="sdxl-tiny",
        controlnets=[{"type": "canny", "image": _IMAGE, "preprocessor": "canny"}],
    ),
    _bad(
        "no URL for the control image",
        ("output.put_urls", "3 URLs, one per image and 1 for control images"),
        code="put_refused",
        num_images=2,
        model="sdxl-tiny",
        controlnets=[{"type": "canny", "image": _IMAGE, "preprocess": True}],
        output={"controls": True, "put_urls": ["https://example.org/1", "https://example.org/2"]},
    ),
)

_UPSCALE = (
    _bad("upscale 3", ("upscale", "2 or 4"), upscale=3),
    _bad("upscale true", ("upscale", "2 or 4"), upscale=True),
    _bad("upscale a text", ("upscale", "2 or 4"), upscale="2"),
    _bad("upscale a fraction", ("upscale", "2 or 4"), upscale=2.5),
    _bad(
        "images with too many pixels",
        ("upscale", "a job may have 134217728 pixels, and 8 of 4352x4096 have 142606336"),
        model="sdxl",
        width=1088,
        num_images=8,
        upscale=4,
    ),
    _bad("upscaler of others", ("upscaler", "here it is upscale"), upscaler="x"),
)

_SEVERAL = (
    _bad(
        "everything at once",
        ("prompt", "not blank"),
        ("width", _WHOLE),
        ("seed[0]", "at least 0"),
        ("seed[1]", _WHOLE),
        ("safety", "true or false"),
        ("output.quality", "at most 100"),
        ("flavour", "a field of the contract"),
        ("height", "520 and 528"),
        ("num_inference_steps", "at most 150"),
        ("scheduler", "one of"),
        ("output.delivery", "inline"),
        prompt=" ",
        width="wide",
        height=525,
        seed=[-1, "x"],
        num_inference_steps=1000,
        scheduler="",
        flavour=1,
        safety=1,
        output={"quality": 1000, "format": "jpeg", "delivery": "s3"},
    ),
    _bad("model and width", ("width", _WHOLE), ("model", "one of"), model="dall-e", width="x"),
    _bad(
        "only the malformed half of a pair",
        ("true_cfg_scale", "a number"),
        model="flux-dev",
        negative_prompt="x",
        true_cfg_scale="2",
    ),
    _bad(
        "the other malformed half",
        ("negative_prompt", "a string"),
        model="flux-dev",
        negative_prompt=1,
        true_cfg_scale=2,
    ),
    _bad(
        "quality with an unknown format",
        ("output.format", "one of"),
        output={"format": "gif", "quality": 80},
    ),
    _bad(
        "negative with malformed guidance",
        ("guidance_scale", "a number"),
        guidance_scale="1",
        negative_prompt="x",
    ),
)

BAD_PAYLOADS: tuple[BadPayload, ...] = (
    *_JOBS,
    *_NAMES,
    *_TYPES,
    *_SEEDS,
    *_MODEL_RULES,
    *_OUTPUT,
    *_PLACES,
    *_WEBHOOKS,
    *_CONDITIONS,
    *_LORAS,
    *_CONTROLS,
    *_REFINERS,
    *_IMAGE_PROMPTS,
    *_SAFETY,
    *_PREPROCESS,
    *_UPSCALE,
    *_SEVERAL,
)
