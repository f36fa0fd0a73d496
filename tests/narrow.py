"""A pretrained model a twelfth of the shipped one's size, for searches whose losses are not what is tested."""

import shutil
from pathlib import Path

from trainable.model.model_names import SHIPPED

NARROW = Path(__file__).parent / "data" / "narrow"
"""Config and weights, by `python -m tests.data.make_narrow`; the tokenizer is the shipped model's."""


def narrow_model(folder: Path) -> Path:
    """Return a model folder below `folder`, as save_pretrained leaves it."""
    made = shutil.copytree(NARROW, folder / "narrow")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED["tiny"] / name, made)
    return made
