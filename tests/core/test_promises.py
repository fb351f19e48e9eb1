"""What a host has promised binds it after a restart too, whatever its failover time is then."""

from __future__ import annotations

from pairsync.core.promises import Promises
from pairsync.core.timing import FAILOVER_NS_MAX, derive
from pairsync.core.units import NS_PER_S

T0 = 10**12
SHORT_NS = derive(NS_PER_S).promise_ns
LONG_NS = derive(30 * NS_PER_S).promise_ns


def test_a_longer_promise_of_an_earlier_life_is_kept_and_then_forgotten() -> None:
    promises = Promises(LONG_NS, SHORT_NS)
    assert promises.written
    promises.begin(T0)
    assert promises.until_ns(T0) == T0 + LONG_NS
    assert promises.until_ns(T0 + LONG_NS - 1) == T0 + LONG_NS - 1 + SHORT_NS, "given in this life"
    assert promises.next_deadline_ns() == T0 + LONG_NS
    assert not promises.shrink(T0 + LONG_NS - 1)
    assert promises.longest_ns == LONG_NS
    assert promises.shrink(T0 + LONG_NS)
    assert (promises.longest_ns, promises.next_deadline_ns()) == (SHORT_NS, None)
    assert not promises.shrink(T0 + 2 * LONG_NS)


def test_a_longer_one_of_this_life_has_to_be_written_first() -> None:
    promises = Promises(SHORT_NS, LONG_NS)
    assert (promises.written, promises.longest_ns) == (False, LONG_NS)
    promises.begin(T0)
    assert promises.until_ns(T0) == T0 + LONG_NS
    assert promises.next_deadline_ns() is None


def test_what_nobody_wrote_is_taken_for_the_longest_that_can_be() -> None:
    promises = Promises(None, SHORT_NS)
    assert (promises.written, promises.longest_ns) == (False, FAILOVER_NS_MAX)
    promises.begin(T0)
    assert promises.until_ns(T0 + SHORT_NS) == T0 + FAILOVER_NS_MAX
