"""What is at a path, told as Python did before 3.14: what cannot be looked at is no missing file."""

import errno
from pathlib import Path
from stat import S_IFDIR, S_IFREG

import pytest

from results.study.folder import Study
from trainable.regular_files import file_type, read_regular


def test_the_type_of_what_is_there_and_none_of_what_is_not(tmp_path: Path) -> None:
    file, link, loop = (tmp_path / name for name in ("file", "link", "loop"))
    file.touch()
    link.symlink_to(tmp_path)
    loop.symlink_to(loop)
    assert [file_type(path) for path in (file, tmp_path, link)] == [S_IFREG, S_IFDIR, S_IFDIR]
    nowhere = (tmp_path / "none", file / "below", loop, Path("a\0b"))
    assert [file_type(path) for path in nowhere] == [None] * 4
    with pytest.raises(OSError, match="File name too long"):
        file_type(tmp_path / ("x" * 300))


def test_a_folder_is_refused_by_its_name_and_left_closed(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as refused:
        read_regular(tmp_path)
    assert refused.value.filename == str(tmp_path)
    # The lowest number is free again.
    with (tmp_path / "file").open("w") as file:
        number = file.fileno()
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with (tmp_path / "file").open() as file:
        assert file.fileno() == number


def test_a_table_that_cannot_be_looked_at_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path, **options: bool) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        Study(tmp_path).trials()
