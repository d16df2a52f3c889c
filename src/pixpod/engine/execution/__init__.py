"""Runs batches on a device: stages, conditions, and what to do when memory is short."""
