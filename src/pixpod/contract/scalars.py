"""Numbers and texts of the contract, and the base of its objects."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

API_VERSION: Literal[1] = 1
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON client holds exactly (IEEE 754 double)."""

MAX_PROMPT_CHARACTERS = 10_000

NO_NUL = r"^[^\x00]*$"
NOT_BLANK = r"^\s*[^\s\x00][^\x00]*$"
FILE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$"
BUCKET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{1,62}$"
IDEMPOTENCY_KEY = r"^[A-Za-z0-9_-]{1,64}$"
SHA256 = r"^[0-9a-f]{64}$"
PATTERNS: Mapping[str, str] = {
    NO_NUL: "text without NUL characters",
    NOT_BLANK: "text that is not blank, without NUL characters",
    BUCKET_NAME: "2 to 63 of A-Z a-z 0-9 . _ -",
    IDEMPOTENCY_KEY: "1 to 64 of A-Z a-z 0-9 _ -",
    FILE_NAME: "1 to 80 of A-Z a-z 0-9 . _ -, the first of them no dot",
    SHA256: "64 of 0-9 a-f",
}
"""A description of the texts that each pattern of the contract accepts."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


_SEED_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_SEED}
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seeds = Annotated[
    list[Seed],
    Field(min_length=1),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {"anyOf": [_SEED_SCHEMA, {"type": "array", "items": _SEED_SCHEMA, "minItems": 1}]}
    ),
]
Sources = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS, pattern=NO_NUL)]
Side = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Edge(BaseModel):
    """The base of what callers send: other fields and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
