"""The edge: the command line, Ray Tune, the terminal."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages: the checkout, or where pip installed them."""
IS_CHECKOUT = (ROOT / "Makefile").exists()
"""Whether make can be called there; without it studies and caches are kept in the folder that a command is typed in."""
