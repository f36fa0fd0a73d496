"""Files at a place that several machines reach: a folder, or a URI that pyarrow knows. It knows no study and no run."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from trainable.errors import UserError, as_user_error
from trainable.regular_files import whole_file

BLOCK_BYTES = 8 << 20


def local_folder(place: str) -> Path | None:
    """Return the folder on this machine's disks that a folder or a file:// URI names; None for any other URI."""
    if "://" not in place:
        return Path(place)
    url = urlsplit(place)
    return Path(unquote(url.path)) if url.scheme == "file" else None


def files_at(place: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a folder or URI, and the path in it.

    Raises UserError for a URI that pyarrow does not know, or one whose server does not answer.
    """
    import pyarrow as pa
    from pyarrow import fs

    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
    refused = (pa.ArrowException, OSError, ValueError)
    with as_user_error(refused, f"STORAGE={place}", "Name a shared folder, or s3://..."):
        files, path = fs.FileSystem.from_uri(place)
    if not path:
        raise UserError(f"STORAGE={place} names no bucket. Write it as s3://bucket/prefix.")
    return files, path.rstrip("/")


def below(place: str, *parts: str) -> str:
    """Return the folder or URI of something at the place; in a URI its names are quoted, and a query stays last."""
    is_uri = "://" in place
    address, mark, query = place.partition("?") if is_uri else (place, "", "")
    return "/".join((address.rstrip("/"), *(quote(part) if is_uri else part for part in parts))) + mark + query


def names_in(files: Any, folder: str) -> list[str]:
    """Return the names of what a folder holds, none where there is no such folder. Raises OSError."""
    from pyarrow.fs import FileSelector

    return [one.base_name for one in files.get_file_info(FileSelector(folder, allow_not_found=True))]


def write_whole(files: Any, path: str, blocks: Iterable[bytes]) -> None:
    """Write a file that is seen whole or, on a folder, not at all. Raises OSError.

    An object store shows a file when it is closed, so there a broken one lacks its last blocks.
    """
    from pyarrow import fs

    files.create_dir(path.rpartition("/")[0], recursive=True)
    is_local = isinstance(files, fs.LocalFileSystem)
    with whole_file(Path(path)) if is_local else files.open_output_stream(path) as stream:
        for block in blocks:
            stream.write(block)


def blocks_of(files: Any, path: str) -> Iterator[bytes]:
    """Yield a file's bytes, a block at a time. Raises OSError."""
    with files.open_input_stream(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
