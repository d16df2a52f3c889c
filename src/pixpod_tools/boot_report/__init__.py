"""Shows the boot that a worker wrote into its log as a table and as a chart."""
