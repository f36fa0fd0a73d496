"""Text sources: files and folders, what is counted in them, and the validation text of its own."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from trainable.data import corpus
from trainable.data import text_documents as documents_module
from trainable.data.cache_files import sum_path
from trainable.data.corpus import (
    cache_dir,
    check_apart,
    language_reference,
    read_facts,
    size_words,
    source_files,
    text_fingerprint,
)
from trainable.data.text_documents import iter_chunks, parse_documents
from trainable.errors import UserError


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal_of(files: list[Path]) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_chunks(files))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_embedded_text_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = source_files(None)
    assert path.parent == cache
    assert path.read_text(encoding="utf-8") == language_reference()
    monkeypatch.setattr(corpus, "language_reference", lambda: pytest.fail("made again"))
    assert source_files(None) == [path]
    assert sorted(cache.iterdir()) == [path, sum_path(path)]


def test_a_file_is_itself_whatever_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "book.dat", "words")
    monkeypatch.chdir(tmp_path)
    assert source_files(str(path)) == source_files("book.dat") == [path]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source_files("~/book.dat") == [path]


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    names = ["b.txt", "a.md", "deep/er/c.TXT", "deep/d.text"]
    for name in [*names, "code.py", "txt", "table.csv"]:
        write(tmp_path / "texts" / name, name)
    (tmp_path / "texts" / "folder.txt").mkdir()
    assert source_files(str(tmp_path / "texts")) == sorted(tmp_path / "texts" / name for name in names)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    shown = [write(tmp_path / ".texts" / name, "words") for name in ("a.txt", "deep/b.txt")]
    for name in ("._a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "deep/.git/c.md", ".hidden.md"):
        write(tmp_path / ".texts" / name, "other words")
    assert source_files(str(tmp_path / ".texts")) == shown
    assert source_files(str(tmp_path / ".texts" / "._a.txt")), "a file that was named is meant"


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    own, other = write(tmp_path / "texts" / "b" / "own.txt", "1"), write(tmp_path / "elsewhere" / "other.txt", "2")
    (tmp_path / "texts" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "b" / "up").symlink_to(tmp_path / "texts")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "texts" / "b")
    (tmp_path / "texts" / "same.txt").symlink_to(own)
    (tmp_path / "texts" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    assert source_files(str(tmp_path / "texts")) == [own, tmp_path / "texts" / "c" / other.name]


def test_a_folder_of_json_lines_is_its_json_lines(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.ndjson", "c.txt", "d.json"):
        write(tmp_path / "texts" / name, "{}")
    found = source_files(str(tmp_path / "texts"), documents=parse_documents("jsonl:text"))
    assert [path.name for path in found] == ["a.jsonl", "b.ndjson"]


def test_a_small_text_has_a_size() -> None:
    sizes = (999, 1234, 99_999, 100_000, 1_234_567_890)
    assert [size_words(size) for size in sizes] == ["999 B", "1.2 kB", "100.0 kB", "0.1 MB", "1,234.6 MB"]


def test_a_source_is_counted_and_its_marks_and_line_ends_are_told(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.txt", "\ufeffone\r\n\r\ntwo\r\n"),
        write(tmp_path / "b.txt", "three\n"),
        write(tmp_path / "c.txt", ""),
    ]
    facts = read_facts(files)
    assert facts.words == "3 files, 21 B, 2 documents"
    assert facts.notes == ["1 file with byte-order marks or CRLF line ends: marks are left out, the ends read as LF"]
    assert read_facts(files, parse_documents("blank-line")).documents == 3
    assert read_facts([files[1]]).notes == []
    lines = write(tmp_path / "d.jsonl", '{"text": "one"}\n')
    assert read_facts([lines, write(tmp_path / "e.csv", "a,b\n")]).notes == [
        "2 files of JSON or CSV: quotes and names of fields are text too; DOCUMENTS=jsonl:FIELD reads one field of "
        "JSON lines"
    ]
    assert read_facts([lines], parse_documents("jsonl:text")).notes == []
    with pytest.raises(UserError, match=r"c\.txt is empty"):
        read_facts([files[2]])


def test_a_long_text_says_how_much_of_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 100)
    text, told = write(tmp_path / "a.txt", "nine more\n" * 40), list[float]()
    read_facts([text], progress=lambda share: pytest.fail("it takes no second"))
    monkeypatch.setattr(corpus, "REPORT_INTERVAL_S", 0.0)
    read_facts([text], progress=told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_a_text_is_hashed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write(tmp_path / "a.txt", "one\n")
    read_facts([text])
    write(text, "two\n")  # in the same tick of the clock, perhaps
    assert text_fingerprint([text]) == hashlib.sha256(b"4\ntwo\n").hexdigest()
    monkeypatch.setattr(corpus, "CLOCK_TICK_S", 0.0)
    read_facts([text])
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "open_hashed", lambda *_: pytest.fail("read again"))
        assert text_fingerprint([text]) == hashlib.sha256(b"4\ntwo\n").hexdigest()
    write(text, "longer\n")
    assert text_fingerprint([text]) == hashlib.sha256(b"7\nlonger\n").hexdigest()


def test_a_validation_text_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    training = [write(tmp_path / "texts" / name, name * 9) for name in ("a.txt", "b.txt")]
    copy, link, other = (
        tmp_path / "copy.txt",
        tmp_path / "link.txt",
        write(tmp_path / "other.txt", "b.txt" * 8 + "x.txt"),
    )
    write(copy, training[1].read_bytes())
    link.symlink_to(training[0])
    empty = [write(tmp_path / "texts" / "empty.txt", ""), write(tmp_path / "empty too.txt", "")]
    check_apart([*training, empty[0]], [other, empty[1]])
    for path in (training[0], copy, link):
        with pytest.raises(UserError, match=rf"VALIDATION_DATA_SOURCE: {path} is also trained on") as refusal:
            check_apart(training, [other, path])
        assert (", as " in str(refusal.value)) == (path != training[0])
    with pytest.raises(UserError, match=r"VALIDATION_DATA_SOURCE=.* does not exist"):
        source_files(str(tmp_path / "gone"), variable="VALIDATION_DATA_SOURCE")


def test_a_source_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "json" / "a.jsonl", "{}")
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "file", "words")
    for source, what in [
        ("empty", r"the folder holds no text file \(\.txt, \.text, \.md\)"),
        ("json", r"holds no text file .* DOCUMENTS=jsonl:FIELD reads its JSON lines\. Name a folder with text"),
        ("missing", r"does not exist"),
        ("pipe", r"is not a regular file"),
        ("file/below", r"does not exist"),
        ("x" * 300, r"cannot be used: File name too long"),
    ]:
        with pytest.raises(UserError, match=f"TRAINING_DATA_SOURCE=.*{what}"):
            source_files(str(tmp_path / source))
    with pytest.raises(UserError, match="TRAINING_DATA_SOURCE=~nobody_of_that_name/x cannot be used"):
        source_files("~nobody_of_that_name/x")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name, "") for name in ("a.txt", "b.txt")]
    with pytest.raises(UserError, match=r"a\.txt is empty\. Name a source with text in it"):
        text_fingerprint(files)
    assert text_fingerprint([*files, write(tmp_path / "c.txt", "\n")])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    gone, folder = tmp_path / "gone.txt", tmp_path / "folder.txt"
    folder.mkdir()
    assert refusal_of([gone]) == f"{gone} cannot be read: No such file or directory."
    assert refusal_of([folder]) == f"{folder} cannot be read: Is a directory."
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        text_fingerprint([gone])


def test_a_folder_with_a_link_that_may_not_be_followed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "secret.txt", "words")

    def stat(path: str, **options: bool) -> os.stat_result:
        if Path(path).name == "secret.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    real = os.stat
    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(UserError, match=r"^.*secret\.txt cannot be read: Permission denied\.$"):
        source_files(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "secret.txt", "words")
    path.chmod(0)
    assert refusal_of([path]) == f"{path} cannot be read: Permission denied."


def test_the_fingerprint_is_that_of_sizes_and_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", "one\r\n"), write(tmp_path / "b.txt", "two\n")
    assert text_fingerprint([first, second]) == hashlib.sha256(b"5\none\r\n4\ntwo\n").hexdigest()
    assert text_fingerprint([second, first]) != text_fingerprint([first, second])
    assert text_fingerprint([first]) != text_fingerprint([write(tmp_path / "unix.txt", "one\n")])
    # The same bytes in other files are other documents.
    assert text_fingerprint([write(tmp_path / "c", "on"), write(tmp_path / "d", "e\r\ntwo\n")]) != text_fingerprint(
        [first, second]
    )


def test_the_cache_folder_is_made_where_it_is_wanted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cache.exists()
    assert cache_dir() == cache
    assert cache.is_dir()
    monkeypatch.setenv("CACHE_DIR", str(write(cache / "file", "")))
    with pytest.raises(UserError, match=r"no cache in .*file: File exists. Set CACHE_DIR"):
        cache_dir()
