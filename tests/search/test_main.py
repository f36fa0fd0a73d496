"""The entry point: what becomes of an error that no command expected."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from results.study.atomic import write_atomic
from search.__main__ import main
from search.commands import list_command
from tests.running import ROOT
from trainable.errors import MachineError


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(list_command, "list_command", command)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left on the device. Make room"),
        (errno.EROFS, "the file system is read-only. Make it writable"),
        (errno.EFBIG, "larger than a limit on files allows. Raise it (ulimit -f)"),
    ],
)
def test_a_disk_that_takes_no_more_is_told_in_a_line(
    number: int, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, OSError(number, "as the system says it", "/somewhere/best.json"))
    assert main(["list", "--json"]) == 2
    out, err = capsys.readouterr()
    line = f"/somewhere/best.json: {reason}; what was measured so far is kept. Then run the command again."
    assert err == f"error: {line}\n"
    assert json.loads(out) == {"error": line}


def test_what_may_not_be_read_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/theirs/config.json"))
    assert main(["list"]) == 2
    line = f"/theirs/config.json: permission denied. Give the user {os.geteuid()} the right to it."
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), PermissionError(errno.EACCES, "x"), ZeroDivisionError()])
def test_any_other_error_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["list"])


def test_a_machine_that_cannot_is_told_in_a_line_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, MachineError("Ray did not start"))
    assert main(["list", "--json"]) == 1
    out, err = capsys.readouterr()
    assert (err, json.loads(out)) == ("error: Ray did not start\n", {"error": "Ray did not start"})


def test_a_command_that_has_said_why_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, SystemExit(143))
    assert main(["list"]) == 143


SCRIPT = """
import sys
from search.__main__ import main
from search.commands import {command}_command as module

def command(options, terminal):
    for number in range(3_000):
        terminal.say(f"line {{number}} of many that are longer than a pipe")
    print("printed by a library")
    terminal.document({{"all": "said"}})
    open(sys.argv[1], "w").write("done")
    return {code}

module.{command}_command = command
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("shell", "words", "code", "expected", "told"),
    [
        ("{} | head -3", "run", 0, 0, ""),
        ("{} | head -3", "list", 0, 1, ""),
        ("{} > /dev/full", "run", 0, 0, ""),
        ("{} > /dev/full", "run", 130, 130, ""),
        ("{} > /dev/full", "run --json", 0, 1, "error: the output was not written: No space left on device\n"),
        ("{} > /dev/full", "list", 0, 1, "error: the output was not written: No space left on device\n"),
        ("{} > /dev/full 2>&1", "run", 0, 0, ""),
        ("{} > /dev/null", "list", 0, 0, ""),
    ],
)
def test_a_command_runs_to_its_end_whatever_becomes_of_its_output(
    shell: str, words: str, code: int, expected: int, told: str, tmp_path: Path
) -> None:
    command = words.split()[0]
    (tmp_path / "it.py").write_text(SCRIPT.format(command=command, code=code))
    line = f"{sys.executable} {tmp_path / 'it.py'} {tmp_path / 'done'} {words}"
    ran = subprocess.run(
        ["bash", "-c", f"{shell.format(line)}; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "done").read_text() == "done"
    assert ran.returncode == expected
    # With --json what is said is on stderr.
    said = ran.stderr.splitlines(keepends=True)[3_000:] if "--json" in words else [ran.stderr]
    assert "".join(said) == told


def test_a_failed_write_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as refused:
        write_atomic(tmp_path / "gone" / "best.json", b"")
    assert refused.value.filename == str(tmp_path / "gone" / "best.json")


def test_a_space_that_is_not_there_is_told_without_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces", "SPACE=platau"]) == 2
    assert capsys.readouterr().out == "error: no space named 'platau' in spaces/. Did you mean 'plateau'?\n"


def test_a_word_too_many_is_told_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "help"]) == 2
    assert capsys.readouterr().err == "error: 'help' is not of the form NAME=value.\n"


def test_an_installed_package_keeps_its_files_where_it_is_called_and_prints_commands_without_make(
    tmp_path: Path,
) -> None:
    site, here = tmp_path / "site packages", tmp_path / "here"
    here.mkdir()
    for package in ("search", "trainable", "spaces", "results"):
        left = shutil.ignore_patterns("studies", "pictures", "__pycache__")
        shutil.copytree(ROOT / package, site / package, ignore=left)
    python = f"{sys.executable} -m search"
    told = {
        "list": f"no study in results/studies yet. Make one with: {python} search SPACE=plateau\n",
        "export STUDY=one": f"error: there is no study in results/studies/ yet. Make one with: {python} search "
        "SPACE=plateau\n",
        "compare STUDY=a": "error: compare needs two different studies or more: STUDY=a,b. "
        f"{python} list shows them.\n",
        "serach": f"error: there is no command 'serach'. Did you mean 'search'? `{python} help` lists them.\n",
    }
    for words, line in told.items():
        ran = subprocess.run(
            [sys.executable, "-m", "search", *words.split()],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(site), "STUDIES_DIR": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout + ran.stderr == line
    assert list(here.iterdir()) == []


def test_a_current_folder_that_is_gone_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {sys.executable} -m search list"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    told = "error: the current folder is gone or closed (No such file or directory). cd to another one.\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", told)


def test_the_end_of_a_command_walks_nothing_that_the_libraries_brought(tmp_path: Path) -> None:
    script = (
        "import atexit, gc, runpy, sys; sys.argv[1:] = ['list']\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < 10_000 < gc.get_freeze_count()))\n"
        "runpy.run_module('search', run_name='__main__')"
    )
    environment = {**os.environ, "STUDIES_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "True"
