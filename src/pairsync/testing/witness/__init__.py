"""Witness stores under test: a model in memory, the checks that any store must pass, a judge of histories.

Who brings a store of his own (any linearizable compare-and-swap) describes how it is reached, in a
`WitnessBench`, and runs the checks; with pytest and pytest-trio::

    from pairsync.testing.witness import WITNESS_CHECKS, WitnessBench, WitnessCheck

    class OurBench(WitnessBench):
        @asynccontextmanager
        async def open(self):                  # as one more host
            yield OurStore(...)

    @pytest.mark.parametrize("check", WITNESS_CHECKS, ids=lambda check: check.__name__)
    async def test_our_store(check: WitnessCheck) -> None:
        await check(OurBench(pair_id=secrets.token_bytes(16)))

`RESTART_CHECKS` want `WitnessBench.restart` as well, `LOSS_CHECKS` want `WitnessBench.forget`.  A check
raises `WitnessBroken`, which says what the store did.
"""

from .bench import WitnessBench, WitnessBroken
from .builtin import BuiltinBench, running_witness
from .checks import LOSS_CHECKS, RESTART_CHECKS, WITNESS_CHECKS, WitnessCheck
from .etcd import EtcdBench, running_etcd
from .history import Operation, judge_history
from .memory import MemoryBench, MemoryWitness

__all__ = [
    "LOSS_CHECKS",
    "RESTART_CHECKS",
    "WITNESS_CHECKS",
    "BuiltinBench",
    "EtcdBench",
    "MemoryBench",
    "MemoryWitness",
    "Operation",
    "WitnessBench",
    "WitnessBroken",
    "WitnessCheck",
    "judge_history",
    "running_etcd",
    "running_witness",
]
