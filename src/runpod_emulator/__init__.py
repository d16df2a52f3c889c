"""RunPod Serverless on localhost: the real SDK runs against it. It knows nothing of images."""

__version__ = "0.1.0"
