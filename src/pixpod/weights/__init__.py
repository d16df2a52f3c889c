"""Weights on disk: manifests, reading ahead, and the places they come from."""
