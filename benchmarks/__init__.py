"""Time and memory of the layers and networks, always against the straightforward way: ``python -m benchmarks``."""
