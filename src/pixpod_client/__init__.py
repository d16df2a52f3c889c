"""Client of pixpod endpoints: submits jobs, fetches images, verifies webhooks. Needs no pixpod."""

from pixpod_client.client import AsyncClient, Client
from pixpod_client.errors import (
    ApiError,
    CallerError,
    ClientError,
    DeploymentError,
    DownloadFailed,
    HostError,
    JobCancelled,
    JobFailed,
    JobTimedOut,
    Unreachable,
    WaitTimedOut,
)
from pixpod_client.replies import ImageReply, Reply
from pixpod_client.webhooks import WEBHOOK_WINDOW_S, Event, WebhookRefused, verify

__version__ = "0.1.0"

__all__ = [
    "WEBHOOK_WINDOW_S",
    "ApiError",
    "AsyncClient",
    "CallerError",
    "Client",
    "ClientError",
    "DeploymentError",
    "DownloadFailed",
    "Event",
    "HostError",
    "ImageReply",
    "JobCancelled",
    "JobFailed",
    "JobTimedOut",
    "Reply",
    "Unreachable",
    "WaitTimedOut",
    "WebhookRefused",
    "verify",
]
