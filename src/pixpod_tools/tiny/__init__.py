"""Trains and measures the tiny checkpoints of `model_cache/tiny`; never part of the image."""
