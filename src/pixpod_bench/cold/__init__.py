"""From nothing to ready: each measured run is a process of its own. `scripts/cold_bench`."""
