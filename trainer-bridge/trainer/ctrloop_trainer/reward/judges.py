"""Zero-shot judges: a multimodal model behind an HTTP endpoint says which of two creatives shoppers click.

The model gets the product's caption and two pictures, one labelled LEFT and one RIGHT, and answers with one word.
It is never told a click-through rate, an impression count or any other figure of either creative or of the product.
Each pair is asked in both orders and the two answers are averaged, so a judge that prefers a side scores chance.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import math
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .. import spec as specs
from ..errors import BadInputError, InterruptedJobError, JobError
from .judge_api import Answer, Endpoint, Question, RefusedError, TryAgainError, UnsureError, Where
from .judge_budget import Budget
from .judge_cache import Cache

BEFORE_LEFT = "Two advertising pictures of one product: {caption}\n\nLEFT picture:"
BEFORE_RIGHT = "RIGHT picture:"
AFTER = (
    "Which of the two pictures will more shoppers click on when they see it in an online shop? "
    "Answer with one word, LEFT or RIGHT."
)
CAPTION_CHARS = 500  # the rest is cut: one product with a novel for a title must not break the cost estimate
GRAIN = 4096  # probabilities are multiples of 1/GRAIN, so that (p + 1 - p) / 2 is exactly 0.5 in floating point
CUT = ("length", "max_tokens")  # finish reasons of an answer that max_tokens ended: raise it if these are many
MASS = 0.5  # of the two words at the answering token: below, log-probabilities say nothing about them


class JudgeUnavailableError(InterruptedJobError):
    """The endpoint does not answer; what it has answered is cached, the same command goes on from there."""


class CostCapError(JobError):
    """max_cost_usd would be exceeded; what is answered is cached."""

    exit_code = BadInputError.exit_code


@dataclasses.dataclass
class Settings:
    """One judge of the evaluate job's `judges`."""

    judge: str = ""  # "openai:BASE_URL:MODEL" or "anthropic:BASE_URL:MODEL"
    name: str = ""  # of its row; empty: the model's name
    key_env: str = ""  # environment variable with the key; empty: OPENAI_API_KEY or ANTHROPIC_API_KEY
    usd_per_million_input: float = -1.0  # price of input tokens; negative: not given, allowed on this machine only
    usd_per_million_output: float = -1.0  # price of output tokens, thinking included
    max_cost_usd: float = 5.0  # no request is sent that could take the cost of this run's pairs above it
    max_pairs: int = 0  # judge at most so many pairs, chosen by hash of their content; 0: all
    concurrency: int = 4  # requests under way at once
    timeout_s: float = 60.0  # of one request
    attempts: int = 6  # for one answer, the first included
    backoff_s: float = 1.0  # before the second attempt; doubles, with jitter, unless the server says Retry-After
    max_wait_s: float = 120.0  # longest wait; a server that asks for more counts as unavailable
    max_tokens: int = 1024  # of an answer: one word, but models that think before they answer count that in
    send_px: int = 384  # smaller pictures are enlarged to it: vendors advise against less than 200 px
    logprobs: bool = True  # ask for them where the form has them: a probability says more than a word
    certainty: float = 0.75  # what a bare word counts as; accuracy does not depend on it, log-loss does
    guess_tokens: int = 20_000  # input of a request until the first answer says what one takes
    extra: dict = dataclasses.field(default_factory=dict)  # further fields of the request, such as thinking, effort


def parse(entry: str | dict[str, Any]) -> tuple[Settings, Where]:
    """Checks one entry of `judges` without touching network or environment; BadInputError lists every problem."""
    if isinstance(entry, str):
        entry = {"judge": entry}
    if not isinstance(entry, dict):
        raise BadInputError(f"a judge must be a text or an object, got {entry!r}")
    try:
        s: Settings = specs.hyper(Settings, entry)
    except BadInputError as e:
        raise BadInputError(str(e).replace("hyper.", "judges.")) from e
    where = Where.parse(s.judge)
    problems = [
        f"judges.{k}: must be above 0, got {getattr(s, k)}"
        for k in ("concurrency", "timeout_s", "attempts", "max_tokens", "send_px", "guess_tokens")
        if not getattr(s, k) > 0
    ]
    if not 0.5 < s.certainty < 1:
        problems.append(f"judges.certainty: must be above 0.5 and below 1, got {s.certainty}")
    if not (math.isfinite(s.max_cost_usd) and s.max_cost_usd >= 0):
        problems.append(f"judges.max_cost_usd: must be a number of dollars, got {s.max_cost_usd}")
    for k in ("usd_per_million_input", "usd_per_million_output"):
        if getattr(s, k) < 0 and not where.local:
            problems.append(f"judges.{k}: missing, {where.model} is paid by the token: look up its price (0 if free)")
    if problems:
        raise BadInputError("the judge is not usable:\n  " + "\n  ".join(problems))
    return s, where


def check_all(entries: list[str | dict[str, Any]]) -> None:
    """Checks all entries, keys and equal names included, before anything is trained or paid for."""
    names = []
    for entry in entries:
        s, where = parse(entry)
        _endpoint(s, where)
        names.append(s.name or where.model)
    if twice := {n for n in names if names.count(n) > 1}:
        raise BadInputError(f"two judges are called {min(twice)}: give one of them another name (judges.name)")


def _endpoint(s: Settings, where: Where) -> Endpoint:
    return Endpoint(where, s.max_tokens, s.logprobs, s.extra, s.key_env, s.timeout_s)


def build(
    entry: str | dict[str, Any],
    cache: Path,
    check: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] | None = None,
) -> "Judge":
    """The judge of one entry. cache is a folder; check is called between answers and may raise to stop."""
    settings, where = parse(entry)
    return Judge(settings, where, cache, check, sleep)


def side(text: str) -> float | None:
    """1.0 for LEFT, 0.0 for RIGHT, None for anything else.

    The word must stand alone as the whole answer, its first line or its last line ("Answer: LEFT" counts); markers
    of thinking and boxing around it are dropped. First and last line that contradict each other say nothing.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    text = re.sub(r"<\|[^|<>]*\|>", "", text)
    lines = [line for line in (x.strip() for x in text.splitlines()) if line]
    said = {_word(line) for line in (lines[:1] + lines[-1:])} - {None}
    return said.pop() if len(said) == 1 else None


def _word(line: str) -> float | None:
    bare = re.sub(r"[\s*_\"'`.:!()\[\]#]+", " ", line).strip().lower().removeprefix("answer ")
    return {"left": 1.0, "right": 0.0}.get(bare)


def probability(answer: Answer | None, certainty: float) -> float | None:
    """P(the picture shown as LEFT wins) that an answer expresses, None if it expresses none."""
    if answer is None or (word := side(answer.text)) is None:
        return None
    p = certainty if word else 1 - certainty
    # Log-probabilities count when the word was the whole answer: inside a sentence "left" may mean anything.
    if answer.first and _word(answer.text) is not None and sum(answer.first) >= MASS:
        p = answer.first[0] / sum(answer.first)
    return round(p * GRAIN) / GRAIN


def _budget(s: Settings) -> Budget:
    prices = s.usd_per_million_input, s.usd_per_million_output
    return Budget(prices, s.max_cost_usd, s.max_tokens, s.guess_tokens)


class _Unit(NamedTuple):
    """One request: a pair in one order."""

    pair: int
    swapped: bool
    key: str


@dataclasses.dataclass
class _Outcome:
    """What became of a unit: an answer (None: content refused), or an error, or neither (the cap, a stop)."""

    answered: bool = False
    answer: Answer | None = None
    requests: int = 0
    lost: int = 0  # requests that may have been charged without an answer
    error: JobError | None = None


@dataclasses.dataclass
class Judged:
    """Both orders of n pairs, averaged."""

    p_left: np.ndarray  # (n,) 0.5: abstained; NaN: not asked
    forward: np.ndarray  # (n,) as asked first; NaN: no usable answer
    backward: np.ndarray  # (n,) P(left) when asked with the sides exchanged
    cost_usd: float  # of this run's pairs, whenever they were paid, lost requests included
    paid_now_usd: float
    why_missing: str  # empty when nothing is
    counts: dict[str, int]  # requests, from_cache, lost_requests, unparseable, refused, cut, input_ and output_tokens

    @property
    def swap_consistency(self) -> float:
        """Share of the pairs with two opinions whose winner does not depend on the order; 1.0 without any."""
        f, b = self.forward, self.backward
        with np.errstate(invalid="ignore"):
            both = ((f > 0.5) | (f < 0.5)) & ((b > 0.5) | (b < 0.5))
        return float(np.mean((f[both] > 0.5) == (b[both] < 0.5))) if both.any() else 1.0

    @property
    def left_share(self) -> float:
        """Share of the opinions that say LEFT: 0.5 without a preference for a side, NaN without opinions."""
        x = np.concatenate([self.forward, self.backward])
        x = x[np.isfinite(x) & (x != 0.5)]
        return float(np.mean(x > 0.5)) if len(x) else math.nan

    def about(self) -> dict[str, Any]:
        """For metrics and the table."""
        missing = int(np.isnan(self.p_left).sum())
        share = self.left_share
        return {
            "pairs_judged": len(self.p_left) - missing,
            "pairs_missing": missing,
            "why_missing": self.why_missing,
            "swap_consistency": self.swap_consistency,
            "left_share": share if math.isfinite(share) else None,
            "cost_usd": self.cost_usd,
            "paid_now_usd": self.paid_now_usd,
            **self.counts,
        }


class Judge:
    """Asks one endpoint about pairs; implements reward.scorer.PairScorer. Close it, or use it with `with`."""

    def __init__(
        self,
        settings: Settings,
        where: Where,
        cache: Path,
        check: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] | None = None,
    ):
        s = self.settings = settings
        self.name, self._check = s.name or where.model, check
        self._endpoint = _endpoint(s, where)
        self._identity = self._endpoint.identity()
        slug = re.sub(r"[^\w.-]+", "-", where.model)[:60]
        self._cache = Cache(Path(cache) / f"{slug}-{self._identity[:8]}.jsonl")
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait

    def close(self) -> None:
        """Releases the cache."""
        self._cache.close()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def p_left(self, captions: Sequence[str], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(left wins) in the order given, 0.5 where the judge said nothing usable; CostCapError if not all fit."""
        judged = self._judge(captions, left, right, orders=(False,))
        if np.isnan(judged.p_left).any():
            raise CostCapError(judged.why_missing)
        return judged.p_left

    def judge(self, captions: Sequence[str], left: np.ndarray, right: np.ndarray) -> Judged:
        """Both orders of every pair, pair by pair, so that what a cap leaves is whole; images uint8 (n, px, px, 3)."""
        return self._judge(captions, left, right, orders=(False, True))

    def _judge(self, captions: Sequence[str], left: np.ndarray, right: np.ndarray, orders: tuple[bool, ...]) -> Judged:
        texts = [" ".join(c.split())[:CAPTION_CHARS] for c in captions]
        if not all(texts):
            raise BadInputError("empty caption: a judge is told what the product is, give at least a title")
        self._stop.clear()
        run = _Run(self.settings, self._cache)
        units = self._units(texts, left, right, orders)
        # By key: two pairs of the same pictures and caption are one question.
        todo = {u.key: u for u in units if not run.take_cached(u)}.values()
        questions = ((u, self._question(u, texts, left, right)) for u in todo)
        self._ask(run, questions)
        return run.judged(len(texts), units, orders)

    def _units(self, texts: list[str], left: np.ndarray, right: np.ndarray, orders: tuple[bool, ...]) -> list[_Unit]:
        digests = [[hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest() for x in s] for s in (left, right)]
        pairs = list(range(len(texts)))
        if 0 < self.settings.max_pairs < len(pairs):
            by = [hashlib.sha256(f"{texts[i]}/{digests[0][i]}/{digests[1][i]}".encode()).digest() for i in pairs]
            pairs = sorted(sorted(pairs, key=by.__getitem__)[: self.settings.max_pairs])
        units = []
        for i in pairs:
            for swapped in orders:
                a, b = (digests[1][i], digests[0][i]) if swapped else (digests[0][i], digests[1][i])
                what = (self._identity, *_prompt(texts[i]), a, b, str(left[i].shape), str(self.settings.send_px))
                units.append(_Unit(i, swapped, hashlib.sha256("\x00".join(what).encode()).hexdigest()))
        return units

    def _question(self, u: _Unit, texts: list[str], left: np.ndarray, right: np.ndarray) -> Question:
        a, b = (right, left) if u.swapped else (left, right)
        px = self.settings.send_px
        return Question(_prompt(texts[u.pair]), _png(a[u.pair], px), _png(b[u.pair], px))

    def _ask(self, run: "_Run", questions: Iterator[tuple[_Unit, Question]]) -> None:
        """At most `concurrency` requests at once; answers are cached as they come, also when something stops us."""
        under_way: dict[concurrent.futures.Future, _Unit] = {}
        failed: JobError | None = None
        with concurrent.futures.ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                while True:
                    self._check()
                    while not run.capped and len(under_way) < self.settings.concurrency:
                        if (next_ := next(questions, None)) is None:
                            break
                        under_way[pool.submit(self._attempts, run.budget, *next_)] = next_[0]
                    if not under_way:
                        break
                    # The timeout only bounds how long a SIGTERM waits to be noticed.
                    done, _ = concurrent.futures.wait(under_way, 1.0, concurrent.futures.FIRST_COMPLETED)
                    failed = failed or run.take(done, under_way)
                    if failed:
                        raise failed
            finally:
                # What is under way is paid for: wait for it and keep it.
                self._stop.set()
                run.budget.wake()
                run.take(concurrent.futures.wait(under_way).done, under_way)

    def _attempts(self, budget: Budget, u: _Unit, q: Question) -> _Outcome:
        """One answer, in a worker thread."""
        o, s, said = _Outcome(), self.settings, ""
        jitter = random.Random(u.key)
        for attempt in range(s.attempts):
            promised = budget.reserve(self._stop.is_set)
            if promised is None:
                return o
            o.requests += 1
            after = None
            try:
                o.answer = self._endpoint.send(q)
                o.answered = True
                budget.settle(promised, budget.cost(o.answer), o.answer)
                return o
            except RefusedError:
                o.answered = True
                budget.settle(promised, 0.0)
                return o
            except TryAgainError as e:
                lost = isinstance(e, UnsureError)
                o.lost += lost
                budget.settle(promised, promised if lost else 0.0)
                said, after = str(e), e.after
            except JobError as e:
                budget.settle(promised, 0.0)
                o.error = e
                return o
            wait = s.backoff_s * 2**attempt * (0.5 + jitter.random()) if after is None else after
            if wait > s.max_wait_s and after is not None:
                said += f"; it asks to wait {after:.0f} s"
                break
            if attempt + 1 < s.attempts:
                self._sleep(min(wait, s.max_wait_s))
        if not self._stop.is_set():
            o.error = JudgeUnavailableError(
                f"the judge {self.name} gave no answer in {o.requests} attempts: {said}; "
                "answers so far are cached, run the same command again to go on"
            )
        return o


class _Run:
    """Book-keeping of one call: answers by key, money, counts."""

    def __init__(self, s: Settings, cache: Cache):
        self._s, self._cache, self.budget = s, cache, _budget(s)
        self._answers: dict[str, Answer | None] = {}
        self._requests = self._lost = self._cached = 0
        self._before = 0.0
        self.capped = False

    def take_cached(self, u: _Unit) -> bool:
        """Books what the cache holds for a unit; whether that is its answer."""
        if u.key in self._answers:
            return True
        lost = self._cache.lost(u.key)
        if lost:
            self.budget.lose(lost)
            self._lost += lost
        if u.key in self._cache:
            self._answers[u.key] = self._cache[u.key]
            self._cached += 1
            self.budget.book(self._answers[u.key])
        self._before = self.budget.spent
        return u.key in self._answers

    def take(
        self, done: set[concurrent.futures.Future], under_way: dict[concurrent.futures.Future, _Unit]
    ) -> JobError | None:
        """Caches finished units; the first error among them, if any."""
        error = None
        for future in done:
            u, o = under_way.pop(future), future.result()
            self._requests += o.requests
            if o.lost:
                self._lost += o.lost
                self._cache.put_lost(u.key, o.lost)
            if o.answered:
                self._answers[u.key] = o.answer
                self._cache.put(u.key, o.answer)
            elif o.error is None:
                self.capped = True
            error = error or o.error
        return error

    def judged(self, n: int, units: list[_Unit], orders: tuple[bool, ...]) -> Judged:
        """The result over n pairs."""
        said = {False: np.full(n, np.nan), True: np.full(n, np.nan)}
        asked = np.zeros(n, int)
        unparseable = refused = 0
        for u in units:
            if u.key not in self._answers:
                continue
            asked[u.pair] += 1
            answer = self._answers[u.key]
            p = probability(answer, self._s.certainty)
            refused += answer is None
            unparseable += answer is not None and p is None
            said[u.swapped][u.pair] = np.nan if p is None else p
        forward, backward = (np.where(np.isnan(x), 0.5, x) for x in (said[False], said[True]))
        p_left = (forward + 1 - backward) / 2 if len(orders) == 2 else forward
        whole = asked == len(orders)
        answers = [a for a in self._answers.values() if a is not None]
        counts = {
            "requests": self._requests,
            "from_cache": self._cached,
            "lost_requests": self._lost,
            "unparseable": int(unparseable),
            "refused": int(refused),
            "cut": sum(a.finish in CUT for a in answers),
            "input_tokens": sum(a.input_tokens or 0 for a in answers),
            "output_tokens": sum(a.output_tokens or 0 for a in answers),
        }
        spent = self.budget.spent
        why = self._why(n, units, whole, orders)
        return Judged(
            np.where(whole, p_left, np.nan), said[False], said[True], spent, spent - self._before, why, counts
        )

    def _why(self, n: int, units: list[_Unit], whole: np.ndarray, orders: tuple[bool, ...]) -> str:
        why = []
        chosen = len({u.pair for u in units})
        if chosen < n:
            why.append(f"max_pairs {chosen} of {n} pairs")
        left = chosen - int(whole.sum())
        if left:
            s, each = self._s, self.budget.spent / max(1, len(self._answers)) or self.budget.promise()
            why.append(
                f"max_cost_usd {s.max_cost_usd:g} would be exceeded: {chosen - left} of {chosen} pairs are judged for "
                f"{self.budget.spent:.4f} USD, {left} are missing and need about {left * len(orders) * each:.4f} USD "
                f"more (the next request could cost up to {self.budget.promise():.4f}); raise max_cost_usd and run "
                "again, what is answered is cached"
            )
        return "; ".join(why)


def _prompt(text: str) -> tuple[str, str, str]:
    return BEFORE_LEFT.format(caption=text), BEFORE_RIGHT, AFTER


def _png(image: np.ndarray, px: int) -> bytes:
    """PNG of a picture, enlarged to px on its longer side if it is smaller."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    longest = max(picture.size)
    if longest < px:
        size = tuple(max(1, round(x * px / longest)) for x in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
