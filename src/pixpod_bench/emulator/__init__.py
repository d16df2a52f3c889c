"""Shakes the emulator and measures it: `python -m pixpod_bench.emulator chaos|throughput`."""
