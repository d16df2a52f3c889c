"""Sends dead letters again, and deletes those that have arrived."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use
from pixpod.outputs.dead_letter import DeadLetter, open_letter
from pixpod.serving.messages import Message
from pixpod.serving.webhooks import Webhooks
from pixpod_tools.redeliver.files import FilesError, LetterFiles

MAX_AT_ONCE = 8

UNKNOWN = "?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one letter. `is_left` says whether its file is still there."""

    host: str
    path: str
    job_id: str
    event: str
    text: str
    is_left: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Redelivery:
    """Sends the letters in `files` through `webhooks`, whose secrets have sealed them.

    With `jobs`, only letters of these jobs; a letter that cannot be opened is left out then. A dry
    run sends and deletes nothing.
    """

    files: LetterFiles
    webhooks: Webhooks
    targets: Targets
    jobs: Collection[str] = ()
    is_dry: bool = False

    async def run(self, keys: Iterable[str], on_end: Callable[[], object]) -> list[Outcome]:
        """Return the outcomes in the order of `keys`, and call `on_end` after each letter."""
        slots = asyncio.Semaphore(MAX_AT_ONCE)

        async def redeliver(key: str) -> Outcome | None:
            async with slots:
                try:
                    return await self._redeliver(key)
                finally:
                    on_end()

        outcomes = await asyncio.gather(*map(redeliver, keys))
        return [each for each in outcomes if each is not None]

    async def _redeliver(self, key: str) -> Outcome | None:
        """Return None for a letter that is gone, or of another job."""
        try:
            data = await asyncio.to_thread(self.files.read, key)
            if data is None:
                return None
            letter = open_letter(data, key=key, secrets=self.webhooks.secrets)
        except (FilesError, ValueError) as exc:
            text = f"{key}: {exc}"
            return None if self.jobs else _outcome(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, text)
        if self.jobs and letter.job_id not in self.jobs:
            return None
        url = urlsplit(letter.url)
        outcome = _outcome(url.hostname or "", url.path, letter.job_id, letter.event, "not sent")
        if self.is_dry:
            return outcome
        failure = await self._send(letter)
        if failure is not None:
            return replace(outcome, text=failure)
        try:
            await asyncio.to_thread(self.files.delete, key)
        except FilesError as exc:
            return replace(outcome, text=f"delivered, but {exc}")
        return replace(outcome, text="delivered", is_left=False)

    async def _send(self, letter: DeadLetter) -> str | None:
        """Return why the letter was not delivered, None if it was."""
        try:
            target = self.targets.parse(letter.url, Use.WEBHOOK)
        except Refused as refused:
            return f"expected {refused.accepted}"
        message = Message(
            job_id=letter.job_id,
            event=letter.event,
            id=letter.webhook_id,
            timestamp=letter.timestamp,
            body=letter.body,
        )
        return await self.webhooks.send(message, target)


def _outcome(host: str, path: str, job_id: str, event: str, text: str) -> Outcome:
    return Outcome(host=host, path=path, job_id=job_id, event=event, text=text)
