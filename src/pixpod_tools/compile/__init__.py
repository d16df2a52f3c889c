"""Compiles models ahead of time, on a card of the class on which they will run."""
