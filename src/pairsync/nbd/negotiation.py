"""The handshake as a pure machine: bytes in, reply bytes and one outcome out.  PURE, and free of time.

Theory of operation ("Fixed newstyle negotiation" of the protocol document)::

    greeting ──> client flags ──> option ──> option ... ──> outcome

`Negotiation.feed` takes what was received.  `Negotiation.step` handles at most one option and returns its
whole reply, or None if it needs more bytes or has an `outcome`; so what one call can produce is bounded by
one option, however many the client has piled up.  The outcomes:

* `Chosen`     transmission begins (OPT_GO, OPT_EXPORT_NAME);
* `StartTls`   the reply was ACK: switch to TLS, then go on with `Negotiation.after_tls`;
* `Ended`      say no more, hang up; with the reason and whether the client asked for it.

What is kept between options: whether structured replies were agreed, and the last selection of meta
contexts with the export name it was for.  `after_tls` starts from nothing, and what the client had sent
in plain text behind STARTTLS is dropped and counted, never looked at ("Option types", NBD_OPT_STARTTLS;
CVE-2021-3716).

Every refusal follows the section named beside it.  A client that breaks a MUST where no reply is possible
is cut off, which "Termination of the session during option haggling" allows.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pairsync.errors import BackendError

from . import constants as c
from .export import Export
from .limits import OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX
from .options import (
    ExportRequest,
    MetaRequest,
    OptionError,
    info_block_size,
    info_export,
    info_text,
    matching_contexts,
    option_reply,
    parse_export_request,
    parse_meta_request,
    parse_name,
    server_entry,
    transmission_flags,
)

__all__ = ["Chosen", "Ended", "Negotiation", "Outcome", "StartTls", "TlsMode"]

_GREETING: Final = struct.Struct(">QQH")
_OPTION: Final = struct.Struct(">QII")
_EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
_U32: Final = struct.Struct(">I")

MESSAGE_CHARS_MAX: Final = 512
"""Of a text for people: stays below the protocol's 4096 bytes a string whatever a client's name contains."""


class TlsMode(enum.Enum):
    """ "Server-side requirements" of "TLS support"."""

    OFF = "off"
    """NOTLS: STARTTLS is refused by policy."""
    ALLOW = "allow"
    """SELECTIVETLS without an export that insists: the client decides.  No protection from a meddler."""
    REQUIRE = "require"
    """FORCEDTLS: nothing is said before TLS."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Transmission begins with this export."""

    export: Export
    structured: bool
    contexts: tuple[tuple[int, str], ...]
    """Selected meta contexts as (id, name); valid for this export only."""
    early: bytes
    """Received behind the last option: the first requests."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """The client was told to begin the TLS handshake."""

    dropped_bytes: int
    """Plain text behind the option that was thrown away; not 0 means a meddler or a broken client."""


@dataclass(frozen=True, slots=True)
class Ended:
    """No transmission: hang up once the reply, if any, is sent."""

    reason: str
    clean: bool
    """Whether the client asked for it (NBD_OPT_ABORT)."""


Outcome: TypeAlias = Chosen | StartTls | Ended


class Negotiation:
    """One client's handshake; see the module's theory.

    ``exports`` is looked at anew for each option, so it may be a live mapping.  ``default_export`` is what
    the empty name means; without it the empty name is unknown.  ``shutting_down`` may be set at any time:
    from then on options are answered with NBD_REP_ERR_SHUTDOWN.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        *,
        tls_mode: TlsMode = TlsMode.OFF,
        default_export: str | None = None,
        options_max: int = 256,
    ) -> None:
        self.outcome: Outcome | None = None
        self.shutting_down = False
        self._exports = exports
        self._tls_mode = tls_mode
        self._default_export = default_export
        self._options_left = options_max  # counts down over the whole handshake, TLS included
        self._encrypted = False
        self._buffer = bytearray()  # received and not yet parsed; at most one read beyond one option
        self._client_flags: int | None = None  # None until they have arrived
        self._skip_bytes = 0  # of an oversized option, still to come
        self._skipping: int | None = None  # that option
        self._structured = False
        self._selected: tuple[str, tuple[tuple[int, str], ...]] | None = (
            None  # export name as sent, (id, name)
        )
        self._handlers: dict[int, Callable[[int, bytes], bytes]] = {
            c.OPT_ABORT: self._abort,
            c.OPT_LIST: self._list,
            c.OPT_STARTTLS: self._starttls,
            c.OPT_INFO: self._info,
            c.OPT_GO: self._info,
            c.OPT_STRUCTURED_REPLY: self._structured_reply,
            c.OPT_LIST_META_CONTEXT: self._meta_context,
            c.OPT_SET_META_CONTEXT: self._meta_context,
        }

    def greeting(self) -> bytes:
        """What the server says first ("Newstyle negotiation")."""
        return _GREETING.pack(c.INIT_MAGIC, c.OPTION_MAGIC, c.FLAG_FIXED_NEWSTYLE | c.FLAG_NO_ZEROES)

    def after_tls(self) -> Negotiation:
        """The machine for the encrypted rest: no state but the client flags and the count of options."""
        fresh = Negotiation(
            self._exports,
            tls_mode=self._tls_mode,
            default_export=self._default_export,
            options_max=self._options_left,
        )
        fresh.shutting_down = self.shutting_down
        fresh._client_flags = self._client_flags
        fresh._encrypted = True
        return fresh

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take received bytes; after an outcome they are ignored."""
        if self.outcome is not None:
            return
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = memoryview(data)[skipped:]
        self._buffer += data

    def step(self) -> bytes | None:
        """Handle one option and return its reply (maybe empty); None: more bytes are needed, or `outcome`."""
        if self.outcome is not None or self._skip_bytes:
            return None
        if self._client_flags is None:
            return self._take_client_flags()
        if self._skipping is not None:
            option, self._skipping = self._skipping, None
            return self._dispatch(option, None)
        return self._take_option()

    # -- taking apart ----------------------------------------------------------------------------------------

    def _take_client_flags(self) -> bytes | None:
        if len(self._buffer) < _U32.size:
            return None
        flags: int = _U32.unpack_from(self._buffer)[0]
        del self._buffer[: _U32.size]
        if flags & ~(c.FLAG_C_FIXED_NEWSTYLE | c.FLAG_C_NO_ZEROES):  # "Client flags": MUST drop
            return self._end(f"unknown client flags {flags:#x}")
        self._client_flags = flags
        return b""

    def _take_option(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(buffer)
        if magic != c.OPTION_MAGIC:
            return self._end(f"bad option magic {magic:#x}")
        if length > OPTION_BYTES_MAX:
            return self._begin_skip(option, length)
        stop = _OPTION.size + length
        if len(buffer) < stop:
            return None
        data = bytes(memoryview(buffer)[_OPTION.size : stop])
        del buffer[:stop]
        if self._options_left == 0:
            return self._end("too many options")
        self._options_left -= 1
        return self._dispatch(option, data)

    def _begin_skip(self, option: int, length: int) -> bytes | None:
        """An oversized option: read past its data without keeping it, then say TOO_BIG."""
        if length > OPTION_SKIP_BYTES_MAX:
            return self._end(f"option {_name(option)} announces {length} bytes of data")
        if self._options_left == 0:
            return self._end("too many options")
        self._options_left -= 1
        behind = len(self._buffer) - _OPTION.size
        self._skipping = option
        self._skip_bytes = max(0, length - behind)
        del self._buffer[: _OPTION.size + length]
        return b""

    # -- deciding --------------------------------------------------------------------------------------------

    def _dispatch(self, option: int, data: bytes | None) -> bytes:
        """Answer an option; ``data`` is None if it was too much and has been skipped."""
        if not self._fixed and option != c.OPT_EXPORT_NAME:
            # "Newstyle negotiation": without fixed newstyle there is only EXPORT_NAME, and no reply format
            return self._end(f"option {_name(option)} without fixed newstyle")
        try:
            return self._answer(option, data)
        except OptionError as error:
            return self._refuse(option, c.REP_ERR_INVALID, str(error))
        except BackendError as error:
            # Of an export that is not known yet nothing true can be said.  To be told that it does not exist
            # ends a client; to be hung up on, as by a server that is starting, has it come again.
            return self._end(str(error))

    def _answer(self, option: int, data: bytes | None) -> bytes:
        if option == c.OPT_EXPORT_NAME:
            return self._end("EXPORT_NAME with an absurd name") if data is None else self._export_name(data)
        if self._tls_missing and option not in {c.OPT_STARTTLS, c.OPT_ABORT}:  # "FORCEDTLS mode"
            return self._refuse(option, c.REP_ERR_TLS_REQD, "this server requires TLS")
        if self.shutting_down and option != c.OPT_ABORT:
            return self._refuse(option, c.REP_ERR_SHUTDOWN, "the server is shutting down")
        handler = self._handlers.get(option)
        if handler is None:  # "Baseline": unknown messages MUST be answered with UNSUP
            return self._refuse(option, c.REP_ERR_UNSUP, f"option {option} is not supported")
        if data is None and option != c.OPT_ABORT:  # whose data SHOULD be ignored
            return self._refuse(option, c.REP_ERR_TOO_BIG, f"option data exceeds {OPTION_BYTES_MAX} bytes")
        return handler(option, data or b"")

    @property
    def _fixed(self) -> bool:
        return bool((self._client_flags or 0) & c.FLAG_C_FIXED_NEWSTYLE)

    @property
    def _tls_missing(self) -> bool:
        return self._tls_mode is TlsMode.REQUIRE and not self._encrypted

    def _find(self, name: str) -> Export | None:
        if not name and self._default_export is not None:
            name = self._default_export
        export = self._exports.get(name)
        if export is not None:
            _ = export.size_bytes  # `BackendError`: it is not known yet
        return export

    def _choose(self, export: Export, name: str) -> None:
        contexts: tuple[tuple[int, str], ...] = ()
        if self._selected is not None and self._selected[0] == name:  # "Metadata querying": the same name
            contexts = self._selected[1]
        early = bytes(self._buffer)
        self._buffer.clear()
        self.outcome = Chosen(export, self._structured, contexts, early)

    def _end(self, reason: str, *, clean: bool = False) -> bytes:
        self.outcome = Ended(reason, clean)
        self._buffer.clear()
        return b""

    def _refuse(self, option: int, kind: int, message: str) -> bytes:
        return option_reply(option, kind, message[:MESSAGE_CHARS_MAX].encode())

    # -- the options -----------------------------------------------------------------------------------------

    def _export_name(self, data: bytes) -> bytes:
        """NBD_OPT_EXPORT_NAME: it cannot be refused, only answered or cut off."""
        if self._tls_missing:
            return self._end("EXPORT_NAME without TLS, which this server requires")
        if self.shutting_down:
            return self._end("EXPORT_NAME while the server is shutting down")
        try:
            name = parse_name(data)
        except OptionError as error:
            return self._end(f"EXPORT_NAME: {error}")
        export = self._find(name)
        if export is None:
            return self._end(f"there is no export named {name!r}")
        flags = transmission_flags(read_only=export.read_only, structured=self._structured)
        self._choose(export, name)
        reply = _EXPORT_NAME_REPLY.pack(export.size_bytes, flags)
        return reply if (self._client_flags or 0) & c.FLAG_C_NO_ZEROES else reply + c.EXPORT_NAME_PADDING

    def _abort(self, option: int, _data: bytes) -> bytes:
        """NBD_OPT_ABORT: data SHOULD be ignored, ACK MUST be sent."""
        self._end("the client aborted the negotiation", clean=True)
        return option_reply(option, c.REP_ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            raise OptionError("LIST takes no data")
        entries = [
            option_reply(option, c.REP_SERVER, server_entry(name, export.description))
            for name, export in self._exports.items()
        ]
        return b"".join(entries) + option_reply(option, c.REP_ACK)

    def _starttls(self, option: int, data: bytes) -> bytes:
        if data:
            raise OptionError("STARTTLS takes no data")
        if self._encrypted:
            raise OptionError("TLS is running already")
        if self._tls_mode is TlsMode.OFF:
            return self._refuse(option, c.REP_ERR_POLICY, "TLS is not enabled on this server")
        dropped = len(self._buffer)
        self._buffer.clear()
        self.outcome = StartTls(dropped)
        return option_reply(option, c.REP_ACK)

    def _info(self, option: int, data: bytes) -> bytes:
        """NBD_OPT_INFO and NBD_OPT_GO, which differ only in what follows success."""
        request: ExportRequest = parse_export_request(data)
        export = self._find(request.name)
        if export is None:
            return self._refuse(option, c.REP_ERR_UNKNOWN, f"there is no export named {request.name!r}")
        flags = transmission_flags(read_only=export.read_only, structured=self._structured)
        infos = [info_export(export.size_bytes, flags)]
        if c.INFO_NAME in request.wanted:
            infos.append(info_text(c.INFO_NAME, export.name))
        if c.INFO_DESCRIPTION in request.wanted and export.description:
            infos.append(info_text(c.INFO_DESCRIPTION, export.description))
        if c.INFO_BLOCK_SIZE in request.wanted:
            infos.append(info_block_size())
        if option == c.OPT_GO:
            self._choose(export, request.name)
        replies = [option_reply(option, c.REP_INFO, info) for info in infos]
        return b"".join(replies) + option_reply(option, c.REP_ACK)

    def _structured_reply(self, option: int, data: bytes) -> bytes:
        if data:
            raise OptionError("STRUCTURED_REPLY takes no data")
        self._structured = True
        return option_reply(option, c.REP_ACK)

    def _meta_context(self, option: int, data: bytes) -> bytes:
        """NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT; a failed SET clears the selection too."""
        setting = option == c.OPT_SET_META_CONTEXT
        if setting:
            self._selected = None
        if not self._structured:
            raise OptionError("meta contexts need structured replies, negotiated first")
        request: MetaRequest = parse_meta_request(data)
        export = self._find(request.name)
        if export is None:
            return self._refuse(option, c.REP_ERR_UNKNOWN, f"there is no export named {request.name!r}")
        available = export.meta_contexts()
        if setting:
            names = matching_contexts(list(available), request.queries, wildcards=False)
            numbered = tuple(enumerate(names, start=1))
            self._selected = (request.name, tuple((number, available[name]) for number, name in numbered))
        else:  # "NBD_OPT_LIST_META_CONTEXT": no query means all; the ids are reserved and zero
            names = (
                matching_contexts(list(available), request.queries, wildcards=True)
                if request.queries
                else list(available)
            )
            numbered = tuple((0, name) for name in names)
        replies = [
            option_reply(option, c.REP_META_CONTEXT, _U32.pack(number) + name.encode())
            for number, name in numbered
        ]
        return b"".join(replies) + option_reply(option, c.REP_ACK)


def _name(option: int) -> str:
    return c.OPTION_NAMES.get(option, str(option))
