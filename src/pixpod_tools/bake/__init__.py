"""Fetches, converts and checks weights directories, and splits them into layers. Not for boots."""
