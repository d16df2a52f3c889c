"""Workers: their number, the state of each, their processes, and their cost."""
