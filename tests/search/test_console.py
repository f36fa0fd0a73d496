"""What a console prints: no character that a terminal obeys, and no password, whoever wrote the text."""

import io
import shlex
import subprocess
import sys

import pytest
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from search.terminal.console import PlainConsole, Terminal, plain, print_line, print_table
from search.trackers.callbacks import GuardedTracker
from tests.running import ROOT
from trainable.errors import UserError, redacted

ESCAPE = "\x1b]0;owned\x07 \x1b[2J \x9b31m \r \u202e"


def console(*, terminal: bool = False) -> PlainConsole:
    return PlainConsole(file=io.StringIO(), width=200, highlight=False, markup=False, force_terminal=terminal)


def table(text: str) -> Table:
    made = Table(text, title=text)
    made.add_row(text)
    return made


@pytest.mark.parametrize("make", [str, Text, Panel, table, lambda text: Panel(Text(text), title=text)])
def test_nothing_is_printed_raw(make: type) -> None:
    to = console()
    to.print(make(ESCAPE), soft_wrap=True)
    assert isinstance(to.file, io.StringIO)
    printed = to.file.getvalue()
    assert r"\x1b]0;owned" in printed
    assert r"\x9b31m" in printed
    assert all(one.isprintable() or one == "\n" for one in printed), repr(printed)


def test_a_live_screen_still_moves_the_cursor() -> None:
    to = console(terminal=True)
    with Live("first \x1b[2J", console=to, auto_refresh=False) as live:
        live.update("second", refresh=True)
    assert isinstance(to.file, io.StringIO)
    printed = to.file.getvalue()
    assert r"first \x1b[2J" in printed
    assert "\x1b[2K" in printed, "rich's own control characters"
    assert "\x1b[2J" not in printed.replace(r"\x1b[2J", "")


@pytest.mark.parametrize(
    ("closed", "code"), [(">&-", 1), ("2>&-", 0), ("<&- >&- 2>&-", 1)], ids=["stdout", "stderr", "all three"]
)
def test_a_command_that_is_started_without_streams_ends_as_it_should(closed: str, code: int) -> None:
    # What is opened meanwhile must not get the number of a stream that libraries print to.
    script = "import os, search.__main__ as m; code = m.main(['spaces']); assert os.open('.', 0) > 2; os._exit(code)"
    line = shlex.join([sys.executable, "-c", script])
    ran = subprocess.run(["sh", "-c", f"{line} {closed}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, "Traceback" in ran.stderr, "smoke" in ran.stdout) == (code, False, code == 0)


def test_words_of_any_script_stay() -> None:
    text = "Überraschung 漢字 😀\n\tx"
    assert plain(text) == text
    assert plain("\udce4") == r"\udce4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("STORAGE=s3://key:sec/ret@bucket/p?region=x: no", "STORAGE=s3://***@bucket/p?region=x: no"),
        ("postgresql+psycopg://user:p@ss@host:5432/db", "postgresql+psycopg://***@host:5432/db"),
        ("postgresql://user:p'a\"s@host/db", "postgresql://***@host/db"),
        ("'https://token@host/'", "'https://***@host/'"),
        ("mysql://host/db?user=u&password=hunter2&x=1", "mysql://host/db?user=u&password=***&x=1"),
        ("s3://b/p?access_key=AK&secret_key=SK", "s3://b/p?access_key=***&secret_key=***"),
        ("two s3://a:b@c and s3://d:e@f", "two s3://***@c and s3://***@f"),
        ("s3://bucket/p?endpoint_override=localhost:9000", "s3://bucket/p?endpoint_override=localhost:9000"),
        ("sqlite:////tmp/x.db; someone@example.com", "sqlite:////tmp/x.db; someone@example.com"),
    ],
)
def test_a_password_of_a_url_is_never_told(text: str, expected: str) -> None:
    assert redacted(text) == plain(text) == str(UserError(text)) == expected
    assert redacted(expected) == expected


def test_a_trackers_own_words_are_told_without_a_password() -> None:
    to = console()

    def fail() -> None:
        raise RuntimeError("cannot reach postgresql://user:hunter2@host/db")

    GuardedTracker("the Optuna storage", fail, to.print)
    assert isinstance(to.file, io.StringIO)
    assert "hunter2" not in to.file.getvalue()
    assert "postgresql://***@host/db" in to.file.getvalue()


def test_a_terminal_breaks_lines_between_words_and_a_path_stays_whole() -> None:
    path = f"results/studies/{'x' * 60}/report.html"
    text = f"  where the report of this study was written to: {path}; and one word"
    drawn = []
    for terminal in (True, False):
        file = io.StringIO()
        print_line(PlainConsole(file=file, width=40, force_terminal=terminal, color_system=None), text, indent=2)
        drawn.append(file.getvalue().splitlines())
    assert drawn[0] == [
        "    where the report of this study was",
        "  written to:",
        f"  {path};",
        "  and one word",
    ]
    assert drawn[1] == [f"  {text}"]
    file = io.StringIO()
    print_line(PlainConsole(file=file, width=8, force_terminal=True, color_system=None), "no room", indent=10)
    assert file.getvalue().split() == ["no", "room"]


def test_a_table_wider_than_the_screen_has_every_name_whole() -> None:
    name = "a-study-with-a-long-name-" * 3
    table = Table(box=None)
    for heading in ("study", "made"):
        table.add_column(heading)
    table.add_row(name, "2026-11-29 03:05 UTC")
    file = io.StringIO()
    print_table(PlainConsole(file=file, width=40), table)
    assert file.getvalue().splitlines()[1].split("  ")[0].strip() == name
    assert file.getvalue().count("\n") == 2


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_colours_that_ci_asks_for_bring_no_live_screen_into_its_log(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm")
    for as_json in (False, True):
        to = Terminal(as_json=as_json).console
        assert (to.is_terminal, to.is_interactive) == (True, False)


def test_a_screen_without_columns_is_printed_on_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    Terminal(as_json=False).say("nothing was printed, and the exit code was 0")
    assert capsys.readouterr().out == "nothing was printed, and the exit code was 0\n"
