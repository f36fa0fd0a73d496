"""`python -m search COMMAND [NAME=value ...] [--json]`: the one entry point. make's targets call it."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainable.errors import MachineError, UserError, did_you_mean

if TYPE_CHECKING:
    from search.options import Options
    from search.terminal.console import Terminal

# Set before any library is imported that would phone home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Whatever else is installed is not asked whether it plugs into pydantic: looking takes as long as its import.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
# torch's threads wait for each other by spinning. On a machine that does other work too, a step of two threads took ten
# times as long for it; GNU's OpenMP reads this once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
try:
    Path("~").expanduser()
except RuntimeError:
    # A user by number alone, as containers have: libraries look for a home and a name when they are imported.
    os.environ["HOME"] = "/nonexistent"
    os.environ.setdefault("USER", str(os.getuid()))

COMMANDS = {
    "run": ("search.commands.run_command:search_command", "search a space: make search SPACE=plateau"),
    "resume": (
        "search.commands.resume_command:resume_command",
        "go on with a study that was cut off, or run more trials in it",
    ),
    "baseline": ("search.commands.baseline_command:baseline_command", "run the documented configuration alone"),
    "preflight": (
        "search.commands.preflight_command:preflight_command",
        "check in half a minute that the set-up is sound",
    ),
    "train": ("search.commands.train_command:train_command", "train one configuration"),
    "confirm": (
        "search.commands.confirm_command:confirm_command",
        "run the best trials again on fresh seeds: is it proven?",
    ),
    "attribute": ("search.commands.attribute_command:attribute_command", "find which of the changed settings did it"),
    "report": ("search.commands.report_command:report_command", "write a study's report.html and report.md"),
    "diagnose": (
        "search.commands.diagnose_command:diagnose_command",
        "say what is wrong with a study, log or checkpoint",
    ),
    "audit": ("search.commands.audit_command:audit_command", "say what is wrong with the text, by token position"),
    "export": ("search.commands.export_command:export_command", "print a study's best configuration"),
    "model": ("search.commands.model_command:model_command", "write a study's best model to a folder: OUT=folder"),
    "spaces": ("search.commands.spaces_command:spaces_command", "list and check the space files"),
    "variables": ("search.commands.variables_command:variables_command", "list the variables and their meanings"),
    "compare": ("search.commands.compare_command:compare_command", "set studies side by side: STUDY=a,b"),
    "list": ("search.commands.list_command:list_command", "list the studies"),
}
MAKE_NAMES = {"search": "run", "help": "variables"}
"""The targets of make that are called otherwise than the command."""
LEAVE_FILES = ("run", "resume", "baseline", "train", "confirm", "attribute", "report", "model")
"""What these print can be read in the study's folder as well, or in the model's."""
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 the user's mistake, 1 a fault, 130 interrupted."""
    from search.terminal.console import lasting_output

    words = [MAKE_NAMES.get(word, word) for word in (sys.argv[1:] if argv is None else argv)]
    with lasting_output() as stdout:
        code = _run(words)
        stdout.flush()
        if code == 0 and stdout.error is not None and not _leaves_files(words):
            # What was asked for was the output. A reader that has had enough knows.
            if not isinstance(stdout.error, BrokenPipeError):
                print(f"error: the output was not written: {stdout.error.strerror}", file=sys.stderr)
            return 1
    return code


def _run(words: Sequence[str]) -> int:
    from search.options import overlooked, read_options, typed_folders, with_origin
    from search.terminal.console import Terminal

    terminal = Terminal(as_json="--json" in words)
    try:
        _check_command(words)
        arguments = _parser().parse_args(words)
        options = read_options(arguments.assignments)
        for line in overlooked():
            print(f"note: {line}", file=sys.stderr)
        terminal.typed_folders = typed_folders(arguments.assignments)
        if options.is_outside_cluster:
            from search.commands.remote_command import COMMANDS as REMOTE
            from search.commands.remote_command import remote_command

            if arguments.command in REMOTE:
                return remote_command(arguments.command, options, terminal)
        return _command(arguments.command)(options, terminal)
    except UserError as error:
        return _refused(with_origin(str(error)), terminal)
    except MachineError as error:
        return _refused(str(error), terminal, code=1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        terminal.document({"error": "interrupted"})
        return INTERRUPTED
    except OSError as error:
        from results.study.atomic import is_storage_error, storage_error_words
        from results.study.paths import shown

        if isinstance(error, PermissionError) and isinstance(error.filename, str):
            # Any look into a folder may raise it. Without a file's name it is not about a file.
            where = shown(Path(error.filename))
            return _refused(f"{where}: permission denied. Give the user {os.geteuid()} the right to it.", terminal)
        if not is_storage_error(error):
            raise
        return _refused(f"{storage_error_words(error)}. Then run the command again.", terminal)


def _leaves_files(words: Sequence[str]) -> bool:
    return "--json" not in words and any(word in LEAVE_FILES for word in words)


def _refused(reason: str, terminal: "Terminal", *, code: int = 2) -> int:
    from search.terminal.console import plain

    line = plain(terminal.with_typed(" ".join(reason.split())))
    print(f"error: {line}", file=sys.stderr)
    terminal.document({"error": line})
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. `{self.prog} --help` lists the commands.")


def _check_command(words: Sequence[str]) -> None:
    """Raise UserError for a word in the command's place that is none: argparse would list them all."""
    word = next((word for word in words if not word.startswith("-")), None)
    if word is not None and word not in COMMANDS:
        near = did_you_mean(word, (*COMMANDS, *MAKE_NAMES))
        raise UserError(f"there is no command {word!r}.{near} `make help` lists them.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m search",
        description="Hyperparameter search for GPT-2-class training; variables are NAME=value or the environment's.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, everything else on stderr")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, description=help_line)
        command.add_argument("assignments", nargs="*", metavar="NAME=value", help="variables; `make help` lists them")
        command.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="one JSON document on stdout, everything else on stderr",
        )
    return parser


def _command(name: str) -> "Callable[[Options, Terminal], int]":
    module, _, function = COMMANDS[name][0].partition(":")
    command: Callable[[Options, Terminal], int] = getattr(importlib.import_module(module), function)
    return command


if __name__ == "__main__":
    sys.exit(main())
