"""What came of the cells, as JSON for machines and as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pairsync.node.labfile import LOOPBACK, NAMESPACES

from .cells import Fault
from .runner import CellResult, StepResult

__all__ = ["as_json", "as_markdown", "line_of", "percentile", "write_report"]


_WHERE = {
    LOOPBACK: "Over loopback, cables cut inside the hosts.",
    NAMESPACES: "In network namespaces, cables pulled for real.",
}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many of a hundred do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def _outcome(step: StepResult) -> str:
    """``B, 1.43 s``: who runs, and the longest time without an answer; or ``nobody``."""
    if step.runs is None or step.interrupted_s is None:
        return "nobody"
    return f"{step.runs}, {step.interrupted_s:.2f} s"


def line_of(result: CellResult) -> str:
    """A cell in one line, as it comes."""
    steps = "; ".join(f"{step.fault}: {step.fate} ({_outcome(step)})" for step in result.steps)
    whole = "" if result.whole_s is None else f"; whole after {result.whole_s:.1f} s"
    return f"{'WRONG' if result.wrong else 'ok   '} {result.name}: {steps}{whole}" + (
        f"\n      {result.wrong}" if result.wrong else ""
    )


def as_json(results: Sequence[CellResult], failover_s: float, network: str) -> dict[str, Any]:
    """Everything."""
    return {
        "failover_s": failover_s,
        "network": network,
        "cells": [asdict(result) for result in results],
        "lost": sum(result.lost or 0 for result in results),
        "unchecked": sum(result.lost is None for result in results),
        "errors": sum(result.errors for result in results),
        "wrong": [result.name for result in results if result.wrong],
    }


def as_markdown(results: Sequence[CellResult], failover_s: float, network: str) -> str:
    """The table: rows are first failures, columns second ones."""
    by_name = {result.name: result for result in results}
    wrong, lost = sum(bool(each.wrong) for each in results), sum(each.lost or 0 for each in results)
    errors = sum(each.errors for each in results)
    answered = f"Acknowledged writes lost: {lost}. Errors, of owners whose disk failed when alone: {errors}."
    lines = [
        f"{_WHERE[network]} Failover time {failover_s:g} s. {len(results)} cells, {wrong} wrong. {answered}",
        _said_otherwise(results),
        "",
        "| first | alone | " + " | ".join(f"then {fault.value}" for fault in Fault) + " |",
        "| --- |" + " --- |" * (len(Fault) + 1),
    ]
    for first in Fault:
        row = [first.value, _cell(by_name.get(first.value))]
        row += [_cell(by_name.get(f"{first.value}, then {second.value}")) for second in Fault]
        lines.append("| " + " | ".join(row) + " |")
    soon = [each for each in results if each.delay_ms is not None]
    if soon:
        lines += ["", "| the witness killed so soon after | " + " | ".join(_delays(soon)) + " |"]
        lines += ["| --- |" + " --- |" * len(_delays(soon))]
        for host in dict.fromkeys(each.faults[0] for each in soon):
            row = [_cell(each) for each in soon if each.faults[0] == host]
            lines.append(f"| {host} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _said_otherwise(results: Sequence[CellResult]) -> str:
    """How often the pair's own statement, made just before a failure, was right."""
    steps = [(each.name, step) for each in results for step in each.steps if step.said is not None]
    wrong = dict.fromkeys(name for name, step in steps if step.said != step.fate)
    which = f"; not so: {'; '.join(wrong)}" if wrong else ""
    return f"Of {len(steps)} failures the pair itself had said just before what would come of them{which}."


def _delays(soon: Sequence[CellResult]) -> list[str]:
    return [f"{delay} ms" for delay in dict.fromkeys(each.delay_ms for each in soon)]


def _cell(result: CellResult | None) -> str:
    if result is None:
        return ""
    if result.wrong or not result.steps:
        return "WRONG"
    step = result.steps[-1]
    if step.runs is None:
        back = "" if result.returned_s is None else f", back {result.returned_s:.1f} s"
        return f"nobody{back}"
    return _outcome(step)


def write_report(directory: Path, results: Sequence[CellResult], failover_s: float, network: str) -> None:
    """``failure-table.json`` and ``failure-table.md`` in that directory."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(results, failover_s, network), indent=1)
    (directory / "failure-table.json").write_text(text + "\n")
    (directory / "failure-table.md").write_text(as_markdown(results, failover_s, network))
