"""`make search` where it was never tried: odd paths, full and missing folders, few files, another user, closed pipes.

`python tests/faults/starting.py [NAME ...]`; a minute or so each. Needs root for a small disk and another user.
"""

import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from search.terminal.signals import ending_in_order
from search.tune.local_ray import PREFIX, folders_to_try
from tests.faults.common import Place, report
from tests.faults.storage import fill, small_disk
from tests.running import ROOT
from trainable.rows import ENDINGS

TRIALS = 2
WORDS = ("SPACE=smoke", f"TRIALS={TRIALS}", "BUDGET_TOKENS=8k", "CONCURRENCY=1")
PATIENCE_S = 600.0
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
NOBODY = 12345
"""A user without a name and without a home."""


class Machine:
    """A checkout at a path of its own, and what is searched from it."""

    def __init__(self, place: Place, name: str = "mein Prüfstand (neu)") -> None:
        self.place = place
        self.checkout = place.path / name
        self.checkout.mkdir()
        place.path.chmod(0o755)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for file in filter(None, listed.split("\0")):
            (self.checkout / file).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / file).exists():
                shutil.copy2(ROOT / file, self.checkout / file)
        venv = self.checkout / ".venv"
        (venv / "bin").mkdir(parents=True)
        own = Path(sys.prefix)
        (venv / "bin" / "python").symlink_to((own / "bin" / "python").resolve())
        shutil.copy2(own / "pyvenv.cfg", venv)
        (venv / "lib").symlink_to(own / "lib")
        (venv / ".installed").touch()

    def environment(self, name: str, **variables: str) -> dict[str, str]:
        """Return the environment of a search called `name`."""
        own = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        folders = {"STUDIES_DIR": str(self.place.studies), "CACHE_DIR": str(self.place.path / "cache")}
        return {**own, **folders, "STUDY": name, "COLUMNS": "100", **variables}

    def search(self, name: str, *, shell: str = "{}", without: str = "", **variables: str) -> list[str]:
        """Run it to its end, inside a line of shell; return what is wrong with it."""
        line = shell.format(shlex.join(["make", "-s", "search", *WORDS]))
        environment = self.environment(name, **variables)
        environment.pop(without, None)
        began = time.monotonic()
        try:
            ran = subprocess.run(
                ["bash", "-c", line],
                cwd=self.checkout,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return [f"{name}: did not end: {error.stdout!r}"]
        print(f"{name}: exit code {ran.returncode}, {time.monotonic() - began:.0f} s", flush=True)
        wrong = (
            [] if ran.returncode == 0 else [f"{name}: exit code {ran.returncode}: {(ran.stdout + ran.stderr)[-1500:]}"]
        )
        if "Traceback" in ran.stderr:
            wrong.append(f"{name}: {ran.stderr[-1500:]}")
        return wrong + self.wrong(name)

    def wrong(self, name: str) -> list[str]:
        """Return what is wrong with a study that has run to its end."""
        study = self.place.study(name)
        if not study.study_json.exists():
            return [f"{name}: there is no study"]
        ended = [row["status"] for row in study.trials()]
        wrong = [f"{name}: trials {ended}"] if len(ended) != TRIALS or not set(ended) <= set(ENDINGS) else []
        told = study.log_path.read_text()
        wrong += [f"{name}: search.log has not {row}" for row in ("starting Ray", "completed") if row not in told]
        wrong += [
            f"{name}: no {path.name}" for path in (study.best_env, study.path / "report.html") if not path.exists()
        ]
        return wrong + [f"{name}: left behind {path}" for path in left_behind()]


def left_behind() -> list[Path]:
    """Return Ray's folders that nobody holds any more."""
    bases = {Path(base) for base in folders_to_try(os.environ)}
    return [path for base in bases for path in base.glob(f"{PREFIX}*") if not (path / ".lock").exists()]


def odd_path(machine: Machine) -> list[str]:
    """A space, an umlaut and brackets in the path of checkout and environment."""
    return machine.search("odd_path")


def long_temporary(machine: Machine) -> list[str]:
    """A TMPDIR of 90 characters: sockets in it would have too long a path."""
    folder = Path("/tmp", "t" * 85)
    folder.mkdir(exist_ok=True)
    try:
        return machine.search("long_temporary", TMPDIR=str(folder))
    finally:
        shutil.rmtree(folder)


def no_temporary(machine: Machine) -> list[str]:
    """A TMPDIR that is full or, without root, not there."""
    if os.geteuid() != 0:
        return machine.search("no_temporary", TMPDIR="/nowhere")
    with small_disk(Path("/tmp/full-disk"), 1) as folder:
        fill(folder)
        wrong = machine.search("no_temporary", TMPDIR=str(folder))
    folder.rmdir()
    return wrong


def read_only_temporary(machine: Machine) -> list[str]:
    """A TMPDIR that cannot be written."""
    if os.geteuid() != 0:
        return []
    with small_disk(Path("/tmp/read-only-disk"), 100) as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        wrong = machine.search("read_only_temporary", TMPDIR=str(folder))
    folder.rmdir()
    return wrong


def cpu_share(machine: Machine) -> list[str]:
    """A container that may take one core's time, and runs on all of them."""
    if os.geteuid() != 0 or not (CPU_GROUPS / "cpu.cfs_quota_us").exists():
        return []
    with _one_core() as group:
        wrong = machine.search("cpu_share", shell=f"echo $$ > {group}/cgroup.procs; {{}} CONCURRENCY=")
    slots = machine.place.study("cpu_share").document()["device"]["slots"]
    return wrong if slots == 1 else [*wrong, f"cpu_share: {slots} slots"]


@contextmanager
def _one_core() -> Iterator[Path]:
    """Have a control group; a search that still runs in it when this ends, as after Ctrl-C, goes on outside of it."""
    group = CPU_GROUPS / "gpt2-search-test"
    group.mkdir(exist_ok=True)
    try:
        for name in ("period", "quota"):
            (group / f"cpu.cfs_{name}_us").write_text("100000")
        yield group
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):  # has ended meanwhile
                (CPU_GROUPS / "cgroup.procs").write_text(process)
        group.rmdir()


def no_streams(machine: Machine) -> list[str]:
    """Neither input nor output nor a place for errors, as some schedulers start their jobs."""
    return machine.search("no_streams", shell="{} <&- >&- 2>&-")


def proxy(machine: Machine) -> list[str]:
    """Proxies that are not there."""
    dead = "http://127.0.0.1:9"
    return machine.search("proxy", http_proxy=dead, https_proxy=dead, HTTP_PROXY=dead, grpc_proxy=dead)


def no_home(machine: Machine) -> list[str]:
    """HOME missing."""
    return machine.search("no_home", without="HOME")


def few_files(machine: Machine) -> list[str]:
    """256 open files at most."""
    return machine.search("few_files", shell="ulimit -n 256; {}")


def little_address_space(machine: Machine) -> list[str]:
    """4 GB of address space, as a login node may allow."""
    return machine.search("little_address_space", shell="ulimit -v 4000000; {}")


def container(machine: Machine) -> list[str]:
    """Docker without --init: a first process that waits for its own child alone, and 64 MiB of shared memory."""
    if os.geteuid() != 0:
        return []
    first = f"{sys.executable} -c 'import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))'"
    inside = "'mount -t tmpfs -o size=64m tmpfs /dev/shm; {}'"
    return machine.search("container", shell=f"unshare --pid --fork --mount-proc {first} bash -c {inside}")


def another_user(machine: Machine) -> list[str]:
    """A user without a name, a home, or a right to write into the checkout."""
    if os.geteuid() != 0:
        return []
    theirs = machine.place.path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    before, machine.place.studies = machine.place.studies, theirs / "studies"
    # Reads what root reads, for Python itself may lie in root's home; writes nothing but its own. make asks before it
    # starts a program whether it may, and such rights do not count in the answer: a shell just starts it.
    reads = "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
    shell = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups {reads} {{}} SHELL=/bin/bash"
    try:
        return machine.search("another_user", shell=shell, without="HOME", CACHE_DIR=str(theirs / "cache"))
    finally:
        machine.place.studies = before


def head(machine: Machine) -> list[str]:
    """A reader that has had enough after three lines."""
    return machine.search("head", shell="{} | head -3; exit ${{PIPESTATUS[0]}}")


def full_output(machine: Machine) -> list[str]:
    """A full disk under the output."""
    return machine.search("full_output", shell="{} > /dev/full 2>&1")


def closed_terminal(machine: Machine) -> list[str]:
    """A terminal that goes away under nohup, and one under a process that hears it."""
    wrong = []
    for name, handler, code in (("nohup", signal.SIG_IGN, 0), ("hangup", signal.SIG_DFL, 129)):
        found = _closed_terminal(machine, name, handler)
        if found != code:
            wrong.append(f"{name}: exit code {found} instead of {code}")
        study = machine.place.study(name)
        if code == 0:
            wrong += machine.wrong(name)
        elif not all(row["status"] in ("interrupted", *ENDINGS) for row in study.trials()):
            wrong.append(f"{name}: {[row['status'] for row in study.trials()]}")
    return wrong


def _closed_terminal(machine: Machine, name: str, handler: signal.Handlers) -> int:
    ours, theirs = pty.openpty()
    before = signal.signal(signal.SIGHUP, handler)
    python = machine.checkout / ".venv" / "bin" / "python"
    with subprocess.Popen(
        ["setsid", "--ctty", str(python), "-m", "search", "run", *WORDS],
        cwd=machine.checkout,
        env=machine.environment(name, TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        signal.signal(signal.SIGHUP, before)
        os.close(theirs)
        study = machine.place.study(name)
        while process.poll() is None and not _has_begun(study):
            _read(ours)
        os.close(ours)
        return process.wait(PATIENCE_S)


def _has_begun(study: Study) -> bool:
    return study.trials_path.exists() and bool(study.trials())


def _read(terminal: int) -> None:
    # A terminal that nobody reads holds up who writes to it.
    os.set_blocking(terminal, False)
    try:
        os.read(terminal, 1 << 16)
    except OSError:
        time.sleep(0.05)


@contextmanager
def _checkout() -> Iterator[Machine]:
    place = Place()
    try:
        yield Machine(place)
    finally:
        shutil.rmtree(place.path, ignore_errors=True)


CASES: Mapping[str, Callable[[Machine], list[str]]] = {
    case.__name__: case
    for case in (
        odd_path,
        long_temporary,
        no_temporary,
        read_only_temporary,
        cpu_share,
        no_streams,
        proxy,
        no_home,
        few_files,
        little_address_space,
        container,
        another_user,
        head,
        full_output,
        closed_terminal,
    )
}


def main() -> None:
    """Try those that are named, or all."""
    names = sys.argv[1:] or list(CASES)
    wrong: list[str] = []
    with ending_in_order(), _checkout() as machine:
        for name in names:
            if found := CASES[name](machine):
                wrong.append("; ".join(found))
    report("starting", tried=len(names), lost=wrong)


if __name__ == "__main__":
    main()
