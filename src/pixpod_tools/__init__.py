"""Programs for operators and developers. They are not part of the image."""
