"""Replies as the platform takes them."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pixpod.serving.messages import IMAGE_LISTS


class BulkyReply(dict[str, Any]):
    """A reply that the platform may refuse for its size. Any: a JSON document.

    `shrink` makes the reply that follows it then; it never raises. The SDK hands this very object
    on from the handler to the post.
    """

    def __init__(
        self, reply: dict[str, Any], shrink: Callable[[], Awaitable[dict[str, Any]]]
    ) -> None:
        super().__init__(reply)
        self.shrink = shrink


def json_bytes(reply: Mapping[str, Any]) -> int:
    """Return the length of the reply to a job as JSON. Any: a JSON document.

    Inline data is base64, which JSON leaves as it is. It is counted without being encoded: that
    would keep the event loop busy for some milliseconds per megabyte.
    """
    lists = {name: reply[name] for name in IMAGE_LISTS}
    inline = sum(len(file.get("data", "")) for files in lists.values() for file in files)
    others = {
        name: [{**file, "data": ""} if "data" in file else file for file in files]
        for name, files in lists.items()
    }
    return len(json.dumps({**reply, **others})) + inline
