"""A warm worker on a CPU with tiny models: overhead, batching, mixed jobs: `scripts/load_bench`."""
