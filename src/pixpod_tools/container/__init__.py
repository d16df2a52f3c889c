"""Builds the container image, and looks into it; never in the image, but for `sbom`."""
