"""Waiting requests, by client: clients take turns, so that a thousand requests of one delay nobody else by more than
one turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from .chat import ChatRequest


class FairQueue:
    """Requests in the order in which clients take turns. Not for several threads at once: the engine locks."""

    def __init__(self) -> None:
        self._of: dict[str, deque[ChatRequest]] = {}  # by client, whose turn comes first first

    def __bool__(self) -> bool:
        return bool(self._of)

    def put(self, r: ChatRequest) -> None:
        """Adds a request behind those of its client."""
        self._of.setdefault(r.client, deque()).append(r)

    def pop(self) -> ChatRequest:
        """Removes and returns the request whose turn it is."""
        client = next(iter(self._of))
        line = self._of.pop(client)
        r = line.popleft()
        if line:
            self._of[client] = line  # at the end
        return r

    def __iter__(self) -> Iterator[ChatRequest]:
        """Everyone's first request, then everyone's second one, and so on."""
        queues = [list(q) for q in self._of.values()]
        for turn in range(max(map(len, queues), default=0)):
            yield from (q[turn] for q in queues if turn < len(q))

    def take(self, wanted: Callable[[ChatRequest], bool]) -> list[ChatRequest]:
        """Removes and returns the requests for which wanted is true, asked in order of turns; those clients whose
        request was taken go to the end of the line."""
        taken = [r for r in self if wanted(r)]
        gone = {id(r) for r in taken}
        served = dict.fromkeys(r.client for r in taken)
        line = [*(c for c in self._of if c not in served), *served]
        left = {c: deque(r for r in self._of[c] if id(r) not in gone) for c in line}
        self._of = {c: q for c, q in left.items() if q}
        return taken
