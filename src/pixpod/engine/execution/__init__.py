"""Runs batches on a device: stages, and what to do when memory is short."""
