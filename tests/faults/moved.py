"""A study moved, renamed, extended, taken further, asked about by two at once, or no longer the same: what happens?

`python tests/faults/moved.py`; about 4 minutes.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from tests.faults.common import SPACE, Place, differences, report
from tests.running import Running
from trainable.data.corpus import language_reference

TRIALS = 6


def refused(running: Running, what: str, *words: str) -> list[str]:
    """Return what is wrong with how the command was refused: exit code 2 and one line with the words."""
    code = running.ended().code
    told = [line for line in running.output.splitlines() if line.startswith("error: ")]
    if code != 2 or len(told) != 1 or not all(word in told[0] for word in words) or "Traceback" in running.output:
        return [f"{what}: exit code {code}: {running.output[-600:]}"]
    print(f"{what}: {told[0]}", flush=True)
    return []


def interrupted(place: Place, name: str) -> tuple[Study, Running]:
    """Return a study that runs, in the middle of its trial 4, a completed one."""
    running, study = place.start("run", name, TRAINING_DATA_SOURCE=place.path / "text.txt"), place.study(name)
    running.wait_for(lambda: any(study.path.glob("checkpoints/4/step_*.pt")))
    return study, running


def changed(place: Place, name: str) -> list[str]:
    """Go on with a study of which something has changed since."""
    text, space = place.path / "text.txt", place.space.read_text()
    lost = refused(place.start("resume", name, BATCH_SIZE=8), "a pin", "BATCH_SIZE is 8, was searched or not set")
    lost += refused(
        place.start("resume", name, GPT2_MODEL_NAME="gpt2-scratch"), "another model", "then tiny", "now gpt2-scratch"
    )
    whole = text.read_text()
    text.write_text(whole.replace("the", "teh", 200))
    lost += refused(place.start("resume", name), "a changed text", "the text or the tokenizer has changed since")
    text.unlink()
    lost += refused(place.start("resume", name), "a text that is gone", "text.txt")
    text.write_text(whole)
    place.space.write_text(space.replace("1.0]", "0.5]"))
    lost += refused(
        place.start("resume", name), "a changed space", "has changed since: search.learning_rate", "FORCE=1"
    )
    return lost


def moved(place: Place, alone: Study) -> list[str]:
    """Kill, move, rename, change the space file, go on by force, and extend."""
    study, running = interrupted(place, "killed")
    other = place.start("resume", "killed")
    lost = refused(other, "held", f"study killed is held by process {running.process.pid} on ")
    running.kill()
    lost += changed(place, "killed")
    elsewhere = place.path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(study.path, elsewhere / "renamed")
    place.studies = elsewhere
    place.start("resume", "renamed", FORCE=1).ended(code=0)
    place.start("resume", "renamed", FORCE=1, TRIALS=TRIALS + 1).ended(code=0)
    lost += refused(place.start("resume", "renamed", FORCE=1, TRIALS=2), "fewer trials", "has 7 trials already")
    place.start("resume", "renamed", FORCE=1, TRIALS=TRIALS + 2).ended(code=0)
    return lost + [f"moved and extended: {one}" for one in differences(alone, place.study("renamed"))]


def learning(place: Place, how: str, running: Running, study: Study, **expected: Any) -> list[str]:
    """Return what is wrong with a study that learns from another."""
    running.ended()
    said = f"learning from study alone: {TRIALS + 2} of its results are told to the searcher"
    if running.process.returncode != 0 or said not in running.output:
        return [f"{how}: exit code {running.process.returncode}: {running.output[-600:]}"]
    best = min((row for row in place.study("alone").trials() if row["status"] == "completed"), key=_loss)
    first = study.trials()[1]
    same = all(first[name] == best[name] for name in ("learning_rate", "batch_size"))
    lost = [] if same else [f"{how}: the best was not run first: {first}"]
    document = study.document()
    return lost + [f"{how}: {name} is {document[name]}" for name, value in expected.items() if document[name] != value]


def _loss(row: dict[str, Any]) -> float:
    return float(row["val_loss"])


def main() -> None:
    """Do it all."""
    place = Place(space=SPACE)
    text = place.path / "text.txt"
    text.write_text(language_reference(), encoding="utf-8")
    place.start("run", "alone", TRIALS=TRIALS + 2, TRAINING_DATA_SOURCE=text).ended(code=0)
    alone = place.study("alone")
    running = place.start("resume", "alone", BUDGET_TOKENS="50k", TRIALS=2)
    lost = learning(place, "a larger budget", running, place.study("alone-50k"), budget_tokens=50_000)
    lost += refused(place.start("resume", "alone", BUDGET_TOKENS="30k"), "a smaller budget", "only with a larger one")
    running = place.start("run", "warm", WARM_START="alone", TRIALS=2, TRAINING_DATA_SOURCE=text)
    lost += learning(place, "a warm start", running, place.study("warm"), budget_tokens=40_000)
    lost += refused(place.start("run", "alone"), "a name that is taken", "study alone exists. Go on with it")
    lost += refused(place.start("resume", "nobody"), "no such study", "no study named 'nobody'")
    lost += moved(place, alone)
    report("moved, extended, changed", tried=14, lost=lost)


if __name__ == "__main__":
    main()
