"""Stress-tests and measures the emulator: `python -m pixpod_bench.emulator chaos|throughput`."""
