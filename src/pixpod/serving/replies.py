"""Replies as the platform takes them."""

from collections.abc import Awaitable, Callable
from typing import Any


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
