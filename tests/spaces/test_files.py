"""Space files on disk: found by name or path, or refused in one line."""

import os
from pathlib import Path

import pytest

from spaces.read.load import load_space
from spaces.read.space_files import MAX_FILE_BYTES, find_space_file, list_spaces, parse_toml, read_space_text
from trainable.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return spaces/ below the current folder, with two files, a folder and a file of another kind in it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "spaces"
    monkeypatch.setattr("spaces.read.space_files.SPACES_DIRECTORY", folder)
    (folder / "old.toml").mkdir(parents=True)
    for name in ("plateau.toml", "schedule.toml", "notes.txt", "pyproject.toml"):
        (folder / name).write_text("x = 1\n", encoding="utf-8")
    return folder


def test_the_list_has_files_only_by_name(folder: Path) -> None:
    assert list_spaces(folder) == [folder / "plateau.toml", folder / "schedule.toml"]


def test_a_name_or_a_path(folder: Path) -> None:
    assert find_space_file("plateau") == folder / "plateau.toml"
    assert find_space_file("spaces/plateau.toml") == Path("spaces/plateau.toml")
    assert find_space_file(str(folder / "plateau.toml")) == folder / "plateau.toml"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("platau", "no space named 'platau' in spaces/. Did you mean 'plateau'?"),
        ("", "no space named '' in spaces/. Known: plateau, schedule."),
        ("old", "no space named 'old' in spaces/. Known: plateau, schedule."),
        ("notes.txt", "no space named 'notes.txt' in spaces/. Known: plateau, schedule."),
        ("../plateau", "'../plateau' is not a space: a name has no '/', and a path ends in .toml."),
        ("plateau.toml", "there is no file 'plateau.toml'. Did you mean 'plateau'?"),
        ("spaces/platau.toml", "there is no file 'spaces/platau.toml'. Did you mean 'spaces/plateau.toml'?"),
        ("nowhere/plateau.toml", "there is no file 'nowhere/plateau.toml'."),
        ("spaces/old.toml", "'spaces/old.toml' is not a file."),
        ("x" * 300 + ".toml", f"'{'x' * 27}...{'x' * 23}.toml' cannot be opened: File name too long."),
    ],
)
def test_there_is_no_such_file(folder: Path, given: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_space(given)
    assert str(caught.value) == line


@pytest.mark.parametrize("given", ["a\0b", "a\0b.toml", "~nobody/x.toml", "\n.toml", "\udcff", "\udcff.toml"])
def test_a_strange_name_is_the_users_mistake(folder: Path, given: str) -> None:
    with pytest.raises(UserError) as caught:
        load_space(given)
    assert str(caught.value).isprintable()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the space files in .*gone/: No such file or directory\.$"):
        list_spaces(tmp_path / "gone")


def test_a_file_whose_name_cannot_name_a_study(folder: Path) -> None:
    (folder / "my space.toml").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^'my space\.toml': a study's folder is named after its space file\. Rename"):
        load_space("spaces/my space.toml")
    with pytest.raises(UserError, match="Rename"):
        load_space("my space")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"x = 1\ny = '\xff'\n", "spaces/plateau.toml: line 2 is not UTF-8. Save the file as UTF-8."),
        (b"\xff\xfex\x00", "spaces/plateau.toml: line 1 is not UTF-8. Save the file as UTF-8."),
        (b"x = 1\n\0\n", "spaces/plateau.toml: not valid TOML: Invalid statement (at line 2, column 1)."),
        (b"x = " + b"[" * 50_000, "spaces/plateau.toml: arrays or tables are nested too deeply."),
        (
            b"#" * (MAX_FILE_BYTES + 1),
            "spaces/plateau.toml is larger than 1000000 bytes: it is not a space file.",
        ),
    ],
)
def test_no_toml(folder: Path, content: bytes, line: str) -> None:
    (folder / "plateau.toml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_space("plateau")
    assert str(caught.value) == line


def test_a_number_of_too_many_digits(folder: Path) -> None:
    (folder / "plateau.toml").write_text(f"x = {'9' * 5_000}", encoding="utf-8")
    with pytest.raises(UserError, match=r"^spaces/plateau\.toml: not valid TOML: "):
        load_space("plateau")


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder: Path) -> None:
    (folder / "plateau.toml").write_bytes(b"\xef\xbb\xbfx = 1\r\ny = 2\r\n")
    assert parse_toml(read_space_text(folder / "plateau.toml"), "here") == {"x": 1, "y": 2}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "plateau.toml").chmod(0)
    with pytest.raises(UserError, match=r"^spaces/plateau\.toml cannot be read: Permission denied\.$"):
        load_space("plateau")
