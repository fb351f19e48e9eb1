"""``pairsync host promote``: a standby whose resync was interrupted for good, by a person's decision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from pairsync.guest.promote import Reversion

__all__ = ["host_promote"]


def host_promote(
    file: Path,
    /,
    *,
    revert: Annotated[
        bool, Parameter(negative=(), help="Do it; without, it is only said what would be done.")
    ] = False,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Put a half resynced standby back to its last consistent point, to use it in place of a lost host.

    For the case that the active host was lost for good in the middle of a resync. What it had written since
    that point is not here. The host must not run. Exit status 0 when it is done, 1 without --revert.

    Parameters
    ----------
    file
        The host's file.
    """
    from pairsync.guest.promote import look_at_replicas, promote_replicas
    from pairsync.node.hostfile import read_host_file

    host = read_host_file(file)
    found = (promote_replicas if revert else look_at_replicas)(host.volumes, host.pair_id)
    if json_:
        print(json.dumps({"done": revert, "volumes": [asdict(each) for each in found]}))
    else:
        for line in _explain(file, found, done=revert, agreed=host.register is not None):
            print(line)
    return 0 if revert else 1


def _explain(file: Path, found: Sequence[Reversion], *, done: bool, agreed: bool) -> list[str]:
    """``agreed``: who is active is agreed on, not stated in the host's file."""
    lines = [_volume_line(each, done=done) for each in found]
    if any(not each.reverts for each in found):
        lines.append("The volumes are of different moments: check what lies on several of them.")
    lines.append("")
    if not done:
        lines += [
            "Nothing was changed. Be sure that the other host does not run and will not come back by itself;",
            f"then: pairsync host promote {file} --revert",
        ]
        return lines
    term = max(each.term for each in found)
    if agreed:
        lines += [
            "Next:",
            f"  1. Run it: pairsync host run {file}",
            f"  2. Make it the owner: pairsync host override {file} --above-term {term} --yes",
            "  3. The other host's replica was written apart from this one, and is refused as its",
            "     standby. To give up what it has: pairsync host concede, there.",
        ]
        return lines
    lines += [
        "Next:",
        f'  1. In {file}, [guest]: role = "active" and term = {term} (or more); [nbd]: say where to serve.',
        f"  2. Run it: pairsync host run {file}",
        "  3. The other host's replica was written apart from this one, and is refused as its standby. To",
        "     give up what it has: remove its .pairsync files and run pairsync host init --overwrite there.",
    ]
    return lines


def _volume_line(each: Reversion, *, done: bool) -> str:
    if not each.reverts or each.resync_began_s is None:
        return f"{each.volume}: whole, at generation {each.generation}; stays as it is"
    began = datetime.fromtimestamp(each.resync_began_s, UTC)
    age = datetime.now(UTC) - began
    verb = "were put back" if done else "would be put back"
    when = f"{began:%Y-%m-%d %H:%M:%S} UTC ({str(age).partition('.')[0]} ago)"
    return (
        f"{each.volume}: {each.blocks} blocks {verb}; its last consistent point, generation "
        f"{each.generation}, is older than {when}, when the resync began"
    )
