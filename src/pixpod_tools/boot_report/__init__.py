"""A table and a picture of the boot that a worker wrote into its log."""
