"""Decides which components are on the GPU at each stage, and moves them."""
