"""The few touches on RunPod's SDK. It is imported when it is needed: that takes seconds."""

from pixpod.worker import Handler


def serve(handler: Handler) -> None:
    """Hand jobs of the platform to `handler` until the platform ends the worker.

    The SDK reads its environment when it is imported, so that must be complete before.
    """
    import runpod

    runpod.serverless.start({"handler": handler})
