"""What of which models fits on a GPU, before there is one."""
