"""Time and memory of layers and networks, compared with a baseline or an earlier version: ``python -m benchmarks``."""
