"""Fetches, converts and checks weights directories, and splits them into layers; no part of a boot."""
