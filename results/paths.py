"""Paths as a person reads them."""

from pathlib import Path


def shown(path: Path) -> str:
    """Return `path` for one line of text: relative to the current folder when below it, quoted when it must be."""
    text = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return text if text.isprintable() else repr(text)
