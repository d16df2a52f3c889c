"""What of which models fits on a card, before there is one."""
