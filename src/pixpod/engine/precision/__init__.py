"""Number formats and attention kernels of models, and those that a GPU supports."""
