"""Measures cold starts, for `scripts/cold_bench`. Each run is a process of its own."""
