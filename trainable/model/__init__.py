"""Models: their names, loading, and fingerprints."""
