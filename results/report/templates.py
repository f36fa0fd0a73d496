"""The templates of the report's page and Markdown, with the filters that turn facts into words."""

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from results import words

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return the template with its values; in .html ones they are escaped unless they are Markup."""
    return str(_environment().get_template(template).render(statuses=words.STATUS_LABELS, **values))


@cache
def _environment() -> Any:
    """Return the one environment of the process, which compiles a template once: that takes most of a second."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=lambda name: str(name).endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def plain(text: Any) -> str:
    """Return `text` on one line, with the markup of Markdown and HTML escaped."""
    line = re.sub(r"([\\`*_{}\[\]#!|~$@])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
    # A start that would begin a list.
    return re.sub(r"^(?=([-+]|\d+[.)])\s)", "&#8203;", line)


def fenced(text: str) -> str:
    """Return `text` as a Markdown code block whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


_FILTERS = {
    "count": words.count_words,
    # A typographic minus is as wide as a plus, so that a column of differences lines up.
    "difference": lambda difference: words.difference_words(difference).replace("-", "−"),
    "duration": words.duration_words,
    "fenced": fenced,
    "interval": lambda of: words.interval_words(of["low"], of["high"]).replace("-", "−"),
    "label": words.label,
    "local_time": words.local_time_words,
    "loss": words.loss_words,
    "percent": words.percent_words,
    "plain": plain,
    "printable": words.printable,
    "signed": words.difference_words,
    "speed": lambda tokens_per_s: words.value_words(None if tokens_per_s is None else round(tokens_per_s)),
    "tokens": words.token_words,
    "trial_loss": words.trial_loss_words,
    "value": words.value_words,
}
