"""What a guest is told when it is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.relay import RELAY_BYTES_MAX
from pairsync.core.units import MIB
from pairsync.errors import ConfigError
from pairsync.io.config import WINDOW_BYTES_MAX, LinkConfig

__all__ = ["PART_BYTES_MAX", "VOLUMES_MAX", "GuestConfig", "VolumeConfig"]

VOLUMES_MAX = 64
"""Volumes of one guest: more than any hypervisor's default bus takes."""

PART_BYTES_MAX = 4 * MIB
"""Most data of a batch that goes on as one: what a volume may have in flight is exceeded by one of these at
most, and one intent record for so much costs little."""

_STREAM_RESERVE_BYTES = 16 * MIB + 2 * RELAY_BYTES_MAX
"""Room of the link's window beyond the data in flight: headers, answers, one batch more than counted; and
what is relayed for the other host's clients, twice: the next may leave before the link knows of the last."""


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """One volume: its name, the same on both hosts, and where this host's replica lies.

    ``metadata`` is beside the data by default; a block device needs a path of its own.
    """

    name: str
    path: str | os.PathLike[str]
    options: VolumeOptions = field(default_factory=VolumeOptions)
    metadata: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """A guest on this host.

    ``term`` is the number of the ownership grant under which an active host runs; a standby learns it.
    ``link`` None: no peer at all, everything else the same (for a volume that is to be paired later).
    """

    name: str
    pair_id: bytes
    role: Role
    volumes: Sequence[VolumeConfig]
    link: LinkConfig | None = None
    term: int = 1

    def check(self) -> None:
        """Raises `ConfigError` naming what is wrong."""
        if not isinstance(self.pair_id, bytes):
            raise ConfigError(f"a pair id is of bytes, not {type(self.pair_id).__name__}")
        if len(self.pair_id) != 16:
            raise ConfigError(f"a pair id has 16 bytes, not {len(self.pair_id)}")
        if not isinstance(self.role, Role):  # what is none would compare as a standby's
            raise ConfigError(f"guest {self.name!r}: its role is a pairsync.Role, not {self.role!r}")
        if not 1 <= len(self.volumes) <= VOLUMES_MAX:
            raise ConfigError(
                f"guest {self.name!r} has {len(self.volumes)} volumes; 1 to {VOLUMES_MAX} may be"
            )
        names = [volume.name for volume in self.volumes]
        if len(set(names)) != len(names):
            raise ConfigError(f"guest {self.name!r} has two volumes of the same name")
        if self.term < 0 or (self.role is Role.ACTIVE and self.term < 1):
            raise ConfigError(f"term {self.term}: an active host needs 1 or more")
        if self.link is not None and self.link.pair_id != self.pair_id:
            raise ConfigError(f"guest {self.name!r} and its link belong to different pairs")

    def shared_out(self) -> GuestConfig:
        """The same with what the volumes share divided among them, and a link window that holds it all."""
        count = len(self.volumes)
        volumes = []
        window_bytes = _STREAM_RESERVE_BYTES
        for volume in self.volumes:
            inflight = max(volume.options.inflight_bytes // count, 2 * MIB)
            options = replace(volume.options, inflight_bytes=inflight)
            volumes.append(replace(volume, options=options))
            window_bytes += 2 * inflight + PART_BYTES_MAX
            if options.level == "async":
                window_bytes += options.lag_bytes
        link = self.link
        if link is not None:
            if window_bytes > WINDOW_BYTES_MAX:
                raise ConfigError(
                    f"guest {self.name!r}: its volumes may have {window_bytes} bytes in flight together, "
                    f"at most {WINDOW_BYTES_MAX} are possible: lower lag_bytes"
                )
            link = replace(link, window_bytes=max(link.window_bytes, window_bytes))
        return replace(self, volumes=tuple(volumes), link=link)
