"""Workers: how many, what is known of each, their processes, and what they cost."""
