"""Jobs: their values, life cycle, storage and webhooks."""
