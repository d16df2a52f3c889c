"""Submits jobs to an endpoint, waits for them and fetches their images: sync and async.

Replies are JSON as the endpoint returns it; `pixpod_client.replies` has their types.
"""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

import aiohttp

from pixpod_client.errors import (
    ApiError,
    DownloadFailed,
    JobCancelled,
    JobTimedOut,
    Unreachable,
    WaitTimedOut,
)
from pixpod_client.job_errors import job_error
from pixpod_client.replies import ImageReply, Reply

BASE_URL = "https://api.runpod.ai/v2"
REQUEST_TIMEOUT_S = 30.0
FETCH_TIMEOUT_S = 120.0
POLL_S = 1.0
MAX_ERROR_CHARACTERS = 500


class AsyncClient:
    """An endpoint. Use it as `async with AsyncClient(...) as client`.

    Errors are `ClientError`s. The API key goes to `base_url` alone.
    """

    def __init__(self, endpoint_id: str, api_key: str, *, base_url: str = BASE_URL) -> None:
        self._url = f"{base_url.rstrip('/')}/{endpoint_id}"
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()

    async def submit(self, input: Mapping[str, Any], **beside: object) -> str:
        """Queue a job and return its id. `beside` stands beside `input`, such as `policy`.

        It is not tried again: with an `idempotency_key` in the input you may do that safely. Any:
        JSON, as docs/payload.md describes it.
        """
        answer = await self._request("POST", "run", {"input": dict(input), **beside})
        return str(answer["id"])

    async def wait(self, job_id: str, *, timeout_s: float = 600.0, poll_s: float = POLL_S) -> Reply:
        """Return the reply of a job once it is over.

        A platform that is down or busy is asked again. Raises JobFailed, or the class of its code,
        JobCancelled, JobTimedOut or WaitTimedOut.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (reply := await self._outcome(job_id)) is None:
                    await asyncio.sleep(poll_s)
                return reply
        except TimeoutError as exc:
            raise WaitTimedOut(f"job {job_id} is not over after {timeout_s:g} s") from exc

    async def cancel(self, job_id: str) -> None:
        """Cancel a job. One that is over stays as it is."""
        await self._request("POST", f"cancel/{job_id}")

    async def fetch(self, image: ImageReply) -> bytes:
        """Return the file of an image after a check of its SHA-256. Raises DownloadFailed."""
        if (data := image.get("data")) is not None:
            try:
                content = base64.b64decode(data, validate=True)
            except ValueError as exc:
                raise DownloadFailed("expected an image in base64") from exc
        elif (url := image.get("url")) is not None:
            content = await self._download(url, image["size_bytes"])
        else:
            raise DownloadFailed("expected an image with url or data, got one without a link")
        digest = hashlib.sha256(content).hexdigest()
        if digest != image["sha256"]:
            raise DownloadFailed(f"expected an image with SHA-256 {image['sha256']}, got {digest}")
        return content

    async def _outcome(self, job_id: str) -> Reply | None:
        """Return the reply, or None if the job is not over or the platform cannot say."""
        try:
            job = await self._request("GET", f"status/{job_id}")
        except Unreachable:
            return None
        except ApiError as error:
            if error.status != 429 and error.status < 500:
                raise
            return None
        match job.get("status"):
            case "COMPLETED":
                return cast("Reply", job["output"])  # JSON of the endpoint
            case "FAILED":
                raise job_error(_error_text(job))
            case "CANCELLED":
                raise JobCancelled(f"job {job_id} was cancelled")
            case "TIMED_OUT":
                raise JobTimedOut(f"job {job_id} was ended by the platform")
        return None

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            async with self._session.request(
                method,
                f"{self._url}/{path}",
                json=body,
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            ) as response:
                if response.status != 200:
                    text = await response.text(errors="replace")
                    raise ApiError(response.status, text[:MAX_ERROR_CHARACTERS])
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise Unreachable(f"expected an answer of the platform, got {exc!r}") from exc
        if not isinstance(answer, dict):
            raise Unreachable("expected a JSON object of the platform")
        return answer

    async def _download(self, url: str, size_bytes: int) -> bytes:
        """Return a file of this size. A link is a secret, so no error quotes it."""
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                if response.status != 200:
                    raise DownloadFailed(f"expected HTTP status 200, got {response.status}")
                content = await response.content.read(size_bytes + 1)
                while len(content) <= size_bytes and not response.content.at_eof():
                    content += await response.content.read(size_bytes + 1 - len(content))
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise DownloadFailed(f"expected an image, got {type(exc).__name__}") from None
        return content

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession()
        return self._opened


class Client:
    """The same for code that is not async. Use it as `with Client(...) as client`.

    It belongs to one thread, in which no event loop runs.
    """

    def __init__(self, endpoint_id: str, api_key: str, *, base_url: str = BASE_URL) -> None:
        self._client = AsyncClient(endpoint_id, api_key, base_url=base_url)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    def submit(self, input: Mapping[str, Any], **beside: object) -> str:
        """See `AsyncClient.submit`. Any: JSON."""
        return self._runner.run(self._client.submit(input, **beside))

    def wait(self, job_id: str, *, timeout_s: float = 600.0, poll_s: float = POLL_S) -> Reply:
        """See `AsyncClient.wait`."""
        return self._runner.run(self._client.wait(job_id, timeout_s=timeout_s, poll_s=poll_s))

    def cancel(self, job_id: str) -> None:
        """See `AsyncClient.cancel`."""
        self._runner.run(self._client.cancel(job_id))

    def fetch(self, image: ImageReply) -> bytes:
        """See `AsyncClient.fetch`."""
        return self._runner.run(self._client.fetch(image))


def _error_text(job: Mapping[str, Any]) -> str:
    """Return the error of a failed job. The platform shows it as `error`. Any: JSON."""
    output = job.get("output")
    inner = output.get("error") if isinstance(output, dict) else None
    return str(job.get("error") or inner or "the platform gives no reason")
