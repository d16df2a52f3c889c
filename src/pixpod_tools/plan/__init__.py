"""Plans which components of models fit on a GPU, without that GPU."""
