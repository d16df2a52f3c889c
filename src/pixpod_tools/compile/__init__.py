"""Compiles models ahead of time, on a GPU of the class on which they will run."""
