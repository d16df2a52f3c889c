"""Classifies images on a thread of its own, those of different jobs together.

Knows no concrete classifier.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pixpod.errors import ModelUnavailable
from pixpod.job import RawImage, SafetyVerdict
from pixpod.outputs.nsfw_model import Classifier

MAX_BATCH_SIZE = 8
"""Size of the largest batch of the GPU, whose images arrive together."""

DEFAULT_THRESHOLD = 0.8
"""Yahoo's advice: below 0.2 an image is likely safe, above 0.8 likely not."""


def _no_classifier() -> Classifier:
    raise ModelUnavailable("safety: this worker has no classifier")


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    """An image that waits for its score."""

    image: RawImage
    score: Future[float] = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class Safety:
    """Verdicts about images. `load` makes the classifier once it is needed.

    An image whose score is `threshold` or more is unsafe. Close it in the end.
    """

    load: Callable[[], Classifier] = _no_classifier
    threshold: float = DEFAULT_THRESHOLD

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="safety")
        self._classifier: Classifier | None = None
        self._waiting: deque[_Waiting] = deque()

    def start(self) -> None:
        """Begin to load the classifier; a failure is reported by `ready`."""
        self._thread.submit(self._load)

    async def ready(self) -> None:
        """Wait until there is a classifier. Raises the error of `load`, which is tried again."""
        await asyncio.wrap_future(self._thread.submit(self._load))

    async def verdicts(self, images: Sequence[RawImage]) -> list[SafetyVerdict]:
        """Return a verdict for each image. Raises what the classifier raises."""
        waiting = [_Waiting(image=image) for image in images]
        self._waiting.extend(waiting)
        for _ in waiting:  # a run that finds nothing is cheap
            taken: list[_Waiting] = []
            run = self._thread.submit(self._classify, taken)
            run.add_done_callback(partial(_report, taken))
        scores = await asyncio.gather(*(asyncio.wrap_future(each.score) for each in waiting))
        return [SafetyVerdict(nsfw=score >= self.threshold, score=score) for score in scores]

    def close(self) -> None:
        """Wait for the classification that is running."""
        self._thread.shutdown(cancel_futures=True)

    # --- on the thread --------------------------------------------------------------------------

    def _load(self) -> Classifier:
        if self._classifier is None:
            self._classifier = self.load()
        return self._classifier

    def _classify(self, taken: list[_Waiting]) -> None:
        """Score images that wait, at most a batch, and note in `taken` which.

        Images that arrive while others are prepared join them.
        """
        prepared = []
        while self._waiting and len(taken) < MAX_BATCH_SIZE:
            each = self._waiting.popleft()
            if each.score.set_running_or_notify_cancel():
                taken.append(each)
                prepared.append(self._load().prepare(each.image))
        if taken:
            scores = self._load().scores(prepared)
            for each, score in zip(taken, scores, strict=True):
                each.score.set_result(score)


def _report(taken: Sequence[_Waiting], run: Future[None]) -> None:
    """Give the error of a run to the images that it has taken."""
    if run.cancelled() or (error := run.exception()) is None:
        return
    for each in taken:
        if not each.score.done():
            each.score.set_exception(error)
