"""How long a worker takes from nothing to ready: each measured run is a process of its own."""
