"""Benchmarks of the engine. Never part of the image; reads no weights and no network."""
