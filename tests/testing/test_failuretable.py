"""The failure table's own judgement: what is foreseen, what two sightings prove, what a report says."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest

from pairsync.core.outlook import Failure, Fate, outlook
from pairsync.testing.failuretable.cells import WHOLE, Cell, Fault, World, all_cells, foreseen, sample, step
from pairsync.testing.failuretable.report import as_json, as_markdown, percentile
from pairsync.testing.failuretable.runner import CellResult, StepResult
from pairsync.testing.failuretable.watch import Sighting, longest_gap, overlap

OF_THE_STATEMENT = {
    Fault.HOST_A: Failure.OWNER,
    Fault.HOST_B: Failure.STANDBY,
    Fault.WITNESS: Failure.WITNESS,
    Fault.LINK: Failure.LINK,
    Fault.DISK_A: Failure.OWNER_DISK,
    Fault.DISK_B: Failure.STANDBY_DISK,
}


def fates(*faults: Fault) -> list[Fate]:
    return [next(iter(each.fates)) for each in foreseen(Cell(faults))]


def test_what_is_foreseen_of_whole_pairs_is_what_they_say_of_themselves() -> None:
    said = outlook(WHOLE.state, failover_ns=1)
    for fault, failure in OF_THE_STATEMENT.items():
        assert fates(fault) == [said.single[failure].fate]
    for first, second in permutations(OF_THE_STATEMENT, 2):
        safe = fates(first, second)[1] is not Fate.STOPS
        named = OF_THE_STATEMENT[first], OF_THE_STATEMENT[second]
        assert safe is (named in said.safe_pairs), (first, second)


@pytest.mark.parametrize(
    ("first", "second", "fate"),
    [
        (Fault.A_WITNESS, Fault.HOST_A, Fate.STOPS),  # the two have agreed that A decides alone
        (Fault.A_WITNESS, Fault.LINK, Fate.GOES_ON),
        (Fault.B_WITNESS, Fault.HOST_A, Fate.STOPS),  # nobody has noticed, and B can ask nobody
        (Fault.B_WITNESS, Fault.LINK, Fate.GOES_ON),
        (Fault.B_WITNESS, Fault.DISK_A, Fate.MOVES),  # A itself hands over
        (Fault.PAUSE, Fault.HOST_A, Fate.GOES_ON),  # A is back, and a standby
        (Fault.PAUSE, Fault.HOST_B, Fate.MOVES),
        (Fault.POWER_A, Fault.POWER_B, Fate.STOPS),
        (Fault.POWER_A, Fault.HOST_B, Fate.STOPS),
        (Fault.POWER_B, Fault.WITNESS, Fate.GOES_ON),
        (Fault.DISK_A, Fault.POWER_A, Fate.GOES_ON),
        (Fault.LINK, Fault.PAUSE, Fate.STOPS),
        (Fault.B_WITNESS, Fault.PAUSE, Fate.STOPS),
    ],
)
def test_cables_of_the_witness_and_pauses(first: Fault, second: Fault, fate: Fate) -> None:
    assert fates(first, second)[1] is fate


def test_without_power_a_host_is_as_gone_as_without_its_process() -> None:
    for power, host in ((Fault.POWER_A, Fault.HOST_A), (Fault.POWER_B, Fault.HOST_B)):
        for other in {*Fault} - {power, host}:
            assert fates(power, other) == fates(host, other)
            assert fates(other, power) == fates(other, host)


def test_a_paused_owner_is_restarted_where_it_had_a_lease() -> None:
    assert step(WHOLE, Fault.PAUSE).restarted
    assert step(WHOLE, Fault.PAUSE).then == World("B", WHOLE.state)
    assert foreseen(Cell((Fault.B_WITNESS, Fault.PAUSE)))[1].restarted
    assert not foreseen(Cell((Fault.WITNESS, Fault.PAUSE)))[1].restarted


def test_the_table_holds_every_pair_once() -> None:
    cells = all_cells()
    assert len({cell.name for cell in cells}) == len(cells) == 11 + 11 * 10 - 4 + 4 * 7
    assert len(sample(1, 5)) == 11 + 5
    gone = {Fault.HOST_B, Fault.POWER_B}  # the same host, and gone already
    assert not any({*cell.faults} == gone for cell in cells)
    assert sample(1, 5) == sample(1, 5) != sample(2, 5)


def seen(host: str, asked_s: float, came_s: float, term: int = 1, *, serves: bool = True) -> Sighting:
    return Sighting(host, asked_s, came_s, term, serves)


@pytest.mark.parametrize(
    ("sightings", "proof"),
    [
        ([seen("a", 0, 1), seen("b", 2, 3, 2), seen("a", 4, 5)], True),
        ([seen("b", 2, 3, 2), seen("a", 4, 5), seen("a", 0, 1)], True),
        ([seen("a", 0, 1), seen("b", 2, 3, 2), seen("a", 4, 5, 3)], False),  # it has moved there and back
        ([seen("a", 0, 1), seen("b", 2, 3, 2, serves=False), seen("a", 4, 5)], False),
        ([seen("a", 0, 2.5), seen("b", 2, 3, 2), seen("a", 4, 5)], False),  # the first may have come late
        ([seen("a", 0, 1), seen("b", 2, 3, 2)], False),
    ],
)
def test_three_answers_prove_that_two_have_served_at_once(sightings: list[Sighting], proof: bool) -> None:
    assert (overlap(sightings) is not None) is proof


def test_the_longest_gap_counts_from_the_failure_and_to_the_end() -> None:
    assert longest_gap([1.0, 2.0, 4.5, 5.0], 0.5, 6.0) == 2.5
    assert longest_gap([1.0, 9.0], 3.0, 8.0) == 5.0
    assert longest_gap([], 3.0, 8.0) == 5.0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(each) for each in range(1, 41)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 50)) == (20.0, 40.0, 7.0)
    ordered = [percentile(values, each) for each in range(101)]
    assert all(earlier <= later for earlier, later in pairwise(ordered))


def test_a_report_names_who_runs_and_what_was_wrong() -> None:
    cells = [Cell((Fault.HOST_A,)), Cell((Fault.HOST_A, Fault.HOST_B))]
    cells.append(Cell((Fault.HOST_A, Fault.WITNESS), 100))
    results = [CellResult(cell.name, [each.value for each in cell.faults], cell.delay_ms) for cell in cells]
    results[0].steps = [StepResult("host A", ["moves"], "moves", "moves", "B", 1.234)]
    results[0].lost = 0
    results[1].steps = [*results[0].steps, StepResult("host B", ["stops"], "stops", "stops")]
    results[1].returned_s, results[1].lost = 2.0, 0
    results[2].wrong = "two hosts have served at once"
    text = as_markdown(results, 2.0, "namespaces")
    assert text.startswith(
        "In network namespaces, cables pulled for real. Failover time 2 s. 3 cells, 1 wrong."
    )
    assert as_markdown(results, 2.0, "loopback").startswith("Over loopback, ")
    (row,) = [line for line in text.splitlines() if line.startswith("| host A | B")]
    assert row.startswith("| host A | B, 1.23 s |  | nobody, back 2.0 s |")
    assert "| host A | WRONG |" in text
    told = as_json(results, 2.0, "namespaces")
    assert told["network"] == "namespaces"
    assert (told["lost"], told["unchecked"], told["wrong"]) == (0, 1, [cells[2].name])
