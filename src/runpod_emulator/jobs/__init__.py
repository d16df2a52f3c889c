"""Jobs: what they are, their life cycle, where they are kept, and who is told of their end."""
