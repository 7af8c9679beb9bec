"""The engine: one thread that owns the model and does everything to it, one operation at a time.

A second thread prepares requests (chat template, tokens, pictures), so that what is refused costs the model's thread
nothing. Whatever a client can make long is bounded before work is done for it: text by its bytes before it is
tokenised, pictures by their declared pixels before they are decoded, prompts by their tokens before they are batched,
batches by the tokens that padding makes of them, waiting by rows and bytes, and of one client by a share of these.
Clients take turns (queue.FairQueue), and what nobody waits for any more is not computed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import torch

from ..weights import adapter_problem
from .adapters import Adapter, adapter_digest, check_adapter
from .chat import ChatRequest, ChatResult, Choice, Prepared, decoded
from .errors import ApiError, add_lora_failed, bad_request, invalid_input
from .queue import FairQueue
from .sampler import Sampler

# Beyond these the server answers 503. One client may have a quarter of each: the others find room.
MAX_WAITING_ROWS = 65536  # answers waiting for the engine
MAX_WAITING_BYTES = 512 << 20  # of request bodies that wait to be prepared
CLIENT_SHARE = 4
# No tokenizer makes tokens of more bytes on average: a text beyond this times the context's tokens cannot fit.
BYTES_PER_TOKEN = 16
READY_BATCHES = 2  # prepared ahead of the model; the rest waits as it came, where turns are taken


class Engine:
    """Owns the model. Public methods may be called from any thread; `run` is the engine thread."""

    def __init__(self, model_dir: str, served_name: str, threads: int = 1, max_rows: int = 256, max_rank: int = 256):
        # Imported here: the import costs seconds, and --help should not.
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from ..prompt import families
        from ..prompt.markup import Markup

        torch.set_num_threads(threads)
        self.root, self.served_name, self.max_rows, self.max_rank = model_dir, served_name, max_rows, max_rank
        self.created = int(time.time())
        self.processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"  # generation appends on the right
        self.markup = Markup.of(self.processor)
        self.model = AutoModelForImageTextToText.from_pretrained(model_dir, local_files_only=True).eval()
        families.plain_generation(self.model)  # a request's settings are all there is
        self.text_config = self.model.config.get_text_config()
        self.max_len = int(getattr(self.text_config, "max_position_embeddings", 2048))
        self.shapes = {
            n: (m.out_features, m.in_features) for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)
        }
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        self.eos = set(eos if isinstance(eos, list) else [eos]) - {None}
        self.pad = next(t for t in (self.tokenizer.pad_token_id, *self.eos, 0) if t is not None)
        self.peft = None
        self.adapters: dict[str, Adapter] = {}  # replaced, never changed: the event loop reads it
        self.used: dict[str, str] = {}  # name -> digest of what it has ever meant
        self._counter = 0
        self.family, self._join = families.of(self.model), families.join
        self.max_text = BYTES_PER_TOKEN * self.max_len  # bytes of a prompt's texts
        self.max_batch_tokens = max_rows * min(self.max_len, 1024)  # of a batch, padding included
        self._lock = threading.Condition()
        self._incoming = FairQueue()  # not prepared yet
        self._ready = FairQueue()
        self._ops: deque[tuple[Callable, Callable]] = deque()
        # By client, and of all under None: answers that are waited for, and bytes of requests not prepared yet.
        self._rows_waiting: Counter[str | None] = Counter()
        self._bytes_waiting: Counter[str | None] = Counter()
        self._stopped = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.preparing = threading.Thread(target=self._prepare_all, name="prepare", daemon=True)

    # --- any thread

    def knows(self, model: str) -> bool:
        return model == self.served_name or model in self.adapters

    def require(self, model: str) -> None:
        if not self.knows(model):
            raise ApiError(
                404, "NotFoundError", f"The model `{model}` does not exist. Valid aliases: {self.served_name}.", "model"
            )

    def submit(self, r: ChatRequest) -> None:
        """Queues a request; r.done is called on another thread with its ChatResult or exception, unless the request is
        cancelled before."""
        with self._lock:
            self._check_room(self._rows_waiting, r.client, r.n, MAX_WAITING_ROWS, "answers")
            self._check_room(self._bytes_waiting, r.client, r.size, MAX_WAITING_BYTES, "bytes of requests")
            self._count(self._rows_waiting, r.client, r.n)
            self._count(self._bytes_waiting, r.client, r.size)
            self._incoming.put(r)
            self._lock.notify_all()

    @staticmethod
    def _check_room(waiting: Counter, client: str, more: int, most: int, what: str) -> None:
        if waiting[None] + more > most or waiting[client] + more > most // CLIENT_SHARE:
            told = f"{waiting[None]} {what} are waiting already, {waiting[client]} of them of this client"
            raise ApiError(503, "ServiceUnavailableError", f"{told}, try again later.")

    @staticmethod
    def _count(waiting: Counter, client: str, more: int) -> None:
        for key in (None, client):
            waiting[key] += more
            if not waiting[key]:
                del waiting[key]  # a client that is gone leaves nothing behind

    def start(self) -> None:
        """Starts both threads."""
        self.thread.start()
        self.preparing.start()

    def alive(self) -> bool:
        """Whether both threads run: without either nobody is answered."""
        return self.thread.is_alive() and self.preparing.is_alive()

    def call(self, op: Callable, done: Callable) -> None:
        """Runs op() on the engine thread, ahead of waiting requests, and passes its result or exception to done."""
        with self._lock:
            self._ops.append((op, done))
            self._lock.notify_all()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()

    # --- preparing thread

    def _prepare_all(self) -> None:
        while True:
            with self._lock:
                while not self._stopped and not self._to_prepare():
                    self._lock.wait()
                if self._stopped:
                    return
                first = self._incoming.pop()
                self._count(self._bytes_waiting, first.client, -first.size)
            failure = None
            try:
                if not first.cancelled:
                    self.require(first.model)
                    first.prepared = self.prepare(first)
            except Exception as e:
                failure = e
            with self._lock:
                if first.prepared is not None and not first.cancelled:
                    self._ready.put(first)
                else:
                    self._count(self._rows_waiting, first.client, -first.n)
                self._lock.notify_all()
            if failure is not None and not first.cancelled:
                first.done(failure)

    def _to_prepare(self) -> bool:
        ahead = sum(r.n for r in self._ready)
        return bool(self._incoming) and ahead < READY_BATCHES * self.max_rows

    def prepare(self, r: ChatRequest) -> Prepared:
        """A request as inputs of one row; ApiError when it is longer than the context."""
        from ..errors import BadInputError
        from ..prompt.model import escaped

        images = decoded(r.images)
        try:
            text = self.processor.apply_chat_template(
                escaped(r.messages, self.markup), add_generation_prompt=True, tokenize=False
            )
            # add_special_tokens=False: the chat template writes them, as in vLLM.
            out = self.processor(
                text=[text], images=images or None, add_special_tokens=False, return_tensors="pt", padding=False
            )
            seen = {k: v for k, v in out.items() if not _of_tokens(k)}
            pictures = self.family.split(seen, len(images)) if images else []
        except (ValueError, BadInputError) as e:  # a shape of picture, or a text, that the model's processor refuses
            raise bad_request(f"the prompt cannot be read: {e}", "messages") from e
        r.images = []  # what the model needs of them is in pictures
        length = out["input_ids"].shape[1]
        room = self.max_len - length
        limit = room if r.max_tokens is None else r.max_tokens
        if limit > room or room < 1:
            raise bad_request(
                f"This model's maximum context length is {self.max_len} tokens. However, you requested {limit} "
                f"output tokens and your prompt contains {length} input tokens. Please reduce the length of the "
                "input or max_tokens.",
                "max_tokens",
            )
        return Prepared({k: v[0].tolist() for k, v in out.items() if _of_tokens(k)}, pictures, length, limit)

    # --- engine thread

    def run(self) -> None:
        while True:
            with self._lock:
                while not (self._ops or self._ready or self._stopped):
                    self._lock.wait()
                if self._stopped:
                    return
                op = self._ops.popleft() if self._ops else None
                batch = [] if op else self._take()
            if op:
                try:
                    op[1](op[0]())
                except Exception as e:
                    op[1](e)
            else:
                self._serve(batch)

    def _take(self) -> list[ChatRequest]:
        """The request whose turn it is and those after it that use the same model, in order of turns, up to max_rows
        answers and max_batch_tokens; those whose client has gone are dropped."""
        model, rows, longest = None, 0, 0

        def fits(r: ChatRequest) -> bool:
            nonlocal model, rows, longest
            if r.cancelled:
                return True
            more, long = rows + r.n, max(longest, r.prepared.length + r.prepared.limit)
            if rows and (r.model != model or more > self.max_rows or more * long > self.max_batch_tokens):
                return False
            model, rows, longest = r.model, more, long
            return True

        with self._lock:
            taken = self._ready.take(fits)
            for r in taken:
                self._count(self._rows_waiting, r.client, -r.n)
            self._lock.notify_all()  # there is room to prepare more
        return [r for r in taken if not r.cancelled]

    def _serve(self, batch: list[ChatRequest]) -> None:
        batch = [r for r in batch if not r.cancelled]
        if not batch:
            return
        try:
            self.require(batch[0].model)  # unloaded while it waited
            self.generate(batch)
        except Exception as e:
            if len(batch) == 1 or (isinstance(e, ApiError) and e.code == 404):
                for r in batch:
                    r.done(e)
                return
            for r in batch:  # one bad request must not fail its neighbours
                self._serve([r])

    @torch.inference_mode()
    def generate(self, batch: list[ChatRequest]) -> None:
        """Answers a batch of prepared requests for one model; each one's `done` is called when its answers are whole,
        whoever in the batch is still writing."""
        rows = [(i, r, k) for i, r in enumerate(batch) for k in range(r.n)]
        limits = [r.prepared.limit for _, r, _ in rows]
        told = set()

        def finished(i: int, choices: list[Choice]) -> None:
            told.add(i)
            if not batch[i].cancelled:
                batch[i].done(ChatResult(batch[i].prepared.length, choices))

        sampler = Sampler(rows, max(limits), self.eos, limits, finished)
        try:
            self._generate(batch[0].model, self._inputs([r.prepared for _, r, _ in rows]), sampler, max(limits))
        except Exception as e:
            if not told:
                raise
            for i, r in enumerate(batch):  # some have their answers: the batch cannot be tried again
                if i not in told and not r.cancelled:
                    r.done(e)

    def _inputs(self, rows: list[Prepared]) -> dict[str, torch.Tensor]:
        """Inputs of a batch, one row each: tokens padded on the left, pictures one after the other."""
        longest = max(r.length for r in rows)

        def padded(name: str) -> torch.Tensor:
            fill = self.pad if name == "input_ids" else 0
            return torch.tensor([[fill] * (longest - r.length) + r.tokens[name] for r in rows])

        pictures = [p for r in rows for p in r.pictures]
        return {**{k: padded(k) for k in rows[0].tokens}, **self._join(pictures)}

    def _generate(self, model: str, inputs: dict, sampler: Sampler, max_new: int) -> None:
        from transformers import GenerationConfig

        config = GenerationConfig(
            do_sample=False,  # the sampler has chosen
            max_new_tokens=max_new,
            use_cache=True,
            eos_token_id=sorted(self.eos),
            pad_token_id=self.pad,
        )
        kwargs = {"generation_config": config, "logits_processor": [sampler], "stopping_criteria": [sampler.stopping]}
        if self.peft is None:
            self.model.generate(**inputs, **kwargs)
        elif model == self.served_name:
            with self.peft.disable_adapter():
                self.peft.generate(**inputs, **kwargs)
        else:
            self.peft.set_adapter(self.adapters[model].internal)
            self.peft.generate(**inputs, **kwargs)

    def load(self, name: str, path: str) -> None:
        folder = Path(path)
        if name == self.served_name:
            raise invalid_input(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self.adapters:
            raise invalid_input(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True."
            )
        if not (folder / "adapter_config.json").is_file():
            raise ApiError(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        try:
            keys = check_adapter(folder, self.shapes, self.max_rank)
        except (ValueError, OSError) as e:
            raise add_lora_failed(str(e)) from e
        digest = adapter_digest(folder)
        if self.used.get(name, digest) != digest:
            raise invalid_input(
                f"The lora adapter name '{name}' was used for other weights before: names are never reused."
            )
        self._counter += 1
        internal = f"a{self._counter}"
        self._inject(folder, internal, keys)
        self.used[name] = digest
        self.adapters = {**self.adapters, name: Adapter(name, path, internal, digest, int(time.time()))}

    def _inject(self, folder: Path, internal: str, keys: set[str]) -> None:
        from peft import PeftModel

        try:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=internal).eval()
            else:
                self.peft.load_adapter(folder, internal)
                self.peft.eval()
        except Exception as e:
            self._drop(internal)
            raise add_lora_failed(f"{type(e).__name__}: {e}") from e
        # Requests for other adapters share its batches, and NaN spreads to them.
        if problem := adapter_problem(self.peft, internal):
            self._drop(internal)
            raise invalid_input(f"The lora adapter {problem}.")
        # A layer that the config names and the file lacks would stay as initialised, without a word.
        applied = {
            f"base_model.model.{n.removeprefix('base_model.model.').removesuffix(f'.{internal}.weight')}.weight"
            for n, _ in self.peft.named_parameters()
            if n.endswith(f".{internal}.weight")
        }
        if applied != keys:
            self._drop(internal)
            raise invalid_input(
                f"The lora adapter's adapter_config.json targets {len(applied)} tensors, its file holds {len(keys)}: "
                f"for example '{sorted(applied ^ keys)[0]}' is in only one of them."
            )

    def _drop(self, internal: str) -> None:
        if self.peft is not None and internal in self.peft.peft_config:
            if len(self.peft.peft_config) > 1:
                self.peft.delete_adapter(internal)
            else:  # PEFT keeps at least one: give the plain model back
                self.model, self.peft = self.peft.unload(), None

    def unload(self, name: str) -> None:
        if name not in self.adapters:
            raise ApiError(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        gone = self.adapters[name]
        self.adapters = {k: v for k, v in self.adapters.items() if k != name}
        self._drop(gone.internal)


def _of_tokens(name: str) -> bool:
    """Whether a processor's output has one number a token; the others are of pictures."""
    return name in ("input_ids", "attention_mask") or name.endswith("token_type_ids")
