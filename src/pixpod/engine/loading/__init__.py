"""Loads weights as models that are ready to run."""
