"""What importing costs, and that every module can be imported, in processes of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("search", "trainable", "spaces", "results")
LIGHT = (
    "trainable.config",
    "trainable.rows",
    "trainable.schedule",
    "trainable.data.corpus",
    "trainable.model.model_names",
    "trainable.checkpoint.checkpoint_path",
    "trainable.stability",
    "spaces.read.load",
    "results.study.folder",
    "results.export",
)

LOADED = """
import importlib, sys
heavy = {"torch", "ray", "transformers", "tokenizers", "optuna", "scipy", "pandas", "matplotlib"}
for name in sys.argv[1:]:
    importlib.import_module(name)
    if heavy & set(sys.modules):
        sys.exit(f"{name} loads {sorted(heavy & set(sys.modules))}")
"""

ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

PEFT_THEN_ALL = f"""
import sys
import trainable.preflight, trainable.ray_trainable
assert "peft" not in sys.modules
from trainable.preflight import PreflightCallback
assert "peft" in sys.modules
{ALL}"""


def errors_of(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    return result.stderr if result.returncode else ""


def test_a_light_module_loads_no_heavy_library() -> None:
    assert errors_of(LOADED, *LIGHT) == ""
    assert "tokenizers loads" in errors_of(LOADED, "tokenizers")


def test_every_module_can_be_imported_and_peft_is_for_lora_and_for_anothers_trainer_alone() -> None:
    """In one order and so in any: no two import each other in a circle, which tests/test_import_direction.py holds."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert len(names) > 50
    assert errors_of(PEFT_THEN_ALL, *sorted(names)) == ""


WITHOUT_RAY = f"import sys; sys.modules['ray'] = None\n{ALL}"


def test_training_and_the_device_check_need_no_ray() -> None:
    paths = [path for path in (ROOT / "trainable").rglob("*.py") if path.stem != "ray_trainable"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert errors_of(WITHOUT_RAY, *names, "tests.device.check") == ""
    assert "ray" in errors_of(WITHOUT_RAY, "trainable.ray_trainable")
