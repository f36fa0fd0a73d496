"""What importing costs, and that every module imports alone, in processes of their own."""

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

WITHOUT_PEFT = """
import sys
import trainable.preflight, trainable.ray_trainable
assert "peft" not in sys.modules
from trainable.preflight import PreflightCallback
assert "peft" in sys.modules
"""

EACH_ALONE = """
import importlib, sys, traceback
failed = []
for name in sys.argv[2:]:
    for loaded in [module for module in sys.modules if module.partition(".")[0] in sys.argv[1].split(",")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(name + "\\n" + traceback.format_exc())
sys.exit("\\n".join(failed) or 0)
"""


def errors_of(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    return result.stderr if result.returncode else ""


def test_a_light_module_loads_no_heavy_library() -> None:
    assert errors_of(LOADED, *LIGHT) == ""
    assert "tokenizers loads" in errors_of(LOADED, "tokenizers")


def test_peft_is_imported_for_lora_and_for_anothers_trainer_alone() -> None:
    assert errors_of(WITHOUT_PEFT) == ""


def test_every_module_imports_alone() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert len(names) > 50
    # The libraries stay loaded from one to the next; the project's own modules do not.
    assert errors_of(EACH_ALONE, ",".join(PACKAGES), *sorted(names)) == ""


WITHOUT_RAY = """
import importlib, sys
sys.modules["ray"] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_training_and_the_device_check_need_no_ray() -> None:
    paths = [path for path in (ROOT / "trainable").rglob("*.py") if path.stem != "ray_trainable"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert errors_of(WITHOUT_RAY, *names, "tests.device.check") == ""
    assert "ray" in errors_of(WITHOUT_RAY, "trainable.ray_trainable")
