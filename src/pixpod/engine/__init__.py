"""Everything that touches a device. Importing this package imports no torch."""
