"""POLICY: when a worker should be replaced by a fresh one. Numbers only."""

from dataclasses import dataclass


@dataclass(kw_only=True, eq=False)
class Refresh:
    """Counts what one worker has done. `reason` is None until a refresh is due, and stays then.

    `after_images` is 0 for never.
    """

    after_images: int
    reason: str | None = None
    is_urgent: bool = False
    num_images: int = 0

    def served(self, num_images: int) -> None:
        """Count the images of one job."""
        self.num_images += num_images
        if 0 < self.after_images <= self.num_images:
            self._due(f"{self.num_images} images were served")

    def failed(self, code: str) -> None:
        """Count an error that the worker itself may cause, so that the next job may fail, too."""
        self.is_urgent = True
        self._due(code)

    def _due(self, reason: str) -> None:
        self.reason = self.reason or reason
