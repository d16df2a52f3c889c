"""Measures full-size models with random weights on a CUDA GPU against stock diffusers, for
`scripts/gpu`.
"""
