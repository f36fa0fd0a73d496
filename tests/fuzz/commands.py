"""Commands as a person says them, in this process: their words, and a refusal as the exception it was."""

import contextlib
import io
from collections.abc import Sequence

from search.__main__ import main
from search.terminal.signals import INTERRUPTED
from trainable.errors import UserError


class _Stream(io.TextIOWrapper):
    def __init__(self, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)

    def text(self) -> str:
        """Return what was written."""
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode("utf-8", "surrogateescape")


def run(*words: str) -> str:
    """Return what the command prints on stdout, when it ends with 0. Raises UserError for 2, with its one line."""
    return _run(words)


def _run(words: Sequence[str]) -> str:
    # As Python opens the real ones.
    out, err = _Stream("strict"), _Stream("backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: object = main(words)
        except SystemExit as end:
            # argparse's own: words that begin with a dash.
            code = end.code
    if code == INTERRUPTED:
        raise KeyboardInterrupt  # of whoever runs the tests
    if code == 2:
        # `spaces` lists what is wrong with each file among its results.
        lines = err.text().splitlines() or out.text().splitlines()
        assert len([line for line in lines if line.startswith("error: ")]) == 1, err.text()
        raise UserError(lines[-1])
    assert code == 0, (code, err.text())
    return out.text()
