"""The file beside a job's images from which the same job is answered again.

It has no prompt, no link and no key. Whoever can write to the bucket may forge, copy or cut it, so
its content counts only with the HMAC of the content and of its place under the key secret.
"""

import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

import pixpod
from pixpod.job import (
    AdapterUse,
    Conditions,
    DroppedImage,
    EncodedResult,
    ImageFile,
    ImageFormat,
    Job,
    SafetyAction,
    SafetyVerdict,
)
from pixpod.outputs.keys import keyed_hash

MAX_RESULT_BYTES = 64_000
"""More than any result has: 100 images are 20 kB."""

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SealedPart(BaseModel):
    """A part of the content of a sealed file: JSON of exactly these fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ResultVerdict(SealedPart):
    """The fields of a SafetyVerdict."""

    nsfw: bool
    score: float


class ResultImage(SealedPart):
    """The file of one image; the job says its seed and format."""

    index: int
    width: int
    height: int
    sha256: _Hash
    size_bytes: int
    verdict: ResultVerdict | None = None


class ResultDropped(SealedPart):
    """The fields of a DroppedImage, but for its seed: it has no file."""

    index: int
    width: int
    height: int
    verdict: ResultVerdict


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
    """The content. `version` is the worker's: another one may read the same payload differently.

    `safety` is the action for which the images were classified, None if they were not.
    """

    version: str
    fingerprint: _Hash
    safety: Annotated[SafetyAction, Field(strict=False)] | None = None
    images: tuple[ResultImage, ...]
    model: ResultModel
    steps: int
    warnings: tuple[str, ...]
    adapters: tuple[ResultAdapter, ...] = ()
    dropped: tuple[ResultDropped, ...] = ()

    @property
    def adapters_used(self) -> tuple[AdapterUse, ...]:
        return tuple(AdapterUse(**each.model_dump()) for each in self.adapters)

    def image_files(
        self, seeds: Sequence[int | None], format: ImageFormat
    ) -> tuple[ImageFile, ...]:
        """Return the files, for a job whose files have these seeds."""
        return tuple(
            ImageFile(
                seed=seeds[each.index],
                format=format,
                verdict=_verdict(each.verdict),
                **each.model_dump(exclude={"verdict"}),
            )
            for each in self.images
        )

    def dropped_images(self, seeds: Sequence[int]) -> tuple[DroppedImage, ...]:
        """Return the images without a file, for a job of these seeds."""
        return tuple(
            DroppedImage(
                seed=seeds[each.index],
                verdict=SafetyVerdict(**each.verdict.model_dump()),
                **each.model_dump(exclude={"verdict"}),
            )
            for each in self.dropped
        )


def _verdict(verdict: ResultVerdict | None) -> SafetyVerdict | None:
    return SafetyVerdict(**verdict.model_dump()) if verdict else None


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
    made: EncodedResult,
    files: Sequence[ImageFile],
    *,
    fingerprint: str,
    safety: SafetyAction | None = None,
) -> ResultFile:
    """Return the content for a job whose images are stored as `files`."""
    return ResultFile(
        version=pixpod.__version__,
        fingerprint=fingerprint,
        safety=safety,
        images=tuple(
            ResultImage(
                index=file.index,
                width=file.width,
                height=file.height,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                verdict=ResultVerdict(**asdict(file.verdict)) if file.verdict else None,
            )
            for file in files
        ),
        model=ResultModel(**asdict(made.model)),
        steps=made.steps,
        warnings=made.warnings,
        adapters=tuple(ResultAdapter(**asdict(each)) for each in made.adapters),
        dropped=tuple(
            ResultDropped(
                index=each.index,
                width=each.width,
                height=each.height,
                verdict=ResultVerdict(**asdict(each.verdict)),
            )
            for each in made.dropped
        ),
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
