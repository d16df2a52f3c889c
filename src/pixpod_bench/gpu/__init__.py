"""Full-size models with random weights on a CUDA GPU, beside stock diffusers: `scripts/gpu`."""
