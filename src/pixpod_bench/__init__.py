"""Benchmarks: `gpu`, `cold`, `load` and `emulator`. Nothing but their own tests imports them."""
