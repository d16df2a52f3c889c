"""The calls of RunPod's REST API v2; the only module of this package that uses the network."""

import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from pydantic import SecretStr
from requests.auth import AuthBase

from pixpod_tools.deploy.documents import (
    Document,
    Endpoint,
    parse_endpoint,
    parse_listing,
)
from pixpod_tools.deploy.errors import (
    CredentialsRefused,
    DeployError,
    InvalidConfiguration,
    PlatformUnavailable,
    RequestRefused,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

API_URL = "https://api.runpod.io"
PATH = "/v2/serverless"
TIMEOUT_S = (5.0, 30.0)
"""Timeouts for connecting, and between two bytes of the answer."""
RETRY_DELAYS_S = (1.0, 2.0, 4.0)
MAX_WAIT_S = 60.0
"""Longest Retry-After that is waited for; a longer one ends the run with a message."""
DEFAULT_RETRY_AFTER_S = 5.0
MAX_LINE = 500

_MEANINGS: Mapping[int, tuple[type[DeployError], str]] = {
    400: (RequestRefused, "the platform does not accept the request"),
    401: (CredentialsRefused, "the API key is missing or wrong: check RUNPOD_API_KEY"),
    403: (
        CredentialsRefused,
        "the API key may not do this: give it write access to Serverless in the console",
    ),
    404: (
        RequestRefused,
        "the endpoint, or something that it refers to (volume, registry credential), is not there",
    ),
    409: (RequestRefused, "the endpoint was changed meanwhile: run this again"),
    422: (RequestRefused, "the platform does not accept the request"),
}


class ServerlessApi:
    """Endpoints of one account.

    A call that only reads is retried after an error of the platform; one that writes is not, as it
    may have been executed. After 429 nothing was executed, so any call waits and is retried.
    """

    def __init__(
        self,
        key: SecretStr,
        url: str = API_URL,
        *,
        sleep: Callable[[float], None] = time.sleep,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname != "127.0.0.1":
            raise InvalidConfiguration("--api-url", url, "https, as the API key travels with it")
        self._key = key
        self._url = url.rstrip("/") + PATH
        self._sleep = sleep
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.auth = _Bearer(key)

    def endpoints(self) -> list[Endpoint]:
        """Return all endpoints: the listing has no pages. Raises DeployError."""
        return self._call("GET", "", None, parse_listing)

    def create(self, document: Document) -> Endpoint:
        """Create an endpoint. Raises DeployError."""
        return self._call("POST", "", document, parse_endpoint)

    def update(self, endpoint_id: str, document: Document) -> Endpoint:
        """Change only the fields of the document. Raises DeployError."""
        return self._call("PATCH", f"/{endpoint_id}", document, parse_endpoint)

    def close(self) -> None:
        self._session.close()

    def _call(
        self, method: str, path: str, body: Document | None, parse: Callable[[object], T]
    ) -> T:
        delays = iter(RETRY_DELAYS_S)
        while True:
            try:
                return self._attempt(method, path, body, parse)
            except PlatformUnavailable as error:
                delay_s, at_least_s = next(delays, None), error.retry_after_s
                if delay_s is None or at_least_s is None or at_least_s > MAX_WAIT_S:
                    raise
                logger.warning("%s; trying again", error)
                self._sleep(max(delay_s, at_least_s))

    def _attempt(
        self, method: str, path: str, body: Document | None, parse: Callable[[object], T]
    ) -> T:
        only_reads = method == "GET"
        doubt = "" if only_reads else "; it may have been done: run this again to find out"
        try:
            answer = self._session.request(
                method,
                self._url + path,
                json=body,
                timeout=self._timeout_s,
                allow_redirects=False,
            )
        except requests.Timeout as error:
            raise PlatformUnavailable(
                f"no answer in time to {method} {self._url}{path}{doubt}", 0 if only_reads else None
            ) from error
        except requests.RequestException as error:
            raise PlatformUnavailable(
                f"no connection for {method} {self._url}{path} ({type(error).__name__}){doubt}",
                0 if only_reads else None,
            ) from error
        if not answer.ok or answer.is_redirect:
            raise self._refusal(method, path, answer, doubt)
        try:
            return parse(answer.json())
        except ValueError as error:  # no JSON, or UnreadableAnswer
            raise PlatformUnavailable(
                f"the answer to {method} {self._url}{path} cannot be read ({error}){doubt}"
            ) from error

    def _refusal(
        self, method: str, path: str, answer: requests.Response, doubt: str
    ) -> DeployError:
        status = answer.status_code
        what = f"{method} {self._url}{path}: {status} {answer.reason}"
        detail = self._detail(answer)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            text = f"{what}, trouble at the platform{detail}{doubt}"
            return PlatformUnavailable(text, None if doubt else 0)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            after_s = _seconds(answer.headers.get("Retry-After"))
            text = f"{what}, too many requests: run this again after {after_s:g} s{detail}"
            return PlatformUnavailable(text, after_s)
        error, meaning = _MEANINGS.get(status, (RequestRefused, "the platform does not accept it"))
        return error(f"{what}, {meaning}{detail}")

    def _detail(self, answer: requests.Response) -> str:
        """Return the platform's own messages, each with its field; never the API key."""
        try:
            problem = answer.json()
        except ValueError:
            return ""
        if not isinstance(problem, dict):
            return ""
        listed = problem.get("errors") or []
        said = [problem.get("detail"), *(listed if isinstance(listed, list) else [])]
        lines = [each for each in said if isinstance(each, str) and each]
        text = "".join(f"\n    {line[:MAX_LINE]}" for line in lines)
        return text.replace(self._key.get_secret_value(), "***")


def _seconds(retry_after: str | None) -> float:
    """Return the header's seconds; a header that cannot be read is treated as absent."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else DEFAULT_RETRY_AFTER_S


class _Bearer(AuthBase):
    """Sets the header itself, because requests would otherwise prefer an entry of ~/.netrc."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request
