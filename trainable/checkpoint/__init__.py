"""Checkpoint files: written whole, checked when read, examined for faults."""
