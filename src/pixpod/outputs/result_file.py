"""The file beside a job's images from which the same job is answered again.

It has no prompt, no link and no key. Whoever can write to the bucket may forge, copy or cut it, so
its content counts only with the HMAC of the content and of its place under the key secret.
"""

import hmac
import json
from dataclasses import asdict, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

import pixpod
from pixpod.job import AdapterUse, Conditions, ImageFile, Job, ModelIdentity
from pixpod.outputs.keys import keyed_hash

MAX_RESULT_BYTES = 64_000
"""More than any result has: 100 images are 20 kB."""

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SealedPart(BaseModel):
    """A part of the content of a sealed file: JSON of exactly these fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ResultImage(SealedPart):
    """One image; its place in the list is its index, and the job says its seed and format."""

    width: int
    height: int
    sha256: _Hash
    size_bytes: int


class ResultModel(SealedPart):
    """The fields of a ModelIdentity."""

    name: str
    revision: str
    precision: str
    weights: str


class ResultAdapter(SealedPart):
    """The fields of an AdapterUse."""

    name: str
    sha256: _Hash
    rank: int
    layers: int
    scale: float
    cached: bool


class ResultFile(SealedPart):
    """The content. `version` is the worker's: another one may read the same payload differently."""

    version: str
    fingerprint: _Hash
    images: tuple[ResultImage, ...] = Field(min_length=1)
    model: ResultModel
    steps: int
    warnings: tuple[str, ...]
    adapters: tuple[ResultAdapter, ...] = ()

    @property
    def adapters_used(self) -> tuple[AdapterUse, ...]:
        return tuple(AdapterUse(**each.model_dump()) for each in self.adapters)


def fingerprint(job: Job, secret: SecretStr) -> str:
    """Return what two jobs have in common if they ask for the same files under the same names.

    Where these go is no part of it. It is an HMAC because prompts can be guessed.
    """
    request = replace(job.request, conditions=Conditions())
    output = asdict(job.output)
    del output["delivery"], output["fallback"]
    asked = json.dumps([asdict(request), output, job.inputs_digest], sort_keys=True)
    return keyed_hash(secret, f"request {asked}")


def make_result(
    *,
    fingerprint: str,
    images: tuple[ImageFile, ...],
    model: ModelIdentity,
    steps: int,
    warnings: tuple[str, ...],
    adapters: tuple[AdapterUse, ...] = (),
) -> ResultFile:
    """Return the content for a job whose images, in the order of their indices, are stored."""
    return ResultFile(
        version=pixpod.__version__,
        fingerprint=fingerprint,
        images=tuple(
            ResultImage(
                width=image.width,
                height=image.height,
                sha256=image.sha256,
                size_bytes=image.size_bytes,
            )
            for image in images
        ),
        model=ResultModel(**asdict(model)),
        steps=steps,
        warnings=warnings,
        adapters=tuple(ResultAdapter(**asdict(each)) for each in adapters),
    )


def seal_result(result: ResultFile, *, key: str, secret: SecretStr) -> bytes:
    """Return the file for `key`: the HMAC in hex, a line feed, the content as JSON."""
    return seal(result.model_dump_json(), key=key, secret=secret)


def open_result(data: bytes, *, key: str, secret: SecretStr) -> ResultFile:
    """Return the content of the file under `key`.

    Raises ValueError, with the reason, for a file that `seal_result` did not make for this key.
    """
    if len(data) > MAX_RESULT_BYTES:
        raise ValueError(f"expected at most {MAX_RESULT_BYTES} bytes, got more")
    content = unseal(data, key=key, secret=secret)
    try:
        return ResultFile.model_validate_json(content)
    except ValidationError as exc:
        raise ValueError("expected the content of a result, got something else") from exc


def seal(content: str, *, key: str, secret: SecretStr) -> bytes:
    """Return a file whose content counts under `key` only: its HMAC in hex, a line feed, itself."""
    return f"{_hmac(content, key, secret)}\n{content}".encode()


def unseal(data: bytes, *, key: str, secret: SecretStr) -> str:
    """Return the content of a file. Raises ValueError if `seal` did not make it for this key."""
    given, _, content = data.decode("utf-8", "replace").partition("\n")
    if not hmac.compare_digest(given.encode(), _hmac(content, key, secret).encode()):
        raise ValueError("expected the HMAC of this job's file, got another one")
    return content


def _hmac(content: str, key: str, secret: SecretStr) -> str:
    return keyed_hash(secret, f"file {key}\n{content}")
