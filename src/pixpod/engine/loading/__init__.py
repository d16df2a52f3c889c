"""Weights to ready models."""
