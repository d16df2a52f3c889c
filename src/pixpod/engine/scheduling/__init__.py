"""Decides which requests run together, and queues them for the device. No torch."""
