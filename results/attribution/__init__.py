"""Which of several changes did it: combinations to run, and what their losses say. It trains nothing."""

from results.attribution.attribute import attribute
from results.attribution.attribution_files import from_json, load_attribution, to_json, write_attribution
from results.attribution.attribution_values import Attribution, Estimate
from results.attribution.design import Coalition, Setting, changed_settings, coalitions, config_of
from results.attribution.sentences import did_it_words, estimate_words, render, summary_lines, unknown_word
from results.attribution.shapley_weights import interaction_weights, shapley_weights

__all__ = [
    "Attribution",
    "Coalition",
    "Estimate",
    "Setting",
    "attribute",
    "changed_settings",
    "coalitions",
    "config_of",
    "did_it_words",
    "estimate_words",
    "from_json",
    "interaction_weights",
    "load_attribution",
    "render",
    "shapley_weights",
    "summary_lines",
    "to_json",
    "unknown_word",
    "write_attribution",
]
