"""A refusal that a client or a worker gets as an HTTP status and a text."""


class ApiError(Exception):
    """A refusal. `message` names field, value and the expected value; it never quotes a payload."""

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
