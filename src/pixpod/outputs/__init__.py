"""Encoding and storage of finished images."""
