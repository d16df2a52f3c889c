"""Imports of libraries without the parts that no image needs."""
