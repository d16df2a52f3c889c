"""Runs two jobs end to end on one machine, for `scripts/demo`."""
