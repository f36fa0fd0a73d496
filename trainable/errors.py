"""The one exception that a person at the keyboard can cause. A bug of ours is never raised as this."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used: one line that says where, what, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known word, or the list of known words when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
