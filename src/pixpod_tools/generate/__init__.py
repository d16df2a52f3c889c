"""Documents that are generated from the code: `scripts/generate` writes them."""
