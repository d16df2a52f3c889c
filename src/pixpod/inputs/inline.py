"""Files that are part of the payload: base64, alone or in a `data:` URI."""

import binascii
import re

from pixpod.errors import InvalidInput
from pixpod.inputs.refusals import Refused

_DATA_URI = re.compile(r"data:[A-Za-z0-9!#$&^_.+/;=-]{0,200}?;base64,", re.IGNORECASE)


def decode_inline(text: str, max_bytes: int) -> bytes:
    """Return the bytes of a `data:` URI or of base64 with the standard alphabet and its padding.

    Raises Refused with InvalidInput.
    """
    prefix = _DATA_URI.match(text)
    encoded = text[prefix.end() :] if prefix else text
    if not encoded:
        raise Refused(InvalidInput, "data that is not empty", value="no data")
    if len(encoded) > (max_bytes + 2) // 3 * 4:
        value = f"{len(encoded)} characters of base64"
        raise Refused(InvalidInput, f"a file of at most {max_bytes} bytes", value=value)
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as exc:
        accepted = "an http or https URL, base64 without line breaks, or a data: URI of base64"
        hint = "python handler.py --test_input reads @FILE; a worker opens no file"
        raise Refused(InvalidInput, accepted, value=f"{len(text)} characters", hint=hint) from exc
    if len(data) > max_bytes:
        raise Refused(
            InvalidInput, f"a file of at most {max_bytes} bytes", value=f"{len(data)} bytes"
        )
    return data
