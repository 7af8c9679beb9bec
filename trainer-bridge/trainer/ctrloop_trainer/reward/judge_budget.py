"""What judges may cost: counted before a request is sent, not after."""

import math
import threading
from collections.abc import Callable

from .judge_api import Answer


class Budget:
    """Dollars: what is spent, what is promised to requests under way, and whether one more fits. Thread-safe.

    A promise is the most that a request can cost: a quarter more input than the largest seen so far (until one is
    seen: guess_tokens, and one request at a time), and max_tokens of output, which the server enforces.
    """

    def __init__(self, usd_per_million: tuple[float, float], cap: float, max_tokens: int, guess_tokens: int):
        """Prices are of input and output tokens; a negative one was not given and counts as nothing."""
        self._rates = max(0.0, usd_per_million[0]) / 1e6, max(0.0, usd_per_million[1]) / 1e6
        self._cap, self._max_tokens, self._guess = cap, max_tokens, guess_tokens
        self._changed = threading.Condition()
        self._largest: int | None = None
        self._promised: list[float] = []
        self.spent = 0.0

    def cost(self, answer: Answer | None) -> float:
        """Of one answer; what the server did not count is taken at its most."""
        if answer is None:
            return 0.0
        tokens = answer.input_tokens, answer.output_tokens
        most = self._largest or self._guess, self._max_tokens
        return sum(r * (m if t is None else t) for r, t, m in zip(self._rates, tokens, most, strict=True))

    def promise(self) -> float:
        """The most that the next request can cost."""
        tokens = math.ceil(1.25 * self._largest) if self._largest else self._guess
        return tokens * self._rates[0] + self._max_tokens * self._rates[1]

    def book(self, answer: Answer | None) -> None:
        """An answer from the cache."""
        with self._changed:
            self._settle(self.cost(answer), answer)

    def reserve(self, stopped: Callable[[], bool]) -> float | None:
        """Waits until a request fits and promises it; None when it does not fit and nothing is under way."""
        with self._changed:
            while not stopped():
                p = self.promise()
                alone = not self._promised
                if self.spent + sum(self._promised) + p <= self._cap and (alone or self._largest or not p):
                    self._promised.append(p)
                    return p
                if alone:
                    return None
                self._changed.wait()
        return None

    def settle(self, promised: float, spent: float, answer: Answer | None = None) -> None:
        """The request is over: its promise becomes what it did cost."""
        with self._changed:
            self._promised.remove(promised)
            self._settle(spent, answer)

    def lose(self, requests: int) -> None:
        """Requests of an earlier run that may have been charged: counted at the most that one can cost."""
        with self._changed:
            self._settle(requests * self.promise(), None)

    def _settle(self, spent: float, answer: Answer | None) -> None:
        self.spent += spent
        if answer is not None and answer.input_tokens:
            self._largest = max(self._largest or 0, answer.input_tokens)
        self._changed.notify_all()

    def wake(self) -> None:
        """Lets waiting threads look whether they were stopped."""
        with self._changed:
            self._changed.notify_all()
