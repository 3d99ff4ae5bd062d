"""As much of PromQL as it takes to check that a query asks for series and labels that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

__all__ = ("Exported", "exported_by", "problems_with", "read_series")

Exported = dict[str, set[str]]
"""Labels by the name of a series; empty for one that has no sample yet."""

_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "info": ("_info",),
}
# What Prometheus adds to every series when it scrapes.
_TARGET_LABELS = {"job", "instance", "container", "namespace", "pod"}
_WORDS = {"and", "by", "count", "histogram_quantile", "ignoring", "increase", "label_values", "max", "min", "on", "or"}
_WORDS |= {"rate", "sum", "unless"}
_BRACES = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")
_PLACEHOLDER = re.compile(r"<<[^>]*>>")


def exported_by(page: str) -> Exported:
    """The series of a metrics page."""
    found: Exported = {}
    for family in text_string_to_metric_families(page):
        for suffix in _SUFFIXES.get(family.type, ("",)):
            found.setdefault(family.name + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def read_series(query: str) -> set[str]:
    """The series that a query reads."""
    text = _BRACES.sub(lambda match: f" {match[1] or ''} ", _PLACEHOLDER.sub("", query))
    text = _GROUPING.sub(" ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    text = re.sub(r"label_values\((.*),\s*\w+\s*\)", r"\1", text)
    return {word for word in re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*", text) if word not in _WORDS}


def _labels(query: str) -> Iterator[tuple[str, set[str]]]:
    query = _PLACEHOLDER.sub("", query)
    for name, inside in _BRACES.findall(query):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
    grouped = {label for inside in _GROUPING.findall(query) for label in re.findall(r"\w+", inside)}
    grouped |= set(re.findall(r"label_values\(.*,\s*(\w+)\s*\)", query))
    yield "", grouped


def problems_with(query: str, exported: Exported) -> list[str]:
    """What a query asks for that nobody exports."""
    series = read_series(query)
    if not series:
        return [f"reads nothing: {query}"]
    problems = [f"nobody exports {name}" for name in sorted(series) if name not in exported]
    if problems:
        return problems
    for name, labels in _labels(query):
        for read in [name] if name else sorted(series):
            # A series without a sample does not show its labels.
            known = exported[read] | _TARGET_LABELS
            if exported[read]:
                problems += [f"{read} has no label {label}" for label in sorted(labels - known)]
    return problems
