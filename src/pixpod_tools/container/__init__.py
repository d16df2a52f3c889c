"""Builds and inspects the container image. Only `sbom` is part of the image."""
