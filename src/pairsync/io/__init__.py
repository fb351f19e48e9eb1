"""Trio: keys, mutual TLS, lanes, network paths and the link to the peer host."""

from .config import LinkConfig, LinkTimings, PathConfig
from .keys import HostIdentity, load_identity, make_identity, open_identity, save_identity
from .link import Link, LinkStatistics, PathStatistics, open_link
from .network import Address, Connection, Listener, Network, TcpNetwork
from .session import LinkHandler, SessionInfo

__all__ = [
    "Address",
    "Connection",
    "HostIdentity",
    "Link",
    "LinkConfig",
    "LinkHandler",
    "LinkStatistics",
    "LinkTimings",
    "Listener",
    "Network",
    "PathConfig",
    "PathStatistics",
    "SessionInfo",
    "TcpNetwork",
    "load_identity",
    "make_identity",
    "open_identity",
    "open_link",
    "save_identity",
]
