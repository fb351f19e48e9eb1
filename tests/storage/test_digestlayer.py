"""Pending changes of leaves, against a plain dict."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pairsync.storage.digestfile import UNKNOWN_DIGEST, ZERO_DIGEST
from pairsync.storage.digestlayer import Layer

BLOCKS = 40_000  # more than one page of a map

blocks = st.integers(0, BLOCKS - 1) | st.integers(0, 30)
changes = st.one_of(
    st.tuples(st.just("few"), blocks, st.integers(2, 9)),
    st.tuples(st.sampled_from(["zero", "doubt"]), blocks, st.integers(1, 40)),
    st.tuples(st.sampled_from(["zero", "doubt"]), blocks, st.integers(1, BLOCKS)),
)


def run(script: Sequence[tuple[str, int, int]]) -> tuple[Layer, dict[int, int]]:
    layer, model = Layer(BLOCKS), dict[int, int]()
    for what, block, number in script:
        if what == "few":
            layer.few[block] = model[block] = number
            continue
        digest = ZERO_DIGEST if what == "zero" else UNKNOWN_DIGEST
        stop = min(block + number, BLOCKS)
        layer.put_range(block, stop, digest)
        model.update(dict.fromkeys(range(block, stop), digest))
    return layer, model


def collected(layer: Layer, start: int = 0, stop: int = BLOCKS) -> dict[int, int]:
    found: dict[int, int] = {}
    layer.collect(start, stop, found)
    return found


@given(st.lists(changes, max_size=8))
def test_the_newest_change_counts(script: Sequence[tuple[str, int, int]]) -> None:
    layer, model = run(script)
    assert collected(layer) == model
    assert bool(layer) == bool(model)
    part = {block: digest for block, digest in model.items() if 10 <= block < 600}
    assert collected(layer, 10, 600) == part


@given(st.lists(changes, max_size=5), st.lists(changes, max_size=5))
def test_a_newer_layer_lies_over_an_older_one(
    older: Sequence[tuple[str, int, int]], newer: Sequence[tuple[str, int, int]]
) -> None:
    (below, said_below), (above, said_above) = run(older), run(newer)
    below.put_layer(above)
    assert collected(below) == said_below | said_above


@given(st.lists(changes, max_size=8))
def test_leaves_that_are_given_up_are_unknown(script: Sequence[tuple[str, int, int]]) -> None:
    layer, model = run(script)
    single = set(layer.few)
    layer.give_up()
    assert not layer.few
    expected = {block: UNKNOWN_DIGEST if block in single else digest for block, digest in model.items()}
    assert collected(layer) == expected
