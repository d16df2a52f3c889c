"""Parts of models that run compiled."""
