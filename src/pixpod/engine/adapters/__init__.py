"""LoRAs: reading them, and copies of components that share the weights and have side paths."""
