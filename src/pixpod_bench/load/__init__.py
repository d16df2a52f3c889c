"""Measures overhead, batching and mixed jobs of a warm worker on a CPU: `scripts/load_bench`."""
