"""Long shows that a run survives what may come over it; their figures are in docs/reliability.md."""
