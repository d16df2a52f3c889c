"""Checks the places that a job names for its images, before anything is sent or generated.

Rules of `output.put_urls` and of `s3Config`: the hosts that may be reached, one URL per image, and
the time at which a presigned URL expires. Knows no store.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from pixpod.contract.delivery_input import PutUrlInput, S3ConfigInput
from pixpod.contract.job_input import JobInput
from pixpod.contract.preprocessing import num_made
from pixpod.contract.problems import to_problem, wrong
from pixpod.errors import Problem
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use
from pixpod.job import CallerBucket, PutUrl
from pixpod.outputs.storage import clean_prefix

MIN_VALIDITY_S = 60
"""For which a presigned URL must still be valid when its job begins."""


def parse_s3_config(given: object) -> tuple[S3ConfigInput | None, list[Problem]]:
    """Return the config, None if there is none or it is malformed, and its problems."""
    if given is None:
        return None, []
    names = {field.alias for field in S3ConfigInput.model_fields.values()}
    if not isinstance(given, dict) or not set(given) <= names:
        accepted = "an object of endpointUrl, bucketName, accessId, accessSecret and objectPath"
        return None, [Problem(field="s3Config", value=None, accepted=accepted)]
    try:
        config = S3ConfigInput.model_validate(given)
        clean_prefix(_path_of(config))
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        return None, [
            replace(to_problem(error, given), field=f"s3Config.{error['loc'][0]}", value=None)
            for error in errors
        ]
    except ValueError as exc:
        accepted = str(exc).removeprefix("expected ")
        return None, [Problem(field="s3Config.objectPath", value=None, accepted=accepted)]
    return config, []


def check_places(
    given: JobInput, config: S3ConfigInput | None, targets: Targets, now: datetime
) -> Iterator[Problem]:
    """Yield what keeps images from their places: the problems of `put_refused`."""
    put_urls = given.output.put_urls if given.output else None
    num_images, num_controls = given.num_images or len(given.seed or ()) or 1, num_made(given)
    num_files = num_images + num_controls
    if put_urls is not None and len(put_urls) != num_files:
        accepted = f"{num_files} URLs, one per image"
        accepted += f" and {num_controls} for control images" if num_controls else ""
        yield wrong("output.put_urls", put_urls, accepted)
    for index, each in enumerate((put_urls or ())[:num_files]):
        yield from _check_url(f"output.put_urls[{index}]", each.url, targets, now)
    if config is not None:
        yield from _check_target("s3Config.endpointUrl", config.endpoint_url, targets)


def build_put_url(given: PutUrlInput) -> PutUrl:
    return PutUrl(url=given.url, headers=given.headers or {})


def build_bucket(given: S3ConfigInput) -> CallerBucket:
    return CallerBucket(
        endpoint_url=given.endpoint_url,
        name=given.bucket_name,
        access_id=given.access_id,
        access_secret=given.access_secret,
        path=clean_prefix(_path_of(given)),
    )


def expiry_of(url: str) -> datetime | None:
    """Return when a presigned URL expires; None if it does not say so.

    Knows version 4 and version 2 signatures of AWS and Google, and Azure's shared access.
    """
    try:
        query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
        for vendor in ("amz", "goog"):
            if f"x-{vendor}-expires" in query:
                begin = datetime.strptime(query[f"x-{vendor}-date"], "%Y%m%dT%H%M%SZ")
                lifetime = timedelta(seconds=int(query[f"x-{vendor}-expires"]))
                return begin.replace(tzinfo=UTC) + lifetime
        if "signature" in query and "expires" in query:
            return datetime.fromtimestamp(int(query["expires"]), UTC)
        if "sig" in query and "se" in query:
            found = datetime.fromisoformat(query["se"])
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, KeyError, OverflowError, OSError):
        pass  # another form: its server decides
    return None


def _check_url(field: str, url: str, targets: Targets, now: datetime) -> Iterator[Problem]:
    found = list(_check_target(field, url, targets))
    yield from found
    expiry = None if found else expiry_of(url)
    if expiry is not None and expiry < now + timedelta(seconds=MIN_VALIDITY_S):
        left_s = round((expiry - now).total_seconds())
        hint = f"it expired {-left_s} s ago" if left_s < 0 else f"it expires in {left_s} s"
        yield wrong(field, None, f"a URL that is valid for at least {MIN_VALIDITY_S} s", hint)


def _check_target(field: str, url: str, targets: Targets) -> Iterator[Problem]:
    try:
        targets.parse(url, Use.WRITE)
    except Refused as refused:
        yield refused.problem(field)


def _path_of(config: S3ConfigInput) -> str:
    return re.sub("^/", "", config.object_path or "")
