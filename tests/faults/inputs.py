"""Inputs changed, deleted or made twice while a search runs: is it told in one line, and does no trial fail for it?

`python tests/faults/inputs.py`; about 3 minutes. `make test` runs the first case.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.common import SPACE, Place
from trainable.model.model_names import SHIPPED

Change = Callable[[Path, Path], None]
"""Changes the cache or the model's folder."""


def other_weights(cache: Path, model: Path) -> None:
    """Put other weights of the same size in the place of the model's."""
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1000:] = bytes(1000)
    (model / ".new").write_bytes(data)
    (model / ".new").replace(model / "model.safetensors")


def no_model(cache: Path, model: Path) -> None:
    """Delete the model's folder."""
    shutil.rmtree(model)


def no_cache(cache: Path, model: Path) -> None:
    """Do what make clean does."""
    shutil.rmtree(cache)


def other_tokens(cache: Path, model: Path) -> None:
    """Put other tokens of the same size in the place of the text's."""
    [path] = cache.glob("tokens-*.npy")
    data = path.read_bytes()
    (cache / "new").write_bytes(data[:-1000] + bytes(1000))
    (cache / "new").replace(path)


CASES: dict[Change, str] = {
    no_cache: "error: the input is gone: ",
    other_weights: "error: the input has changed since it was first read: ",
    no_model: "error: the input is gone: ",
    other_tokens: "error: the input has changed since it was first read: ",
}


def wrong(place: Place, change: Change) -> list[str]:
    """Return what is wrong with how a search ended whose input was changed after its first evaluation."""
    name = change.__name__
    model, cache = place.path / f"model-{name}", place.path / f"cache-{name}"
    shutil.copytree(SHIPPED["tiny"], model)
    running, study = place.start("run", name, GPT2_MODEL_NAME=model, CACHE_DIR=cache), place.study(name)
    running.wait_for(lambda: study.metrics_path.exists() and bool(study.metrics()))
    change(cache, model)
    ran = running.ended()
    code, output = ran.code, ran.output
    statuses = {row["status"] for row in study.trials()}
    lines = [line for line in output.splitlines() if line.startswith(CASES[change])]
    print(f"{name}: exit code {code}: {lines}; {sorted(statuses)}", flush=True)
    found = []
    if code != 2 or len(lines) != 1 or "make resume STUDY=" not in lines[0] or "Traceback" in output:
        found.append(f"{name}: exit code {code}: {output[-800:]}")
    if "interrupted" not in statuses or "failed" in statuses:
        found.append(f"{name}: {sorted(statuses)}")
    return found


def main() -> None:
    """Try every case."""
    place = Place(space=SPACE)
    lost = [line for change in CASES for line in wrong(place, change)]
    print(f"inputs: tried {len(CASES)}, right {len(CASES) - len(lost)}, wrong {len(lost)}")
    for line in lost:
        print(f"  {line}")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
