"""Stories of arbitration: every ``tests/core/testdata/story_*.txt`` is told as it is written there.

``PAIRSYNC_REWRITE=1 pytest tests/test_stories.py`` writes what happens today into the files; the diff is then
read like any other change.  The language is that of ``pairsync.testing.storyteller``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError
from pairsync.testing.story import Story
from pairsync.testing.storyteller import run_story

STORIES = sorted((Path(__file__).parent / "core" / "testdata").glob("story_*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem.removeprefix("story_"))
def test_story(path: Path) -> None:
    expected = path.read_text(encoding="utf-8")
    found = run_story(expected)
    if os.environ.get("PAIRSYNC_REWRITE"):
        path.write_text(found, encoding="utf-8")
        return
    assert found == expected, f"{path.name} differs; PAIRSYNC_REWRITE=1 rewrites it, to be read as a diff"


def test_there_are_stories_and_each_says_what_it_is_about() -> None:
    assert len(STORIES) >= 10
    for path in STORIES:
        assert path.read_text(encoding="utf-8").startswith("# "), path.name


@pytest.mark.parametrize("failover_ns", [NS_PER_S, 5 * NS_PER_S])
def test_the_failover_time_is_kept_whenever_the_owner_dies(failover_ns: int) -> None:
    """The guest's volumes are opened after that, which has a share of its own."""
    for offset_ms in range(0, 300, 17):
        story = Story(witness=True, failover_ns=failover_ns)
        story.run(NS_PER_S + offset_ms * NS_PER_MS)
        story.a.crash()
        story.run(failover_ns - story.timing.open_ns)
        assert story.b.running


@pytest.mark.parametrize("round_trip_ms", [400, 700, 980, 1000, 1020, 1200, 1300])
def test_a_witness_far_away_votes_though_the_failover_time_does_not_allow_for_it(round_trip_ms: int) -> None:
    """413 ms are allowed at 5 s.  What the two decisions' round trips take more, the failover takes more."""
    more_ns = 2 * round_trip_ms * NS_PER_MS
    for offset_ms in range(0, 2000, 119):
        story = Story(witness=True, failover_ns=5 * NS_PER_S, witness_delay_ns=round_trip_ms * NS_PER_MS // 2)
        story.run(8 * NS_PER_S)
        for _ in range(40):  # both hosts and the witness decide, and go on doing so
            story.run(100 * NS_PER_MS)
            assert story.a.arbiter is not None
            assert story.a.arbiter.grant is not None
            assert len(story.a.arbiter.grant.voters) == 3
        story.run(offset_ms * NS_PER_MS)
        if offset_ms % 2:
            story.a.crash()
            story.run(5 * NS_PER_S + more_ns)
            assert story.b.running
        else:
            story.b.crash()
            story.run(5 * NS_PER_S + more_ns)
            assert story.a.running


@pytest.mark.parametrize(
    "text", ["run 1s", "pair\n\nrun 1h", "pair\n\ncrash c", "pair\n\ncut a-c", "pair\n\nfly"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        run_story(text)
