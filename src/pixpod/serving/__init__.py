"""Jobs from the platform to the engine and back."""
