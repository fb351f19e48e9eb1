"""A protected guest: its volumes and its session over a link; what an embedder opens."""
