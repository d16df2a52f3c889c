"""Uploads images that no place has taken from the spool to the deployment's bucket."""
