"""The console: stdout, or stderr when stdout carries one JSON document; and the progress before a study."""

import errno
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from results.study.paths import shown
from results.words import percent_words, printable
from search import IS_CHECKOUT, ROOT
from trainable.errors import reason, redacted

LINE_INTERVAL_S = 20.0
"""Between two lines on how far something is, where there is no live screen."""
MAX_TABLE_WIDTH = 1000
NARROWEST = 80
"""Columns in which no number of our tables is cut."""
COMMAND = re.compile(
    r"""\bmake [a-z]+(?= '?[A-Z0-9_]+=[\w'"/~])"""
    r"""(?: (?='?[A-Z0-9_]+=)(?:'[^']*'|"[^"]*"|[^\s'"`])+(?<![.;:,]))+"""
)
"""A command with its variables within a sentence."""
NAMED = re.compile(
    r"\bmake (?=(?:search|resume|baseline|preflight|train|confirm|attribute|report|diagnose|audit|export|model|spaces"
    r"|compare|list|help)\b)"
)
"""The word before a command's name within a sentence."""


def plain(text: str) -> str:
    """Return text that is safe to print: without control characters, and without the passwords of URLs."""
    return printable(redacted(text))


class PlainConsole(Console):
    """A console that applies plain() to everything it prints, tables and panels too."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return what is drawn; rich calls this for every part of it."""
        for segment in super().render(renderable, options):
            # Control segments are rich's own.
            yield segment if segment.control else segment._replace(text=plain(segment.text))


def print_line(console: Console, text: str | Text, *, indent: int = 0) -> None:
    """Print a line: wrapped between words on a terminal, unbroken in a file, so that it can be searched."""
    line = Text(text) if isinstance(text, str) else text
    if not console.is_terminal or not line.plain.strip():
        console.print(Text(" " * indent) + line, soft_wrap=True)
        return
    # Not wrapped by rich, which breaks a word that is longer than the screen: a path must stay whole to be copied.
    at = 0
    whole = TextWrapper(
        max(1, console.width - indent),
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for words in whole.wrap(line.plain):
        at = line.plain.index(words, at)
        console.print(Text(" " * indent) + line[at : at + len(words)], soft_wrap=True)
        at += len(words)


def print_table(console: Console, table: Table, *, wraps: bool = False) -> None:
    """Print a table with every cell whole, wider than the screen if necessary: names must be typed as they are.

    wraps: a cell's words may stand below each other, where that makes NARROWEST enough.
    """
    natural = table_widths(console, table)
    print_wide(console, table, NARROWEST if wraps and natural.minimum <= NARROWEST else natural.maximum)


def table_widths(console: Console, table: Table) -> Measurement:
    """Return the least and the most columns that a table takes with every word whole, however narrow the screen is."""
    return console.measure(table, options=console.options.update(max_width=MAX_TABLE_WIDTH))


def print_wide(console: Console, drawn: RenderableType, width: int = NARROWEST) -> None:
    """Print what holds a table in at least `width` columns; a narrower terminal breaks its lines."""
    # Rich limits tables to the screen's width, but prints rendered segments as they are.
    options = console.options.update(width=max(width, console.width))
    lines = console.render_lines(drawn, options, pad=False, new_lines=True)
    console.print(Segments(segment for line in lines for segment in line), crop=False, end="")


class LastingStream:
    """A text stream whose writes never raise; after an error the rest is dropped.

    A closed pipe, a full disk or a closed terminal ends the output, and not the run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        """The first error, after which nothing was written."""

    def write(self, text: str) -> int:
        """Write the text if possible."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.error = self.error or error
            # Python flushes its buffers again at exit, and would fail there.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """Make sys.stdout and sys.stderr lasting streams while inside; yield the first."""
    before = sys.stdout, sys.stderr
    _fill_closed_descriptors()
    stdout, stderr = (_lasting(stream) for stream in before)
    sys.stdout, sys.stderr = stdout, stderr
    try:
        yield stdout
    finally:
        stdout.flush()
        stderr.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None) -> LastingStream:
    if stream is not None:
        return LastingStream(stream)
    # Python has no stream for a descriptor that was closed at the start (`>&-`).
    lasting = LastingStream(Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    lasting.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
    return lasting


def _fill_closed_descriptors() -> None:
    """Open closed descriptors 0, 1 and 2 on /dev/null: the next file would get the number, and what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # open() takes the lowest free number, which is this one; child processes inherit it like a real one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class Terminal:
    """The console of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.typed_folders = ""
        """Folders named on the command line, which printed next steps must repeat."""
        self.is_study_exported = False
        """Whether a new study must be asked for with STUDY= to get a name of its own."""
        # A path may hold bytes that are not UTF-8. No markup below, because a name may contain it.
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        # FORCE_COLOR and TTY_COMPATIBLE, as CI sets them, ask for colours in a file, where no cursor moves.
        in_file = None if (sys.stderr if as_json else sys.stdout).isatty() else False
        self.console = PlainConsole(stderr=as_json, highlight=False, markup=False, force_interactive=in_file)
        if self.console.width < 1:
            self.console.width = NARROWEST  # of COLUMNS=0 rich would print nothing

    def typed(self, command: str) -> str:
        """Return a command of make as it works in the folder from which the last one was typed."""
        python = _python()
        makes_one = command.startswith(("make search ", "make train ")) and " STUDY=" not in command
        free = " STUDY=" if self.is_study_exported and makes_one else ""
        words = f"{command.removeprefix('make')}{free}{self.typed_folders}"
        if python is not None:
            return f"{python}{words.removeprefix(' -s')}".replace("$$", "$")  # doubled for make
        here = Path(os.environ.get("MAKE_CALLED_FROM") or ".").resolve()
        return f"make{'' if here == ROOT else f' -C {shlex.quote(str(ROOT))}'}{words}"

    def with_typed(self, sentence: str) -> str:
        """Return a sentence with the commands in it as typed() returns them."""
        typed, python = COMMAND.sub(lambda found: self.typed(found[0]), sentence), _python()
        return typed if python is None else NAMED.sub(lambda _: f"{python} ", typed)

    def say(self, *lines: str | None) -> None:
        """Print lines for a person, each on its own; None is skipped."""
        for line in lines:
            if line is not None:
                print_line(self.console, self.with_typed(line))

    def warn(self, line: str | None) -> None:
        """Print a line in red; None is skipped."""
        if line is not None:
            self.console.print(Text(self.with_typed(line), style="bold red"), soft_wrap=True)

    def picture(self, path: Path, draw: Callable[[Path], None]) -> str | None:
        """Draw a picture and print where it is; where it cannot be written print why. Return its path, or None."""
        try:
            draw(path)
        except OSError as error:
            self.say(f"no picture: {shown(path)} cannot be written: {reason(error)}")
            return None
        self.say(f"picture: {shown(path)}")
        return str(path)

    def document(self, document: Mapping[str, Any]) -> None:
        """Print the command's JSON document if --json is set."""
        if self.as_json:
            json.dump(document, sys.stdout, indent=2, allow_nan=False, default=str)
            sys.stdout.write("\n")


def _python() -> str | None:
    """Return what stands for make where that does not do: without a Makefile, and in another folder than make's.

    There relative paths, STUDIES_DIR's say, are read from the current folder, and `make -C` would read them elsewhere.
    """
    if IS_CHECKOUT and ("MAKE_CALLED_FROM" in os.environ or Path.cwd() == ROOT):
        return None
    return f"{shlex.quote(sys.executable)} -m search"


class Preparing:
    """A progress callback for the steps before training: one bar in a terminal; elsewhere a line when a step begins,
    and one every LINE_INTERVAL_S while it goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # The per cent and the time left are empty while a step does not say how far it is.
        columns = (BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn(compact=True))
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._said_at = 0.0

    def __enter__(self) -> "Preparing":
        if self._console.is_interactive:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_interactive:
            self._bar.stop()

    def __call__(self, what: str, done_frac: float) -> None:
        """Show the share of `what` that is done."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=None)
            self._line(f"{what} ...")
        elif done_frac and time.monotonic() - self._said_at >= LINE_INTERVAL_S:
            self._line(f"{what}: {percent_words(done_frac)}")
        # Rich shows a pulse where there is no total.
        self._bar.update(self._tasks[what], completed=done_frac, total=1.0 if done_frac else None)

    def _line(self, text: str) -> None:
        self._said_at = time.monotonic()
        if not self._console.is_interactive:
            print_line(self._console, text)
