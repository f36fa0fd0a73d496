"""Makes the README's pictures of a real run: .venv/bin/python -m docs.make_pictures [NAME=value ...]

It runs `search run` and `search confirm` in a terminal of its own, draws that terminal as it was in the middle of the
search (terminal.svg), and takes the first screen of the report in a headless Chromium (report.png).
"""

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from results.study.folder import find_study
from tests.results.report_chromium import Chromium, find_chromium

FOLDER = Path(__file__).parent
COLUMNS, ROWS = 100, 32
SHOWN_FRAC = 0.6
"""How much of the search is over in the picture."""
REPORT_WIDTH, REPORT_HEIGHT = 1400, 860
NEW_FRAME = re.compile(r"\r?(?:\x1b\[1?A\x1b\[2K)+|\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
# As rich's own, without its fonts from the net.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def output_of(words: list[str]) -> list[tuple[float, str]]:
    """Return (seconds, text) of what a command prints into a terminal. Raises RuntimeError when it fails."""
    process, terminal = pty.fork()
    if process == 0:
        environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
        os.execve(sys.executable, [sys.executable, "-m", "search", *words], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    started_at, parts = time.monotonic(), []
    # At the end of its process a terminal is an error on Linux and empty elsewhere.
    with os.fdopen(terminal, "rb", buffering=0) as stream:
        while True:
            try:
                part = stream.read(1 << 16)
            except OSError:
                break
            if not part:
                break
            parts.append((time.monotonic() - started_at, part.decode(errors="replace")))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != 0:
        raise RuntimeError(f"search {' '.join(words)} ended with exit code {code}")
    return parts


def live_screens(parts: list[tuple[float, str]]) -> list[str]:
    """Return the live screens of the search, oldest first: what stands between two erasures."""
    frames = NEW_FRAME.split("".join(text for _, text in parts))
    return [frame for frame in frames if "trials," in frame and "left" in frame]


def write_terminal(screen: str, command: str, path: Path) -> None:
    """Draw a screen with its colours as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(f"$ {command}\n{screen.strip()}"))
    console.save_svg(str(path), title=command, code_format=SVG)


def main(assignments: list[str]) -> None:
    """Run the search and its confirmation, and write both pictures."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("error: no Chromium or Chrome is installed, which takes the picture of the report.")
    screens = live_screens(output_of(["run", *assignments]))
    command = " ".join(["make search", *(word for word in assignments if not word.startswith(("STUDIES_", "CACHE_")))])
    write_terminal(screens[int(SHOWN_FRAC * len(screens))], command, FOLDER / "terminal.svg")
    folders = [word for word in assignments if word.startswith(("STUDIES_DIR=", "CACHE_DIR="))]
    output_of(["confirm", *folders])
    for word in folders:
        name, _, value = word.partition("=")
        os.environ[name] = value
    study = find_study("latest")
    assert study is not None
    with Chromium(executable) as browser:
        browser.open(study.path / "report.html", width=REPORT_WIDTH, height=REPORT_HEIGHT)
        browser.picture(FOLDER / "report.png")


if __name__ == "__main__":
    main(sys.argv[1:])
