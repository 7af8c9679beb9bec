"""Sampling: each row of a batch by its own request's settings and random numbers."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from .chat import ChatRequest, Choice
from .errors import ApiError


class Sampler:
    """Chooses one token for each row of a batch and keeps score; given to `generate` as its logits processor.

    Every row has its own temperature, cuts and random numbers: row (request, choice) draws from a generator keyed by
    (request's seed, choice), by inverse transform in the order of the vocabulary, so that an answer does not depend on
    which other requests share its batch (beyond rounding of the logits). The choice is handed on by masking all else.
    """

    def __init__(
        self,
        rows: list[tuple[int, ChatRequest, int]],
        max_new: int,
        eos: set[int],
        limits: list[int],
        finished: Callable[[int, list[Choice]], None] | None = None,
    ):
        """rows are (number of the request, request, choice); finished is called with a request's number and choices
        once all of them have ended."""
        self.rows, self.eos, self.limits, self.finished = rows, eos, limits, finished
        self._open = Counter(i for i, _, _ in rows)  # choices that a request is still waiting for
        reqs = [r for _, r, _ in rows]
        self.temperature = torch.tensor([r.temperature for r in reqs], dtype=torch.float32)
        self.greedy = self.temperature < 1e-5
        self.top_p = torch.tensor([r.top_p for r in reqs], dtype=torch.float32)[:, None]
        self.min_p = torch.tensor([r.min_p for r in reqs], dtype=torch.float32)[:, None]
        self.top_k = torch.tensor([r.top_k for r in reqs])[:, None]
        self.uniform = torch.from_numpy(np.stack([self._draw(r, choice, max_new) for _, r, choice in rows]))
        self.choices = [Choice([], "length", []) for _ in rows]
        self.done = torch.zeros(len(rows), dtype=torch.bool)
        self.want_logprobs = any(r.logprobs for r in reqs)
        self.step = 0

    @staticmethod
    def _draw(r: ChatRequest, choice: int, k: int) -> np.ndarray:
        seed = secrets.randbits(64) if r.seed is None else r.seed & (1 << 64) - 1
        return np.random.Generator(np.random.Philox(key=[seed, choice])).random(k)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        if not torch.isfinite(scores).any(dim=-1).all():
            raise ApiError(500, "InternalServerError", "the model's logits are not finite: its weights are broken")
        token = scores.argmax(-1)
        if not self.greedy.all():
            token = torch.where(self.greedy, token, self._sample(scores))
        logprobs = torch.log_softmax(scores, -1) if self.want_logprobs else None
        self._record(token.tolist(), logprobs)
        out = torch.full_like(scores, -torch.inf)
        out.scatter_(1, token[:, None], 0.0)
        self.step += 1
        return out

    def _sample(self, scores: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(scores / self.temperature.clamp_min(1e-5)[:, None], -1)
        p = torch.where(p < self.min_p * p.amax(-1, keepdim=True), 0.0, p)
        if (self.top_p < 1).any() or (self.top_k > 0).any():
            ranked, order = p.sort(-1, descending=True)
            before = ranked.cumsum(-1) - ranked
            cut = before >= self.top_p * p.sum(-1, keepdim=True)
            cut |= (self.top_k > 0) & (torch.arange(p.shape[1])[None] >= self.top_k)
            p = torch.zeros_like(p).scatter_(1, order, ranked.masked_fill(cut, 0.0))
        c = p.double().cumsum(-1)
        u = self.uniform[:, self.step, None] * c[:, -1:]
        # right=True takes the first token whose cumulative mass exceeds u, so one of mass 0 is never taken.
        return torch.searchsorted(c, u, right=True)[:, 0].clamp_max(p.shape[1] - 1)

    def _record(self, tokens: list[int], logprobs: torch.Tensor | None) -> None:
        for i, t in enumerate(tokens):
            if self.done[i]:
                continue
            number, req, index = self.rows[i]
            if req.cancelled:  # nobody reads it: its row is padding from here on
                self.done[i] = True
                continue
            c = self.choices[i]
            if req.logprobs:
                v, ids = logprobs[i].topk(req.top_logprobs) if req.top_logprobs else (torch.empty(0), torch.empty(0))
                c.logprobs.append((t, float(logprobs[i, t]), list(zip(ids.tolist(), v.tolist(), strict=True))))
            if t in self.eos:
                c.finish_reason = "stop"
                self._end(i, number)
                continue
            c.tokens.append(t)
            if req.on_token:
                req.on_token(index, c.tokens)
            if len(c.tokens) >= self.limits[i]:
                self._end(i, number)

    def _end(self, row: int, number: int) -> None:
        self.done[row] = True
        self._open[number] -= 1
        if self.finished and not self._open[number]:
            self.finished(number, [c for c, (n, _, _) in zip(self.choices, self.rows, strict=True) if n == number])

    def stopping(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Stopping criterion: rows that have reached their end or their own max_tokens."""
        return self.done
