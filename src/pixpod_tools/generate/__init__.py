"""Documents that are generated from the code: `python -m pixpod_tools.generate` writes them."""
