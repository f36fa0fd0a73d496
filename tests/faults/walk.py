"""A random walk over the commands of one shell: is anything lost, does an answer differ, can all printed be typed?

`python tests/faults/walk.py [SEED [STEPS]]`, 40 steps of seed 0 by default; about 6 minutes.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil

from results.confirmation.attempt import load_attempts, to_json
from results.study.folder import LATEST, RESUMED_KINDS, Study, open_study
from results.study.lock import hold
from results.winner import headline, winner_of
from results.winner import to_json as winner_json
from search.__main__ import MAKE_NAMES
from search.cluster.study_storage import model_checkpoint
from search.terminal.console import COMMAND
from search.terminal.signals import ending_in_order
from tests.faults.common import asked, report, strays
from tests.fuzz.commands import run
from tests.journeys.conftest import SPACE, WILD_SPACE, Said, Shell, Typed, shell_environment, study_agrees
from tests.narrow import narrow_model
from tests.patience import left_behind, wait_until
from tests.running import ROOT
from trainable.errors import UserError
from trainable.rows import ENDINGS

SPACES = (SPACE, WILD_SPACE, SPACE.replace('name = "none"', 'name = "asha"'))
OWN = "TRAINING_STEPS=20 BATCH_SIZE=2 BLOCK_SIZE=32 EVAL_INTERVAL=10 EVAL_TOKENS=512"
STUDY = "STUDY={search}|" * 12 + "STUDY=latest||STUDY={studies}/{search}"
FORMS = {
    "search": "SPACE={space} + STUDY={new}|STUDY={new}| + TRIALS=2|TRIALS=3 + BUDGET_TOKENS=2048|BUDGET_TOKENS=12k + "
    "||BASELINE={search}|BASELINE={mine}|WARM_START={search} + ||CONFIRM=1|CONCURRENCY=2|SEED=7",
    "baseline": "SPACE={space} + STUDY={new} + BUDGET_TOKENS=2048|BUDGET_TOKENS=20k COMPARE=before",
    "resume": f"{STUDY} + ||TRIALS=+1|TRIALS=+2|BUDGET_TOKENS=4096|BUDGET_TOKENS=16_384|SPACE={{way}}|CONFIRM=1",
    "confirm": f"{STUDY} + ||TOP=2|SEEDS=5|SEEDS=2|CONCURRENCY=2",
    "attribute": f"{STUDY}|FROM=before TO=documented SEEDS=1 BUDGET_TOKENS=2048 + ||SEEDS=1|BUDGET_TOKENS=1024",
    "train": f"STUDY={{search}}|STUDY={{search}}|STUDY=latest|STUDY={{new}} {OWN} + "
    "||STEPS=40|BUDGET_TOKENS=4096|SAVE_MODEL={place}/{new}|ENABLE_CHECKPOINTS=False|LEARNING_RATE=50",
    "export": f"{STUDY}|STUDY={{any}}",
    "model": "STUDY={search}|STUDY={any}| + |OUT={place}/model|OUT={place}/{new}",
    "report": "STUDY={search}|STUDY={any}|",
    "diagnose": "TARGET={any}|TARGET={any}/0|TARGET={any}/2|TARGET=latest",
    "compare": "STUDY={any},{search}",
    "list": "",
}
"""The words that follow a command: of those between two + one."""
MOVES = ["printed"] * 13 + ["search", "resume"] * 4 + ["confirm", "train"] * 3 + ["export", "files"] * 2 + list(FORMS)
SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
UNSET = re.compile(r"; (unset [A-Z0-9_ ]+)$")


@dataclass(kw_only=True)
class Seen:
    """A study as it was after the last line, its ended rows by trial_id, and whether its report is of its tables."""

    tables: bytes = b""
    ended: dict[int, str] = field(default_factory=dict)
    attempts: list[Any] = field(default_factory=list)
    is_settled: bool = True


class Walk:
    """One shell, its studies, and what was seen of them so far."""

    def __init__(self, seed: int, place: Path) -> None:
        self.draw, self.place = random.Random(seed), place
        self.studies, self.cache = place / "studies", place / "cache"
        self.space, self.away, self.mine = place / "small.toml", place / "away.toml", place / "mine.env"
        self.space.write_text(self.draw.choice(SPACES))
        self.mine.write_text("export BATCH_SIZE=2\nBLOCK_SIZE=32\nLEARNING_RATE=1e-4\nUSE_LR_WARMUP=False\n")
        environment = shell_environment(self.studies, self.cache, narrow_model(place)) | {"TOP": "1", "SEEDS": "2"}
        environment["SKIP_PREFLIGHT"] = self.draw.choice(("1", "1", ""))
        self.folders = self.draw.choice(("", "", f"STUDIES_DIR={self.studies} CACHE_DIR={self.cache}"))
        environment |= {"STUDIES_DIR": "", "CACHE_DIR": ""} if self.folders else {}
        self.shell, self.make = Shell(place, environment), self.draw.choice(("make", f"make -C {ROOT}"))
        self.shell(f"cd {place if '-C' in self.make else ROOT}")
        self.next: list[str] = []
        self.seen: dict[str, Seen] = {}
        self.made: list[str] = []
        self.was_killed, self.numbers, self.wrong = False, count(1), list[str]()
        os.environ.update(STUDIES_DIR=str(self.studies), CACHE_DIR=str(self.cache))

    def names(self, *kinds: str) -> list[str]:
        """Return the studies, or those of the kinds."""
        found = [Study(path) for path in sorted(self.studies.glob("*")) if (path / "study.json").is_file()]
        return [one.name for one in found if not kinds or one.document()["kind"] in kinds]

    def line(self, command: str) -> str:
        """Return a command of make with words as its form has them."""
        known = {
            "search": self.draw.choice(self.names(*RESUMED_KINDS) or ["nobody"]),
            "new": f"{command}{next(self.numbers)}",
        }
        known["any"] = self.draw.choice(self.names() or ["nobody"])
        known["way"] = os.path.relpath(self.space, ROOT)  # make -C reads it from there too
        words = [
            self.draw.choice(slot.split("|")).format_map(vars(self) | known) for slot in FORMS[command].split(" + ")
        ]
        return " ".join(filter(None, (f"{self.make} {command}", *words, self.folders)))

    def export(self) -> str:
        """Return a line that does with an export what it is for."""
        shown, to = self.line("export").replace("make", "make -s", 1), f"{self.place}/exported.toml"
        ways = (
            f'(settings="$({shown})" && eval "$settings" && {self.make} train {self.folders})',
            f"{shown} FORMAT=toml > {to} && {self.line('search').replace(str(self.space), to)}",
            f'trained="$({shown} FORMAT=cli)" && eval "$trained"',
            f"{shown} FORMAT=json",
            f'settings="$({shown})" && eval "$settings"',
        )
        return self.draw.choice(ways)

    def printed(self) -> str | None:
        # None with minutes of work, and no file into the checkout.
        lines = [line for line in self.next if not re.search(r"(SEEDS|TRIALS)=\+?(9|\d\d)|search BASELINE=", line)]
        lines = [line for line in lines if ">" not in line or "-C" in self.make]
        return self.draw.choice(lines) if lines else None

    def files(self) -> None:
        """Copy or rename a study, move them all or the space file, or delete the cache."""
        old, what = self.draw.choice(self.names()), self.draw.choice(("copy", "rename", "move", "cache", "space"))
        print(f"  ({what} of {old})", flush=True)
        if what == "cache":
            shutil.rmtree(self.cache, ignore_errors=True)
        elif what == "space" and not self.away.exists():
            self.space.rename(self.away)
        elif what == "move" and not self.folders:
            self.studies = self.studies.rename(self.place / f"studies{next(self.numbers)}")
            self.shell(f"export STUDIES_DIR={self.studies}")
            os.environ["STUDIES_DIR"] = str(self.studies)
        elif what in ("copy", "rename"):
            new = f"{what}{next(self.numbers)}"
            shutil.copytree(self.studies / old, self.studies / new)
            self.seen[new] = replace(self.seen[old], is_settled=False)  # its report has the other name
            if what == "rename":
                shutil.rmtree(self.studies / old)
                del self.seen[old]  # a name that a later study may get
                self.made, self.next = [new if one == old else one for one in self.made], []
        self.check(what, Said(0, "", ""), code=0)

    def step(self) -> None:
        """Do one thing and check that all is right."""
        move = self.draw.choice(MOVES) if self.names() else "search"
        if self.away.exists() and move in ("search", "baseline", "export"):
            self.away.rename(self.space)
        line = getattr(self, move)() if move in ("printed", "export", "files") else self.line(move)
        if line is None:
            return
        if move == "printed":
            self.next.remove(line)
            line = f"TRIALS=2 BUDGET_TOKENS=16k {line}" if " search " in line else line
        elif self.draw.random() < 0.2 and re.match(r"make (search|resume|confirm|baseline|train|list) ", line):
            _, name, words = line.split(maxsplit=2)
            line = f"{sys.executable} -m search {MAKE_NAMES.get(name, name)} {words} --json"
        self.do(line, is_printed=move == "printed")

    def do(self, line: str, *, is_printed: bool) -> None:
        """Type the line, interrupt it or not, and check."""
        typed = self.shell.type(line)
        struck = self.strike(typed) if self.draw.random() < 0.35 else None
        said = typed.said()
        code, name, is_killed = said.own_code, struck.name if struck else "", struck == signal.SIGKILL
        what = f"{typed.path.name} {line} {name}".replace(f"{self.place}/", "")
        self.was_killed |= is_killed
        self.wrong += [f"{what}: left behind {one}" for one in left_behind(self.shell.family)]
        refusal = next((one for one in said.stderr.splitlines() if one.startswith("error: ")), "")
        print(f"{what}: {code} {refusal}", flush=True)
        self.wrong += [f"{what}: {one}" for one in form_faults(said, struck)]
        if (unset := UNSET.search(refusal)) is not None:
            self.shell(unset[1])
            return self.do(line, is_printed=is_printed)
        self.wrong += [f"{what}: was printed and is refused: {refusal}"] if is_printed and code == 2 else []
        # Lines printed before stay on the screen.
        self.next = said.next_lines or [found[0] for found in COMMAND.finditer(refusal)] or self.next
        return self.check(what, said, code=code)

    def strike(self, typed: Typed) -> signal.Signals | None:
        """Ask the latest study something after some progress, and send a signal; None where the line has ended."""
        number, of, more = self.draw.choice(SIGNALS), self.draw.randrange(3), self.draw.randint(1, 4)
        delay_s, before = self.draw.uniform(0.0, 1.0), self.progress(of)
        wait_until(lambda: typed.has_ended() or self.progress(of) >= before + more, self.shell.family, poll_s=0.1)
        time.sleep(delay_s)
        with suppress(UserError):  # nothing has completed yet
            run(self.draw.choice(("list", "export", "report", "diagnose")))
        try:
            typed.interrupt(number)
        except (ValueError, psutil.Error):  # no command runs
            return None
        return number

    def progress(self, of: int) -> int:
        """Return a number that grows: of seconds, runs of every purpose or evaluations."""
        if of == 0:
            return int(time.monotonic())
        studies = [Study(self.studies / name) for name in self.names()]
        return sum(len(study.trials() if of == 1 else study.metrics()) for study in studies)

    def check(self, what: str, said: Said, *, code: int) -> None:
        """Note what is wrong with the studies after a line."""
        listed = {one["study"]: one for one in json.loads(run("list", "--json"))["studies"]}
        compared = [{"study": name} for name in listed]
        if len(compared) > 1:
            compared = json.loads(run("compare", f"STUDY={','.join(listed)}", "--json"))["studies"]
        for one in compared:
            study = Study(self.studies / one["study"])
            name, kind = study.name, study.document()["kind"]
            if name not in self.seen and kind in RESUMED_KINDS:
                self.made.append(name)
            seen, paths = self.seen.setdefault(name, Seen()), (study.trials_path, study.path / "confirmation.json")
            tables = b"".join(path.read_bytes() for path in paths if path.exists())
            has_changed, seen.tables = seen.tables != tables, tables
            if has_changed:
                seen.is_settled = code in (0, 1, 130, 143)
            try:
                self.check_kept(study)
                best = winner_of(study)
                assert one.get("winner", winner_json(best)) == winner_json(best), one
                assert (listed[name]["best"] or {}).get("trial_id") == (best.trial and best.trial["trial_id"]), listed
                assert listed[name]["proven"] == (best.standing == "proven"), listed
                if kind in RESUMED_KINDS and has_changed:
                    self.check_answer(study, said if code == 0 else None)
            except Exception as error:
                self.wrong.append(f"{what}: study {name}: {type(error).__name__}: {' '.join(f'{error}'.split())[:600]}")
        latest = open_study(LATEST).name if self.made else ""
        self.wrong += [f"{what}: latest is {latest}, not {name}" for name in self.made[-1:] if name != latest]
        self.wrong += [f"{what}: stray {one}" for one in strays(self.studies) if not self.was_killed]

    def check_kept(self, study: Study) -> None:
        """Raise AssertionError where an ended run or an attempt at a proof is gone or another, or the lock is held."""
        seen, rows, attempts = self.seen[study.name], study.trials(), to_json(load_attempts(study))["attempts"]
        for trial_id, known in seen.ended.items():
            assert [repr(row) for row in rows if row["trial_id"] == trial_id] == [known], f"row {trial_id} was {known}"
        for one, now in zip(seen.attempts, [*attempts, *[{}] * len(seen.attempts)], strict=False):
            assert now == (one if one["verdicts"] else {**one, "verdicts": now.get("verdicts")}), f"{one} is now {now}"
        seen.ended = {row["trial_id"]: repr(row) for row in rows if row["status"] in ENDINGS}
        seen.attempts = attempts
        with hold(study):
            pass

    def check_answer(self, study: Study, said: Said | None) -> None:
        """Raise AssertionError where two answers differ; said: of the line that changed the study, to its end."""
        winner, rows, document = winner_of(study), study.trials(), study.document()
        assert {row["purpose"] for row in rows} <= {document["kind"], "confirmation", "attribution"}
        if said is not None:
            ended = sum(row["purpose"] == document["kind"] and row["status"] in ENDINGS for row in rows)
            is_over = ended == document["trials_planned"] or f"resume STUDY={study.name}" in said.output
            assert is_over, f"{ended} of {document['trials_planned']} trials have ended"
            told = said.document.get("winner") if said.stdout.startswith("{") else headline(winner) in said.output
            assert told in (True, winner_json(winner)) or "which of" in said.output, f"not said: {headline(winner)}"
        if winner.trial is None:
            return
        if self.seen[study.name].is_settled:
            study_agrees(study)
        if said is not None:
            model_checkpoint(study, None, winner.trial)


def form_faults(said: Said, struck: signal.Signals | None) -> list[str]:
    """Return what is wrong with how a line ended."""
    code, faults = said.own_code, ["a traceback"] if "Traceback" in said.output else []
    if code not in {0, 1, 2, *((128 + struck, -struck) if struck else ())}:
        faults.append(f"exit code {code}")
    own = [line for line in said.stderr.splitlines() if not line.startswith(("make", "note: "))]
    if code == 2 and (len(own) != 1 or not own[0].startswith("error: ")):
        faults.append(f"{len(own)} lines on stderr: {own[:5]}")
    return faults


def main() -> None:
    """Walk, and print what goes wrong on the way."""
    seed, steps = asked(__doc__, seed=0, steps=40)
    walk = Walk(seed, Path(mkdtemp(prefix=f"walk-{seed}-")))
    print(f"walk {seed} in {walk.place}", flush=True)
    with ending_in_order(), closing(walk.shell):
        for _ in range(steps):
            told = len(walk.wrong)
            walk.step()
            print("".join(f"  WRONG {line}\n" for line in walk.wrong[told:]), end="", flush=True)
    report(f"walk {seed}", tried=steps, lost=walk.wrong)
    shutil.rmtree(walk.place)


if __name__ == "__main__":
    main()
