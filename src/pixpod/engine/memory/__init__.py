"""What lives on the GPU, and when."""
