"""A study's folder and files: written whole, locked, checked when read."""
