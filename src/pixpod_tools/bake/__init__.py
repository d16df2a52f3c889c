"""Weights directories: fetched, converted, checked and split into layers. Never part of a boot."""
