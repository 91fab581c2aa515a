"""Studies: each module answers one question by training networks, and writes one table into results/."""
