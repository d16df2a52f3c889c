"""Requests to images."""
