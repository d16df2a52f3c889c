"""How many jobs a worker should hold: bursts through the real SDK, on a card that is a clock."""
