"""Every error that a caller can see: its code, whose fault it is, and whether the worker must go.

    WorkerError
    ├── PayloadError
    │   ├── InvalidInput          invalid_input           caller
    │   ├── NotSupported          not_supported           caller
    │   ├── UrlRefused            url_refused             caller
    │   ├── FetchFailed           fetch_failed            caller
    │   ├── FetchUnavailable      fetch_unavailable       host
    │   ├── PutRefused            put_refused             caller
    │   ├── ImageRefused          image_refused           caller
    │   └── WeightsRefused        weights_refused         caller
    ├── ResultTooLarge            result_too_large        caller
    ├── InvalidSettings           invalid_settings        deployment
    ├── AdapterUnusable           adapter_unusable        deployment
    ├── ModelUnavailable          model_unavailable       deployment
    │   └── LicenceNotAccepted    licence_not_accepted    deployment
    ├── StorageDenied             storage_denied          deployment
    ├── SpoolFull                 spool_full              deployment
    ├── DeadlineExceeded          deadline_exceeded       deployment
    ├── StorageUnavailable        storage_unavailable     host
    ├── WeightsUnreadable         weights_unreadable      host, worker is replaced
    ├── DiskFull                  disk_full               host, worker is replaced
    ├── HubUnavailable            hub_unavailable         host, worker is replaced
    ├── DeviceUnavailable         device_unavailable      host, worker is replaced
    ├── OutOfMemory               out_of_memory           host, worker is replaced
    ├── NumericalFault            numerical_fault         host
    └── InternalError             internal_error          host

On the wire an error is the string `"<code>: <text>"`, because the platform drops objects.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """The party that has to act. A retry on another worker can help only after a host's fault."""

    CALLER = "caller"
    DEPLOYMENT = "deployment"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a payload. `value` is shortened, and null where it may be a secret."""

    field: str
    value: object
    accepted: str
    hint: str | None = None


class WorkerError(Exception):
    """Base of all errors with a code. Raise a subclass; its text is shown to the caller."""

    code: ClassVar[str]
    fault: ClassVar[Fault]
    refresh_worker: ClassVar[bool] = False
    ends_worker: ClassVar[bool] = False
    """True if the process cannot serve any further job."""

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}"


class PayloadError(WorkerError):
    """The payload requests something that this worker will not do; the text is JSON."""

    fault = Fault.CALLER

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        listed = [asdict(problem) for problem in self.problems]
        super().__init__(json.dumps({"problems": listed}, ensure_ascii=False))


class InvalidInput(PayloadError):
    """A field is unknown, missing, malformed or out of range."""

    code = "invalid_input"


class NotSupported(PayloadError):
    """The payload is well formed, but names a feature that this version does not support."""

    code = "not_supported"


class UrlRefused(PayloadError):
    """A URL, or one that it redirects to, leads where callers may not reach."""

    code = "url_refused"


class FetchFailed(PayloadError):
    """The host of a URL answered, but not with the file: it is missing, forbidden or broken."""

    code = "fetch_failed"


class FetchUnavailable(PayloadError):
    """The host of a URL did not deliver after all tries or in time; the same job may succeed."""

    code = "fetch_unavailable"
    fault = Fault.HOST


class PutRefused(PayloadError):
    """A place that the job names for its images may not be reached, or does not take them."""

    code = "put_refused"


class ImageRefused(PayloadError):
    """A source image or mask is no image that we read, or breaks a limit."""

    code = "image_refused"


class WeightsRefused(PayloadError):
    """A caller's weights are not safetensors, break a limit, or would not do what they say."""

    code = "weights_refused"


class ResultTooLarge(WorkerError):
    """The encoded images do not fit into a reply of the platform."""

    code = "result_too_large"
    fault = Fault.CALLER


class InvalidSettings(WorkerError):
    """An environment variable is missing or malformed; raised once, when settings are read."""

    code = "invalid_settings"
    fault = Fault.DEPLOYMENT


class AdapterUnusable(WorkerError):
    """A LoRA of the deployment's own does not work with the model that a job names."""

    code = "adapter_unusable"
    fault = Fault.DEPLOYMENT


class ModelUnavailable(WorkerError):
    """A served model has no usable weights in this deployment."""

    code = "model_unavailable"
    fault = Fault.DEPLOYMENT


class LicenceNotAccepted(ModelUnavailable):
    """The model's licence must be accepted by the deployment before it is served."""

    code = "licence_not_accepted"


class StorageDenied(WorkerError):
    """The store refuses access: wrong credentials, missing bucket, forbidden key."""

    code = "storage_denied"
    fault = Fault.DEPLOYMENT


class SpoolFull(WorkerError):
    """No place took the images, and the spool has no room for them: empty it, or enlarge it."""

    code = "spool_full"
    fault = Fault.DEPLOYMENT


class DeadlineExceeded(WorkerError):
    """The job did not end within its time limit; a smaller one may."""

    code = "deadline_exceeded"
    fault = Fault.DEPLOYMENT


class StorageUnavailable(WorkerError):
    """The store did not take the image after all tries; the same job may succeed later."""

    code = "storage_unavailable"
    fault = Fault.HOST


class WeightsUnreadable(WorkerError):
    """Files of a model are there but cannot be read: a bad copy or a bad disk."""

    code = "weights_unreadable"
    fault = Fault.HOST
    refresh_worker = True


class DiskFull(WorkerError):
    """Files to fetch do not fit on the disk of this host."""

    code = "disk_full"
    fault = Fault.HOST
    refresh_worker = True


class HubUnavailable(WorkerError):
    """The model hub did not answer this host, or sent damaged files."""

    code = "hub_unavailable"
    fault = Fault.HOST
    refresh_worker = True


class DeviceUnavailable(WorkerError):
    """The model needs a CUDA device and this host has none that works."""

    code = "device_unavailable"
    fault = Fault.HOST
    refresh_worker = True
    ends_worker = True


class OutOfMemory(WorkerError):
    """The device has no memory left for this request."""

    code = "out_of_memory"
    fault = Fault.HOST
    refresh_worker = True


class NumericalFault(WorkerError):
    """The model produced values that are no image (NaN or infinite); it is not delivered."""

    code = "numerical_fault"
    fault = Fault.HOST


class InternalError(WorkerError):
    """An unexpected error; the log of the worker has the traceback."""

    code = "internal_error"
    fault = Fault.HOST
