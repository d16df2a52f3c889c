"""Fakes and builders for tests and benchmarks: requests, running engines, scripted workers.

Nothing that serves jobs imports this package.
"""
