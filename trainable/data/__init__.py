"""Text and tokens, cached on this machine and brought to others."""
