"""Errors of jobs by code. Generated from src/pixpod/errors.py by `scripts/generate`."""

from collections.abc import Mapping

from pixpod_client.errors import CallerError, DeploymentError, HostError, JobFailed


class InvalidInput(CallerError):
    """A field is unknown, missing, malformed or out of range."""

    code = "invalid_input"


class NotSupported(CallerError):
    """The payload is well formed, but names a feature that this version does not support."""

    code = "not_supported"


class UrlRefused(CallerError):
    """A URL, or one that it redirects to, leads where callers may not reach."""

    code = "url_refused"


class FetchFailed(CallerError):
    """The host of a URL answered, but not with the file: it is missing, forbidden or broken."""

    code = "fetch_failed"


class PutRefused(CallerError):
    """A place that the job names for its images may not be reached, or does not take them."""

    code = "put_refused"


class ImageRefused(CallerError):
    """A source image or mask is no image that we read, or breaks a limit."""

    code = "image_refused"


class WeightsRefused(CallerError):
    """A caller's weights are not safetensors, break a limit, or would not do what they say."""

    code = "weights_refused"


class ResultTooLarge(CallerError):
    """The encoded images do not fit into a reply of the platform."""

    code = "result_too_large"


class InvalidSettings(DeploymentError):
    """An environment variable is missing or malformed; raised once, when settings are read."""

    code = "invalid_settings"


class AdapterUnusable(DeploymentError):
    """A LoRA of the deployment's own does not work with the model that a job names."""

    code = "adapter_unusable"


class ModelUnavailable(DeploymentError):
    """A served model has no usable weights in this deployment."""

    code = "model_unavailable"


class LicenceNotAccepted(DeploymentError):
    """The model's licence must be accepted by the deployment before it is served."""

    code = "licence_not_accepted"


class StorageDenied(DeploymentError):
    """The store refuses access: wrong credentials, missing bucket, forbidden key."""

    code = "storage_denied"


class SpoolFull(DeploymentError):
    """No place took the images, and the spool has no room for them: empty it, or enlarge it."""

    code = "spool_full"


class DeadlineExceeded(DeploymentError):
    """The job did not end within its time limit; a smaller one may."""

    code = "deadline_exceeded"


class FetchUnavailable(HostError):
    """The host of a URL did not deliver after all tries or in time; the same job may succeed."""

    code = "fetch_unavailable"


class StorageUnavailable(HostError):
    """The store did not take the image after all tries; the same job may succeed later."""

    code = "storage_unavailable"


class WeightsUnreadable(HostError):
    """Files of a model are there but cannot be read: a bad copy or a bad disk."""

    code = "weights_unreadable"


class DiskFull(HostError):
    """Files to fetch do not fit on the disk of this host."""

    code = "disk_full"


class HubUnavailable(HostError):
    """The model hub did not answer this host, or sent damaged files."""

    code = "hub_unavailable"


class DeviceUnavailable(HostError):
    """The model needs a CUDA device and this host has none that works."""

    code = "device_unavailable"


class OutOfMemory(HostError):
    """The device has no memory left for this request."""

    code = "out_of_memory"


class NumericalFault(HostError):
    """The model produced values that are no image (NaN or infinite); it is not delivered."""

    code = "numerical_fault"


class InternalError(HostError):
    """An unexpected error; the log of the worker has the traceback."""

    code = "internal_error"


BY_CODE: Mapping[str, type[JobFailed]] = {
    "invalid_input": InvalidInput,
    "not_supported": NotSupported,
    "url_refused": UrlRefused,
    "fetch_failed": FetchFailed,
    "put_refused": PutRefused,
    "image_refused": ImageRefused,
    "weights_refused": WeightsRefused,
    "result_too_large": ResultTooLarge,
    "invalid_settings": InvalidSettings,
    "adapter_unusable": AdapterUnusable,
    "model_unavailable": ModelUnavailable,
    "licence_not_accepted": LicenceNotAccepted,
    "storage_denied": StorageDenied,
    "spool_full": SpoolFull,
    "deadline_exceeded": DeadlineExceeded,
    "fetch_unavailable": FetchUnavailable,
    "storage_unavailable": StorageUnavailable,
    "weights_unreadable": WeightsUnreadable,
    "disk_full": DiskFull,
    "hub_unavailable": HubUnavailable,
    "device_unavailable": DeviceUnavailable,
    "out_of_memory": OutOfMemory,
    "numerical_fault": NumericalFault,
    "internal_error": InternalError,
}


def job_error(text: str) -> JobFailed:
    """Return the error for the text of a failed job, "<code>: <text>"."""
    return BY_CODE.get(text.partition(":")[0], JobFailed)(text)
