"""How samples become ratios and verdicts, and how they are shown.  Pure: no clock, no process, no file.

A `Figure` holds the samples of both sides in the order in which they were taken, so sample ``i`` of ours and
sample ``i`` of the peer were taken next to each other in time.  The ratio is formed pair by pair, and the
median of those ratios is judged: a machine that slows down half-way slows both sides of a pair.

Invariant: a verdict never depends on anything but the figure (no rounding before the comparison).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Figure", "Judge", "Verdict", "as_json", "as_table"]


class Judge(Enum):
    """What is compared with the bar."""

    OURS_OVER_PEER = "ours / peer, more is better"
    PEER_OVER_OURS = "peer / ours, more is better"
    SHARE_OF_PEER = "ours / peer, less is better"
    OURS_ALONE = "ours, less is better"


class Verdict(Enum):
    """Where a figure stands."""

    AIM = "aim met"
    MET = "met"
    MISSED = "missed"
    INFO = "info"
    NOT_RUN = "not run"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table: samples of ours and of the peer, and what they are held against."""

    row: str
    what: str
    unit: str
    judge: Judge
    ours: Sequence[float] = ()
    peer: Sequence[float] = ()
    peer_name: str = ""
    bar: float | None = None
    aim: float | None = None
    failure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """What is judged, pair by pair, in the order of the rounds; empty if one side did not run."""
        if self.judge is Judge.OURS_ALONE:
            return list(self.ours)
        if not self.ours or not self.peer:
            return []
        if len(self.ours) != len(self.peer):
            raise ValueError(
                f"row {self.row}: {len(self.ours)} samples of ours, {len(self.peer)} of the peer"
            )
        if self.judge is Judge.PEER_OVER_OURS:
            return [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def verdict(self) -> Verdict:
        """The median of the ratios against bar and aim."""
        if self.failure:
            return Verdict.FAILED
        ratios = self.ratios
        if not ratios:
            return Verdict.INFO if self.bar is None else Verdict.NOT_RUN
        if self.bar is None:
            return Verdict.INFO
        ratio = statistics.median(ratios)
        less = self.judge in {Judge.SHARE_OF_PEER, Judge.OURS_ALONE}

        def reaches(goal: float) -> bool:
            return ratio <= goal if less else ratio >= goal

        if self.aim is not None and reaches(self.aim):
            return Verdict.AIM
        return Verdict.MET if reaches(self.bar) else Verdict.MISSED


def _number(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1e6:.2f}M"
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _samples(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    return f"{_number(statistics.median(values))} {unit}"


def _ratio(figure: Figure) -> str:
    ratios = figure.ratios
    if not ratios or figure.judge is Judge.OURS_ALONE:
        return "-"
    low, high = _number(min(ratios)), _number(max(ratios))
    return f"{_number(statistics.median(ratios))} x [{low} .. {high}]"


def _goal(figure: Figure, goal: float | None) -> str:
    if goal is None:
        return ""
    sign = "<=" if figure.judge in {Judge.SHARE_OF_PEER, Judge.OURS_ALONE} else ">="
    return f"{sign} {goal:g} {figure.unit if figure.judge is Judge.OURS_ALONE else 'x'}"


def as_table(figures: Sequence[Figure]) -> str:
    """Return the figures as a plain text table (medians; the ratio with its least and greatest)."""
    head = ("row", "what", "ours", "peer", "", "ratio", "bar", "aim", "verdict")
    lines = [head]
    lines += [
        (
            figure.row,
            figure.what,
            _samples(figure.ours, figure.unit),
            _samples(figure.peer, figure.unit),
            figure.peer_name,
            _ratio(figure),
            _goal(figure, figure.bar),
            _goal(figure, figure.aim),
            figure.verdict.value,
        )
        for figure in figures
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text += [f"row {figure.row} FAILED: {figure.failure}" for figure in figures if figure.failure]
    return "\n".join(line.rstrip() for line in text)


def as_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Return the figures as plain values: every sample, the ratios pair by pair, and the verdict."""
    return [
        {
            "row": figure.row,
            "what": figure.what,
            "unit": figure.unit,
            "judge": figure.judge.value,
            "ours": list(figure.ours),
            "ours_median": statistics.median(figure.ours) if figure.ours else None,
            "peer": list(figure.peer),
            "peer_median": statistics.median(figure.peer) if figure.peer else None,
            "peer_name": figure.peer_name,
            "ratios": figure.ratios,
            "ratio_median": statistics.median(figure.ratios) if figure.ratios else None,
            "bar": figure.bar,
            "aim": figure.aim,
            "verdict": figure.verdict.value,
            "failure": figure.failure,
            "details": figure.details,
        }
        for figure in figures
    ]
