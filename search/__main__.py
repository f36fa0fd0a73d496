"""`python -m search COMMAND [NAME=value ...] [--json]`: the one entry point. make's targets call it."""

import gc
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.terminal.signals import INTERRUPTED
from trainable.errors import MachineError, UserError, did_you_mean

if TYPE_CHECKING:
    from search.terminal.console import Terminal

# Set before any library is imported that would phone home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Pydantic looks for plugins in all installed packages, which takes as long as its import.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
# torch's threads spin while they wait for each other, which made a step of two threads ten times as slow on a machine
# with other work. GNU's OpenMP reads this once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Torch, transformers and Ray bring a million objects. With a collection at every 700 new ones, a fifth of the time of
# their imports went to collections that found nothing.
gc.set_threshold(100_000, *gc.get_threshold()[1:])
# Matplotlib warns where a home cannot be written, which a picture does not need.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
try:
    Path("~").expanduser()
except RuntimeError:
    # In a container the user may have no entry in passwd: libraries look for a home and a name when imported.
    os.environ["HOME"] = "/nonexistent"
    os.environ.setdefault("USER", str(os.getuid()))

COMMANDS = {
    "run": "search a space: make search SPACE=plateau",
    "resume": "go on with a study that was cut off, or run more trials in it",
    "baseline": "run the documented configuration alone",
    "preflight": "check in half a minute that the set-up is sound",
    "train": "train one configuration",
    "confirm": "run the best trials again on fresh seeds: is it proven?",
    "attribute": "find which of the changed settings did it",
    "report": "write a study's report.html and report.md",
    "diagnose": "say what is wrong with a study, log or checkpoint",
    "audit": "say what is wrong with the text, by token position",
    "export": "print a study's best configuration",
    "model": "write a study's best model to a folder: OUT=folder",
    "spaces": "list and check the space files",
    "variables": "list the variables and their meanings",
    "compare": "set studies side by side: STUDY=a,b",
    "list": "list the studies",
}
"""What each does, for --help; x is x_command() of commands/x_command.py."""
MAKE_NAMES = {"search": "run", "help": "variables"}
"""The command of each make target that has another name."""
HELP = """usage: python -m search COMMAND [NAME=value ...] [--json]

Hyperparameter search for GPT-2-class training. Variables are NAME=value or the environment's; `make help` lists them.
--json prints one JSON document on stdout and everything else on stderr.
"""
LEAVE_FILES = ("run", "resume", "baseline", "train", "confirm", "attribute", "report", "model")
"""Commands that write what they print into the study's or the model's folder as well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 the user's mistake, 1 a fault, 130 interrupted."""
    try:
        from search.terminal.console import lasting_output
    except ModuleNotFoundError as missing:
        own = "call make, or .venv/bin/python -m search"
        print(f"error: {sys.executable} has no {missing.name}, which .venv has: {own}.", file=sys.stderr)
        return 2
    try:
        Path.cwd()
    except OSError as error:
        print(f"error: the current folder is gone or closed ({error.strerror}). cd to another one.", file=sys.stderr)
        return 2
    words = list(sys.argv[1:] if argv is None else argv)
    leaves_files = "--json" not in words and any(MAKE_NAMES.get(word, word) in LEAVE_FILES for word in words)
    with lasting_output() as stdout:
        code = _run(words)
        stdout.flush()
        if code == 0 and stdout.error is not None and not leaves_files:
            # The output was the result. A closed pipe is not an error to print.
            if not isinstance(stdout.error, BrokenPipeError):
                print(f"error: the output was not written: {stdout.error.strerror}", file=sys.stderr)
            return 1
    return code


def _run(words: Sequence[str]) -> int:
    from search.options import overlooked, read_options, typed, typed_folders, unread, with_origin, with_place
    from search.terminal.console import Terminal

    terminal = Terminal(as_json="--json" in words)
    try:
        command, assignments = _parsed(words)
        options = read_options(assignments)
        target = next((make for make, name in MAKE_NAMES.items() if name == command), command)
        for line in (*overlooked(), *unread(options, target)):
            print(f"note: {line}", file=sys.stderr)
        terminal.typed_folders = typed_folders(options)
        terminal.is_study_exported = options.is_study_exported
        module = importlib.import_module(f"search.commands.{command}_command")
        return int(getattr(module, f"{command}_command")(options, terminal))
    except UserError as error:
        return _refused(with_place(with_origin(str(error), typed(words)), typed(words)), terminal)
    except MachineError as error:
        return _refused(str(error), terminal, code=1)
    except SystemExit as ended:
        # The reason has been printed.
        return int(ended.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        terminal.document({"error": "interrupted"})
        return INTERRUPTED
    except OSError as error:
        from results.study.atomic import storage_error_words
        from results.study.paths import shown

        if isinstance(error, PermissionError) and isinstance(error.filename, str):
            # Any access to a folder may raise it; without a file name it is about something else.
            where = shown(Path(error.filename))
            return _refused(f"{where}: permission denied. Give the user {os.geteuid()} the right to it.", terminal)
        return _refused(storage_error_words(error), terminal)


def _refused(reason: str, terminal: "Terminal", *, code: int = 2) -> int:
    from search.terminal.console import plain

    line = plain(terminal.with_typed(" ".join(reason.split())))
    print(f"error: {line}", file=sys.stderr)
    terminal.document({"error": line})
    return code


def _parsed(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command and the words behind it. Raises UserError, and SystemExit once help is printed."""
    from search.option_names import space_hint

    typed_command, *others = [word for word in words if word != "--json"] or [""]
    command = MAKE_NAMES.get(typed_command, typed_command)
    if not {"-h", "--help"}.isdisjoint(words):
        asked = [command] if command in COMMANDS else COMMANDS
        print(HELP, *(f"  {name:<10} {COMMANDS[name]}" for name in asked), sep="\n")
        raise SystemExit(0)
    if command not in COMMANDS:
        near = space_hint(command) or did_you_mean(command, (*COMMANDS, *MAKE_NAMES))
        what = f"there is no command {command!r}.{near}" if command else "no command is named."
        raise UserError(f"{what} `make help` lists them.")
    return command, others


if __name__ == "__main__":
    exit_code = main()
    if "triton" in sys.modules:  # of CUDA builds; it prints all its frozen objects as leaked
        gc.unfreeze()
    else:
        # Python's last collections would walk all that the libraries brought: after an audit a second and more.
        gc.freeze()
    sys.exit(exit_code)
