"""Shakes the emulator and measures it: `python -m emulator_bench chaos|throughput`."""
