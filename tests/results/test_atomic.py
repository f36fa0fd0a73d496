"""A file is old or new, never a part, whatever happens to its writer."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.study.atomic import storage_error_words, write_atomic

SIZE = 1_000_000

WRITE_FOR_EVER = f"""
import sys
from pathlib import Path
from results.study.atomic import write_atomic
while True:
    for letter in (b"a", b"b"):
        write_atomic(Path(sys.argv[1]), letter * {SIZE})
"""

WRITE_BEYOND_THE_LIMIT = """
import resource, sys
from pathlib import Path
from results.study.atomic import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path(sys.argv[1]), b"n" * 100_000)
except OSError as err:
    print(err.errno)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_and_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_atomic(path, b"old")
    write_atomic(path, b"new\0bytes")
    assert path.read_bytes() == b"new\0bytes"
    assert names(tmp_path) == ["table"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "table", b"x")
    assert (tmp_path / "table").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "table", b"x")


def test_a_target_that_cannot_be_replaced_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "table", b"x")
    assert names(tmp_path) == ["table"]


def test_a_write_that_fails_halfway_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")
    ran = subprocess.run(
        [sys.executable, "-c", WRITE_BEYOND_THE_LIMIT, str(path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{errno.EFBIG}\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*{"fsync": (os, "fsync", refuse), "replace": (Path, "replace", refuse)}[call])
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            write_atomic(path, b"new")
    assert caught.value.errno == number
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table"]


def test_the_words_name_the_file_the_reason_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plateau" / "trials.parquet"
    full = OSError(errno.ENOSPC, "No space left on device", str(path))
    words = "no space left on the device. Make room; what was measured so far is kept. Then run the command again."
    # The error's own file, whatever the caller supposes; and none where neither names one.
    assert storage_error_words(full, tmp_path / "study") == f"plateau/trials.parquet: {words}"
    assert storage_error_words(OSError(errno.ENOSPC, "x")) == words
    again = storage_error_words(full, again="make report STUDY=plateau")
    assert again.endswith("is kept. Then go on with: make report STUDY=plateau")
    for error, reason in (
        (OSError(errno.EDQUOT, "x"), "the disk quota is used up. Make room, or have it raised;"),
        (OSError(errno.EROFS, "x"), "the file system is read-only. Make it writable;"),
        (OSError(errno.EFBIG, "x"), "larger than a limit on files allows. Raise it (ulimit -f);"),
        (OSError(errno.ESTALE, "Stale file handle"), "deleted or moved while it was written to. Put it back;"),
        (OSError("upload failed:\n  no route"), "upload failed: no route. Make it writable;"),
    ):
        words = storage_error_words(error, path, is_certain=True)
        assert words.startswith(f"plateau/trials.parquet: {reason}")
        assert "\n" not in words
    with pytest.raises(OSError, match="upload failed"):
        storage_error_words(OSError("upload failed"), path)


def test_a_killed_writer_and_a_reader_meanwhile_see_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_atomic(path, b"a" * SIZE)
    seen = set()
    for wait_s in (0.0, 0.003, 0.007):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(path)])
        try:
            started, before = time.monotonic(), path.stat().st_ino
            while path.stat().st_ino == before:
                assert time.monotonic() - started < 60, "the writer never wrote"
            for _ in range(20):
                seen.add(path.read_bytes())
            time.sleep(wait_s)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        seen.add(path.read_bytes())
    assert seen <= {b"a" * SIZE, b"b" * SIZE}
    # What a kill leaves has a name that no table has.
    assert [name for name in names(tmp_path) if not name.startswith(".table.")] == ["table"]
