"""Intake of what callers name: URLs, inline data, images and weights.

The only package that opens a URL named by a caller. It knows neither the payload's schema nor any
model.
"""
