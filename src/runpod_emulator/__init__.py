"""RunPod Serverless on localhost, against which the real SDK runs. It knows nothing of images."""

__version__ = "0.1.0"
