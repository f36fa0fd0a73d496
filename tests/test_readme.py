"""The README's tables are what the program says of itself."""

from pathlib import Path

from search.__main__ import COMMANDS
from search.options import describe_variables

ROOT = Path(__file__).parents[1]


def test_every_variable_stands_in_the_readme_with_its_meaning() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name, meaning in describe_variables() if f"| `{name}` | {meaning} |" not in readme] == []


def test_every_command_stands_in_the_readme_and_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, (_, meaning) in COMMANDS.items():
        assert f"$(RUN) {name}" in makefile
        assert name == "variables" or f"| `{name}` | {meaning} |" in readme
