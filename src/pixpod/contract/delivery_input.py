"""Destinations of images in a request, as JSON: `output` and the platform's `s3Config`."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError

from pixpod.contract.scalars import BUCKET_NAME, FILE_NAME, Edge
from pixpod.job import Delivery, ImageFormat

PUT_HEADERS = r"(content-type|cache-control|content-disposition|x-(amz|ms|goog)-[a-z0-9-]{1,64})"
MAX_PUT_HEADERS = 32
MAX_HEADER_CHARACTERS = 1_024

_HEADERS_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": MAX_HEADER_CHARACTERS},
    "maxProperties": MAX_PUT_HEADERS,
    "propertyNames": {"pattern": f"^(?i:{PUT_HEADERS})$"},
}


def _check_headers(headers: object) -> object:
    """Return headers with names in lower case. One message for all: names may be secret, too."""
    if not isinstance(headers, dict) or len(headers) > MAX_PUT_HEADERS:
        raise PydanticCustomError("headers", f"an object of at most {MAX_PUT_HEADERS} headers")
    lower = {str(name).lower(): value for name, value in headers.items()}
    if len(lower) < len(headers) or not all(re.fullmatch(PUT_HEADERS, name) for name in lower):
        raise PydanticCustomError(
            "headers",
            "only content-type, cache-control, content-disposition, x-amz-*, x-ms-*, x-goog-*, "
            "each once",
        )
    for value in lower.values():
        if not isinstance(value, str) or not re.fullmatch(
            rf"[\x20-\x7e]{{0,{MAX_HEADER_CHARACTERS}}}", value
        ):
            raise PydanticCustomError(
                "headers", f"values of up to {MAX_HEADER_CHARACTERS} printable ASCII characters"
            )
    return lower


class PutUrlInput(Edge):
    """A destination of one image, which is sent by HTTP PUT."""

    url: str
    headers: (
        Annotated[dict[str, str], BeforeValidator(_check_headers), WithJsonSchema(_HEADERS_SCHEMA)]
        | None
    ) = None


def _as_put_url(value: object) -> object:
    if isinstance(value, dict) and not set(value) <= {"url", "headers"}:
        raise PydanticCustomError("put_url", "a URL, or an object of url and headers")
    return {"url": value} if isinstance(value, str) else value


class S3ConfigInput(Edge):
    """`s3Config` of the platform, which stands beside `input`: a bucket of the job's own."""

    endpoint_url: str = Field(alias="endpointUrl")
    bucket_name: Annotated[str, Field(pattern=BUCKET_NAME)] = Field(alias="bucketName")
    access_id: Annotated[str, Field(min_length=1, max_length=1_024)] = Field(alias="accessId")
    access_secret: Annotated[SecretStr, Field(min_length=1)] = Field(alias="accessSecret")
    object_path: str | None = Field(default=None, alias="objectPath")


class OutputInput(Edge):
    """Encoding and delivery of the images."""

    format: Annotated[ImageFormat, Field(strict=False)] | None = Field(
        default=None, description="png unless given."
    )
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="JPEG and WebP only; 90 unless given."
    )
    delivery: Annotated[Delivery, Field(strict=False)] | None = Field(
        default=None,
        description=(
            "The place that the job names, else the deployment's first choice, unless given; one "
            "that is not offered is refused."
        ),
    )
    put_urls: (
        Annotated[
            list[Annotated[PutUrlInput, BeforeValidator(_as_put_url)]],
            Field(min_length=1),
            WithJsonSchema(
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            {"type": "string"},
                            {
                                "type": "object",
                                "properties": {
                                    "url": {"type": "string"},
                                    "headers": _HEADERS_SCHEMA,
                                },
                                "required": ["url"],
                                "additionalProperties": False,
                            },
                        ]
                    },
                    "minItems": 1,
                }
            ),
        ]
        | None
    ) = Field(
        default=None,
        description=(
            "One presigned URL per image, and then per control image of `output.controls`, to "
            "which it is sent by HTTP PUT; as an object {url, headers} with the headers that were "
            "signed. See delivery.md."
        ),
    )
    fallback: bool | None = Field(
        default=None,
        description=(
            "Put images into the deployment's bucket if another place fails; true unless given."
        ),
    )
    key_prefix: str | None = Field(
        default=None,
        description="Put below the deployment's own prefix; no part of it is '.' or '..'.",
        examples=["customers/42"],
        json_schema_extra={
            "maxLength": 200,
            "pattern": r"^(?!(.*/)?\.{1,2}(/|$))([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/?)?$",
        },
    )
    name: Annotated[str, Field(pattern=FILE_NAME)] | None = Field(
        default=None,
        description="Begins the names of the images' files, before their index.",
        examples=["poster"],
    )
    controls: bool | None = Field(
        default=None,
        description=(
            "Return the control images that `controlnets[].preprocess` makes, as `controls` of the "
            "reply; false unless given."
        ),
    )
    metadata: bool | None = Field(
        default=None,
        description=(
            "Generation data in the file, with prompts unless the deployment leaves them out; true "
            "unless given."
        ),
    )
