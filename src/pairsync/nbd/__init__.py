"""The NBD front door: pure protocol machines and a trio server around them.

PURE are `constants`, `limits`, `export`, `options`, `negotiation`, `requests`, `replies`, `budget` and
`stall`; trio begins with `transport`, `outbox`, `flight`, `connection`, `listen` and `server`.
"""

from .export import Done, Export
from .limits import NbdLimits
from .listen import NbdListener, open_tcp_listeners, open_unix_listener
from .negotiation import TlsMode
from .server import NbdServer, NbdStatistics, serve_nbd

__all__ = [
    "Done",
    "Export",
    "NbdLimits",
    "NbdListener",
    "NbdServer",
    "NbdStatistics",
    "TlsMode",
    "open_tcp_listeners",
    "open_unix_listener",
    "serve_nbd",
]
