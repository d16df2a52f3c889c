"""The command line: serve an emulator, or run a Hub's tests."""
