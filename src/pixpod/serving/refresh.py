"""POLICY: when a worker should be replaced by a fresh one. Numbers only."""


class Refresh:
    """Counts what one worker has done. `reason` is None until a refresh is due, and stays then."""

    def __init__(self, *, after_images: int) -> None:
        """`after_images` is 0 for never."""
        self.reason: str | None = None
        self.is_urgent = False
        self._after_images = after_images
        self._num_images = 0

    def served(self, num_images: int) -> None:
        """Count the images of one job."""
        self._num_images += num_images
        if 0 < self._after_images <= self._num_images:
            self._due(f"{self._num_images} images were served")

    def failed(self, code: str) -> None:
        """Report an error that leaves the worker in doubt: the next job may fail for it, too."""
        self.is_urgent = True
        self._due(code)

    def _due(self, reason: str) -> None:
        self.reason = self.reason or reason
