"""Two jobs end to end on one machine: `scripts/demo`."""
