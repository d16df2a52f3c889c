"""Compiles parts of models, ahead of time or when they are first called."""
