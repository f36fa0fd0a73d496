"""The entry point: what becomes of an error that no command expected."""

import errno
import json
from pathlib import Path

import pytest

from results.study.atomic import write_atomic
from search.__main__ import main
from search.commands import list_command


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


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), PermissionError(errno.EACCES, "x"), ZeroDivisionError()])
def test_any_other_error_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["list"])


def test_a_failed_write_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as refused:
        write_atomic(tmp_path / "gone" / "best.json", b"")
    assert refused.value.filename == str(tmp_path / "gone" / "best.json")
