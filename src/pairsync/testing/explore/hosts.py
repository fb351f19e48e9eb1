"""Hosts as values: a decider's state can be put away, compared and taken up again.

One input is worked on by the very `Decider` that runs in production; what came of it, the next state and the
outcomes, is remembered for this state and this input, so that an exploration pays for each once.  Everything
that occurs in worlds is kept in tables, and worlds are made of small numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import Accepted, InForce, Own, PersistAcceptor, Promise, SendPeer
from pairsync.core.decider import Decider
from pairsync.core.footing import Footing
from pairsync.core.outcomes import Outcome
from pairsync.core.register import Register
from pairsync.errors import InternalError

__all__ = ["Frozen", "Table", "Violation", "Worked", "Worker", "freeze", "thaw"]

K = TypeVar("K", bound=Hashable)

Frozen: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]
"""The fields of a decider and of its register, in the order of their slots."""

_REGISTER_FIELDS = tuple(Register.__slots__)
_DECIDER_FIELDS = tuple(name for name in Footing.__slots__ if name != "register")


class Violation(Exception):
    """A rule does not hold; the first word of the message names it."""


class Table(Generic[K]):
    """Values under numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.values: list[K] = []
        self._numbers: dict[K, int] = {}

    def number(self, value: K) -> int:
        """The number of an equal value."""
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found


def freeze(decider: Decider) -> Frozen:
    """The state as a hashable value."""
    register = decider.register
    return (
        tuple([getattr(register, name) for name in _REGISTER_FIELDS]),
        tuple([getattr(decider, name) for name in _DECIDER_FIELDS]),
    )


def thaw(frozen: Frozen) -> Decider:
    """A decider in that state."""
    register = object.__new__(Register)
    for name, value in zip(_REGISTER_FIELDS, frozen[0], strict=True):
        setattr(register, name, value)
    decider = object.__new__(Decider)
    decider.register = register
    for name, value in zip(_DECIDER_FIELDS, frozen[1], strict=True):
        setattr(decider, name, value)
    return decider


class Worked(NamedTuple):
    """What came of an input: the state, what was wanted, and what is on the disk.

    ``refused``: the input was declined (`Decider.peer_in`, `move`); nothing has changed.
    """

    state: int
    outcomes: tuple[Outcome, ...]
    disk: AcceptorState
    refused: bool


class Worker:
    """Keeps states under numbers, and what inputs make of them."""

    def __init__(self) -> None:
        self.states: Table[Frozen] = Table()
        self.deciders: list[Decider] = []
        """By the number of their state; to look at, never to be given an input."""

    def _number(self, decider: Decider) -> int:
        number = self.states.number(freeze(decider))
        if number == len(self.deciders):
            self.deciders.append(decider)
        return number

    def begin(self, make: Callable[[], Decider]) -> Worked:
        """A host that comes up, its volumes open."""
        decider = make()
        disk = decider.register.acceptor
        outcomes = [*decider.start(), *decider.is_ready(ready=True)]
        return Worked(self._number(decider), tuple(outcomes), _durable(disk, outcomes), refused=False)

    def work(self, state: int, verb: str, *arguments: Any) -> Worked:
        """Call the decider's method ``verb``."""
        decider = thaw(self.states.values[state])
        disk = decider.register.acceptor
        try:
            answer = getattr(decider, verb)(*arguments)
        except InternalError as error:
            raise Violation(f"raised: {verb} {arguments}: {error}") from error
        if isinstance(answer, tuple):  # of `move`
            refusal, outcomes = answer
            refused = bool(refusal)
        else:
            outcomes, refused = answer or [], answer is None
        return Worked(self._number(decider), tuple(outcomes), _durable(disk, outcomes), refused)


def _durable(disk: AcceptorState, outcomes: list[Outcome]) -> AcceptorState:
    """What is on the disk in the end; nothing may be said or done that rests on more than was on it then."""
    for outcome in outcomes:
        if isinstance(outcome, PersistAcceptor):
            disk = outcome.state
        elif isinstance(outcome, InForce | Own) and outcome.grant != disk.base:
            raise Violation(f"durable: {outcome} and on the disk is {disk.base}")
        elif isinstance(outcome, SendPeer):
            _check_said(disk, outcome)
    return disk


def _check_said(disk: AcceptorState, sent: SendPeer) -> None:
    message = sent.message
    if message.base != disk.base:
        raise Violation(f"durable: {message} and on the disk is {disk.base}")
    if isinstance(message, Promise) and disk.promised < message.ballot:
        raise Violation(f"durable: {message} and promised on the disk is {disk.promised}")
    if isinstance(message, Accepted) and disk.accepted_ballot != message.ballot:
        raise Violation(f"durable: {message} and accepted on the disk is {disk.accepted_ballot}")
