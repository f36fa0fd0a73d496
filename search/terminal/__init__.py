"""The console, the live screen, the summary, and signals."""
