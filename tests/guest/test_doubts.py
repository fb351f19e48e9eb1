"""What a resync reads is compared with its digest, on real files: mended from the peer, and never copied."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.guest.harness import Pair, in_time

from pairsync.core.events import InSyncEvent, ScrubFindingEvent
from pairsync.core.messages import Role
from pairsync.core.units import BLOCK_BYTES, KIB, MIB
from pairsync.guest.guest import open_guest
from pairsync.storage.metadata import metadata_path

BLOCK = 17
LEAVES_AT = 8 * KIB  # in the digest file: see ``storage.digestfile``


def flip(path: Path, offset: int) -> None:
    """One bit, behind everybody's back."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 2]))


@pytest.mark.parametrize("what", ["digest", "here"])
async def test_what_fell_over_while_the_standby_was_away_is_mended(pair: Pair, what: str) -> None:
    content = random.Random(9).randbytes(MIB)
    async with in_time():
        async with pair.both() as (active, _):
            await active.volume("vda").write(0, content)
            await active.volume("vda").flush()
        if what == "digest":
            flip(Path(metadata_path(str(pair.image("a"))) + "-digests"), LEAVES_AT + 8 * BLOCK)
        found: list[tuple[int, str]] = []
        async with open_guest(pair.config("a")) as active:
            if what == "here":
                # The whole of what was written has to be copied, and one block of it is not what it was.
                tracker = active.session.sources[0].tracker
                tracker.want([(0, MIB // BLOCK_BYTES)])
                flip(pair.image("a"), BLOCK * BLOCK_BYTES + 9)
            with active.subscribe() as events:
                async with open_guest(pair.config("b", role=Role.STANDBY)):
                    while True:
                        event = await events.receive()
                        if isinstance(event, ScrubFindingEvent):
                            found.append((event.block, event.fault))
                        elif isinstance(event, InSyncEvent):
                            break
                    report = await active.volume("vda").scrub()
        assert found == [(BLOCK, what)]
        assert report.findings == 0, "the digests are whole too"
        assert pair.image("a").read_bytes()[:MIB] == content
        assert pair.image("b").read_bytes()[:MIB] == content
