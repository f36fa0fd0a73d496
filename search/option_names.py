"""Misspelt names of variables, on make's command line and in the environment."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from search import ROOT
from trainable.config import ENV_NAMES, HYPERPARAMETERS, meant_by, variable_of

MAKE_WORDS = "MAKE_WORDS"
"""In it the Makefile passes make's command line: in MAKEFLAGS make 3.81 does not separate it from options."""
TYPED_NAMES = {
    "MODEL": "GPT2_MODEL_NAME",
    "MODEL_NAME_OR_PATH": "GPT2_MODEL_NAME",
    "DATA": "TRAINING_DATA_SOURCE",
    "TEXT": "TRAINING_DATA_SOURCE",
    "BUDGET": "BUDGET_TOKENS",
    "TOKENS": "BUDGET_TOKENS",
}
"""Our variable by a name in other programs, which an environment may have for anything."""
NOT_MEANT = ("COMPILER",)
"""Other programs' variables that are near to one of ours."""
SHORTEST = 4
"""Shorter names are near to too many."""
NEAR = 0.86
"""Of difflib: a letter more, less or in another place."""
VENV = "VENV"
"""make's own, which a printed next step must repeat."""
_MAKES_OWN = re.compile(rf"MAKE\w*|SHELL|PYTHON|TORCH_INDEX|{VENV}|\.\w+|CURDIR|MFLAGS|ARGS")


def space_hint(word: str) -> str:
    """Return " Did you mean SPACE=word?" where a space is called so, else ""."""
    spaces = {path.stem for path in ROOT.joinpath("spaces").glob("*.toml")}
    return f" Did you mean SPACE={word}?" if word in spaces else ""


def as_variable(name: str) -> str:
    """Return the variable of the hyperparameter that another program calls so, else the name in capitals."""
    return variable_of(meant) if (meant := meant_by(name)) in HYPERPARAMETERS else name.upper()


def make_names(environ: Mapping[str, str]) -> list[str]:
    """Return those of typed_names() that are not make's own."""
    return [name for name in typed_names(environ) if not _MAKES_OWN.fullmatch(name)]


def typed_names(environ: Mapping[str, str]) -> list[str]:
    """Return the variables on the command line of the make that called us; none if another make called that one."""
    return [name for name, _ in _typed(environ)]


def references(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the first $x by the variable in whose text make has put a value of its own, mostly nothing, in its place.

    A $(x) is meant.
    """
    found = {name: re.search(r"(?<!\$)(?:\$\$\$\$)*\$(\$[^$({])", text) for name, text in _typed(environ)}
    return {name: match[1] for name, match in found.items() if match}


def _typed(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    # An outer make passes its variables down, which are not meant for us.
    words = environ.get(MAKE_WORDS, "") if environ.get("MAKELEVEL") == "1" else ""
    # make escapes blanks and backslashes, doubles a $, and leaves quotes as they are.
    for word in re.findall(r"(?:\\.|[^\s\\])+", words):
        name, equals, text = word.partition("=")
        if equals:
            yield name.rstrip(":+?"), text


def nearly(environ: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """Return the likely intended variable by each misspelt name in the environment."""
    names = sorted(known)
    near = {name: _meant(name, names) for name, value in environ.items() if value and name not in names}
    return {name: meant for name, meant in near.items() if meant is not None}


def _meant(name: str, known: list[str]) -> str | None:
    if (own := as_variable(name)) in ENV_NAMES:
        return own
    if len(name) < SHORTEST or name in NOT_MEANT:
        return None
    plain = {_plain(one): one for one in known if one[0] == name[0].upper()}
    near = get_close_matches(_plain(name), plain, n=1, cutoff=NEAR)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return name.upper().replace("_", "").removesuffix("S") or name
