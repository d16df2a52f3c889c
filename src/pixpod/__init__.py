"""pixpod: FLUX, SDXL and SD 1.5 images as a pay-per-call GPU endpoint."""

__version__ = "0.1.0"
