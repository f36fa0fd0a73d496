"""The report of a study: report.html, which opens offline, and report.md for a pull request. It computes no facts.

Both are templates; the filters in them turn facts into words.
"""

import base64
import hashlib
import html
import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

from results import words
from results.report.facts.study_facts import report_facts
from results.report.figures.all_figures import default_view, report_figures, views
from results.report.figures.traces import trial_traces
from results.study.atomic import write_atomic
from results.study.folder import Study
from results.words import STATUS_LABELS, printable, token_words, trial_loss_words, value_words
from trainable.errors import count_words

FOLDER = Path(__file__).parent


def write_reports(study: Study) -> dict[str, Any]:
    """Write report.html and report.md into the study and return their facts.

    Raises UserError when a file of the study is damaged, and OSError.
    """
    facts = report_facts(study)
    traces = trial_traces(study, [trial["trial_id"] for trial in facts["trials"]])
    # A path that is not UTF-8 came in by surrogateescape; a page can only name it.
    write_atomic(study.path / "report.html", report_html(facts, traces).encode("utf-8", "backslashreplace"))
    write_atomic(study.path / "report.md", markdown(facts).encode())
    return facts


def report_html(facts: dict[str, Any], traces: dict[str, Any]) -> str:
    """Return the page; traces are those of trial_traces(), and trials may lack one."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    figures = report_figures(facts)
    scripts = {"plotly": get_plotlyjs(), "page": (FOLDER / "script.js").read_text(encoding="utf-8")}
    assert not any("</script" in script for script in scripts.values())
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts.values()]
    return render(
        "template.html.j2",
        facts=facts,
        figures=figures,
        views=views(facts),
        default_view=default_view(facts),
        data=_json_block(_page_data(facts, figures, traces)),
        facts_json=_json_block({name: value for name, value in facts.items() if name != "trials"}),
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        scripts={name: Markup(script) for name, script in scripts.items()},
        # Only these two scripts may run and nothing may be fetched, whatever the texts of a study contain.
        script_hashes=" ".join(f"'sha256-{digest}'" for digest in digests),
    )


def markdown(facts: dict[str, Any]) -> str:
    """Return the report for a pull request."""
    return printable(render("report.md.j2", facts=facts)) + "\n"


def _page_data(facts: dict[str, Any], figures: dict[str, Any], traces: dict[str, Any]) -> dict[str, Any]:
    baseline = facts["answer"]["baseline"]
    return {
        "figures": [figure for section in figures.values() for figure in section],
        "traces": traces,
        "trials": {str(trial["trial_id"]): _drawn_trial(trial, facts) for trial in facts["trials"]},
        "baseline": None if baseline is None else baseline["trial_id"],
        "first": facts["trials"][0]["trial_id"] if facts["trials"] else None,
    }


def _drawn_trial(trial: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's hover lines and evaluations, which are not in its row of the table."""
    settings = ", ".join(
        f"{parameter['label']} {value_words(trial['searched'][parameter['name']])}"
        for parameter in facts["parameters"]
        if parameter["name"] in trial["searched"]
    )
    name = f"trial {trial['trial_id']}" + (" (baseline)" if trial["is_baseline"] else "")
    ending = STATUS_LABELS.get(trial["status"], trial["status"]) + (f": {trial['why']}" if trial["why"] else "")
    evaluations = trial["evaluations"]
    return {
        "lines": [
            f"{name}: loss {trial_loss_words(trial)} at {token_words(trial['tokens_seen'])} tokens",
            settings,
            ending,
        ],
        "tokens_per_step": trial["batch_size"] * trial["block_size"] * trial["grad_accum_steps"],
        "eval_tokens": evaluations["tokens_seen"],
        "eval_loss": [None if loss is None else round(loss, 5) for loss in evaluations["val_loss"]],
    }


def _json_block(value: Any) -> Any:
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, dumps=partial(json.dumps, separators=(",", ":"), allow_nan=False))


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
    "count": count_words,
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
