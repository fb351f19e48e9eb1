"""How figures are judged: ratios pair by pair, bars and aims in both directions, nothing hidden."""

from __future__ import annotations

import json

import pytest
from benchmarks.report import Figure, Judge, Verdict, as_json, as_table


def _figure(
    judge: Judge, ours: list[float], peer: list[float], bar: float | None, aim: float | None
) -> Figure:
    return Figure(row="1", what="writes", unit="IOPS", judge=judge, ours=ours, peer=peer, bar=bar, aim=aim)


@pytest.mark.parametrize(
    ("judge", "ours", "peer", "bar", "aim", "verdict"),
    [
        (Judge.OURS_OVER_PEER, [40.0], [10.0], 2.0, 4.0, Verdict.AIM),
        (Judge.OURS_OVER_PEER, [39.9], [10.0], 2.0, 4.0, Verdict.MET),
        (Judge.OURS_OVER_PEER, [20.0], [10.0], 2.0, 4.0, Verdict.MET),
        (Judge.OURS_OVER_PEER, [19.999], [10.0], 2.0, 4.0, Verdict.MISSED),
        (Judge.OURS_OVER_PEER, [20.0], [10.0], 2.0, None, Verdict.MET),
        (Judge.OURS_OVER_PEER, [20.0], [10.0], None, None, Verdict.INFO),
        (Judge.OURS_OVER_PEER, [], [10.0], 2.0, 4.0, Verdict.NOT_RUN),
        (Judge.PEER_OVER_OURS, [0.1], [4.0], 10.0, 40.0, Verdict.AIM),
        (Judge.PEER_OVER_OURS, [1.0], [4.0], 10.0, 40.0, Verdict.MISSED),
        (Judge.SHARE_OF_PEER, [102.0], [100.0], 1.05, 1.02, Verdict.AIM),
        (Judge.SHARE_OF_PEER, [104.0], [100.0], 1.05, 1.02, Verdict.MET),
        (Judge.SHARE_OF_PEER, [106.0], [100.0], 1.05, 1.02, Verdict.MISSED),
        (Judge.OURS_ALONE, [150.1], [], 150.0, 100.0, Verdict.MISSED),
        (Judge.OURS_ALONE, [90.0], [], 150.0, 100.0, Verdict.AIM),
    ],
)
def test_verdict(
    judge: Judge,
    ours: list[float],
    peer: list[float],
    bar: float | None,
    aim: float | None,
    verdict: Verdict,
) -> None:
    assert _figure(judge, ours, peer, bar, aim).verdict is verdict


def test_ratio_is_formed_of_neighbours() -> None:
    # The machine is ten times slower in the second round: the ratio of each round is the same, while the
    # ratio of the medians would be 2 x 100 / 10.
    figure = _figure(Judge.OURS_OVER_PEER, [200.0, 20.0, 200.0], [100.0, 10.0, 10.0], 2.0, 4.0)
    assert figure.ratios == [2.0, 2.0, 20.0]
    assert figure.verdict is Verdict.MET


def test_unequal_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1: 2 samples of ours, 1 of the peer"):
        _ = _figure(Judge.OURS_OVER_PEER, [1.0, 2.0], [1.0], 2.0, 4.0).ratios


def test_table_shows_the_spread_and_the_failures() -> None:
    missed = _figure(Judge.OURS_OVER_PEER, [10_000.0, 20_000.0], [10_000.0, 10_000.0], 2.0, 4.0)
    failed = Figure(row="2", what="reads", unit="IOPS", judge=Judge.OURS_OVER_PEER, failure="no lab")
    lines = as_table([missed, failed]).splitlines()
    assert "15.0k IOPS" in lines[2]
    assert "1.50 x [1.00 .. 2.00]" in lines[2]
    assert lines[2].endswith(">= 2 x  >= 4 x  missed")
    assert lines[3].endswith("FAILED")
    assert lines[4] == "row 2 FAILED: no lab"


def test_json_holds_every_sample() -> None:
    figure = _figure(Judge.SHARE_OF_PEER, [5.0, 7.0], [10.0, 10.0], 0.9, None)
    (value,) = json.loads(json.dumps(as_json([figure])))
    assert value["ours"] == [5.0, 7.0]
    assert value["ratios"] == [0.5, 0.7]
    assert value["ratio_median"] == pytest.approx(0.6)
    assert value["verdict"] == "met"
