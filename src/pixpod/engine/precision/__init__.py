"""What models compute in: types of numbers, kernels of attention, and what of it a GPU has."""
