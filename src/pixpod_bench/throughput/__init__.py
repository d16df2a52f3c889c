"""How much of a warm worker's time goes into images: `scripts/throughput_bench`, on a CPU."""
