"""A full disk, one that cannot be written, Ray's own folder taken away, and how much a study takes at any time.

`python tests/faults/storage.py`; about 3 minutes. Needs root, for a small file system of its own to fill.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from tests.faults.common import Place, differences, has_begun, report, strays
from tests.running import Running

MIB = 1 << 20
KEPT_AT_MOST = 4 + 3
"""Checkpoints: the best three's and the baseline's; of the running trial two, and one that is being written."""


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """Mount an empty file system of that size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until nothing more fits."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(os.urandom(MIB))
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 256)
    return ballast


def one_line(running: Running, what: str, words: str) -> list[str]:
    """Return what is wrong with how the command ended: exit code 2, and one line that says why."""
    running.ended()
    errors = [line for line in running.output.splitlines() if line.startswith("error: ")]
    fine = running.process.returncode == 2 and len(errors) == 1 and words in errors[0]
    if not fine or "Traceback" in running.output:
        return [f"{what}: exit code {running.process.returncode}: {running.output[-600:]}"]
    print(f"{what}: {errors[0]}", flush=True)
    return []


def full(place: Place, alone: Study) -> list[str]:
    """Fill the disk before a study, while it trains, and before it is summed up; make room, go on."""
    ballast = fill(place.studies)
    lost = one_line(place.start("run", "full"), "full before a study", "no space left")
    ballast.unlink()
    running = place.start("run", "full")
    study = place.study("full")
    running.wait_for(lambda: has_begun(study, 1) and any(study.path.glob("checkpoints/0/step_*.pt")))
    ballast = fill(place.studies)
    # A checkpoint that is deleted makes room again.
    while not running.ends_within(0.2):
        fill(place.studies)
    lost += one_line(running, "full while training", "no space left")
    lost += [f"full: left behind {one}" for one in running.orphans()]
    fill(place.studies)
    still = place.start("resume", "full")
    if still.ended().code != 1 or "fail    disk for checkpoints" not in still.output:
        lost.append(f"still full: {still.output[-300:]}")
    ballast.unlink()
    place.start("resume", "full").ended(code=0)
    lost += [f"full: {one}" for one in (*differences(alone, study), *strays(place.studies))]
    for path in (study.best_env, study.best_json):
        path.unlink()
    ballast = fill(place.studies)
    lost += one_line(place.start("resume", "full"), "full before the report", "no space left")
    ballast.unlink()
    place.start("resume", "full").ended(code=0)
    return lost + [f"full: {one}" for one in differences(alone, study)]


def no_room_for_checkpoints(place: Place, alone: Study) -> list[str]:
    """On a disk that holds one checkpoint, and not two, the study goes on without and says so."""
    running = place.start("run", "narrow")
    running.ended()
    study = place.study("narrow")
    lost = [f"narrow: {one}" for one in differences(alone, study) if not one.startswith("best.json")]
    if "no checkpoint was saved: No space left on device" not in study.log_path.read_text():
        lost.append("narrow: it does not say that no checkpoint was kept")
    return lost


def read_only(place: Place) -> list[str]:
    """What cannot be written is refused in a line, and can still be read."""
    remount = ["mount", "-o", "remount,ro", str(place.studies)]
    subprocess.run(remount, check=True)
    lost = one_line(place.start("resume", "full", TRIALS=7), "read-only, resumed", "")
    lost += one_line(place.start("run", "new"), "read-only, a new one", "cannot be written to")
    running = place.start("export", "full")
    if running.ended().code != 0:
        lost.append(f"read-only: export: {running.output[-300:]}")
    subprocess.run(["mount", "-o", "remount,rw", str(place.studies)], check=True)
    return lost


def rays_folder_removed(place: Place, alone: Study) -> list[str]:
    """Whatever Ray makes of it, the study is resumed from its own files."""
    temporary = place.path / "r"
    temporary.mkdir()
    running = place.start("run", "rayless", environment={"RAY_TMPDIR": str(temporary)})
    study = place.study("rayless")
    running.wait_for(lambda: has_begun(study, 1) and any(study.path.glob("checkpoints/0/step_*.pt")))
    shutil.rmtree(temporary, ignore_errors=True)
    if not running.ends_within(120):
        running.kill()
    print(f"Ray's folder removed: exit code {running.process.returncode}", flush=True)
    place.start("resume", "rayless").ended(code=0)
    lost = [f"rayless: left behind {one}" for one in running.orphans()]
    return lost + [f"rayless: {one}" for one in differences(alone, study)]


def most_bytes(place: Place) -> tuple[Study, list[str]]:
    """Run a study alone and watch its folder; return it."""
    running, study, most = place.start("run", "alone"), place.study("alone"), 0
    while running.process.poll() is None:
        sizes = []
        for path in study.path.rglob("*"):
            with suppress(OSError):
                sizes.append(path.stat().st_size)
        most = max(most, sum(sizes))
        time.sleep(0.05)
    running.ended(code=0)
    checkpoints = [path.stat().st_size for path in study.path.glob("checkpoints/*/*")]
    rest = sum(path.stat().st_size for path in study.path.rglob("*") if path.is_file()) - sum(checkpoints)
    bound = KEPT_AT_MOST * max(checkpoints) + rest
    print(
        f"at most {most / MIB:.1f} MiB, at the end {len(checkpoints)} checkpoints of {max(checkpoints) / MIB:.1f} MiB"
    )
    # The tables' previous copies and Ray's few files.
    return study, [] if most <= bound + 2 * MIB else [f"{most} bytes at a time; {bound} were to be expected"]


def main() -> None:
    """Do them all."""
    place = Place()
    alone, lost = most_bytes(place)
    lost += rays_folder_removed(place, alone)
    if os.geteuid() == 0:
        with small_disk(place.path / "small", 120) as place.studies:
            lost += full(place, alone)
            lost += read_only(place)
        with small_disk(place.path / "narrow", 26) as place.studies:
            lost += no_room_for_checkpoints(place, alone)
    else:
        print("not root: no disk was filled")
    report("storage", tried=11 if os.geteuid() == 0 else 2, lost=lost)


if __name__ == "__main__":
    main()
