"""The engine: one thread that owns the model and does everything to it, one operation at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch

from .adapters import Adapter, adapter_digest, check_adapter
from .chat import ChatRequest, ChatResult
from .errors import ApiError, add_lora_failed, bad_request, invalid_input
from .sampler import Sampler

MAX_WAITING_ROWS = 65536  # choices waiting for the engine; beyond it the server answers 503


class Engine:
    """Owns the model. Public methods may be called from any thread; `run` is the engine thread."""

    def __init__(self, model_dir: str, served_name: str, threads: int = 1, max_rows: int = 256, max_rank: int = 256):
        # Imported here: the import costs seconds, and --help should not.
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from ..prompt.families import plain_generation

        torch.set_num_threads(threads)
        self.root, self.served_name, self.max_rows, self.max_rank = model_dir, served_name, max_rows, max_rank
        self.created = int(time.time())
        self.processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"  # generation appends on the right
        self.model = AutoModelForImageTextToText.from_pretrained(model_dir, local_files_only=True).eval()
        plain_generation(self.model)  # a request's settings are all there is
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
        self._lock = threading.Condition()
        self._waiting: deque[ChatRequest] = deque()
        self._ops: deque[tuple[Callable, Callable]] = deque()
        self._rows_waiting = 0
        self._stopped = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # --- any thread

    def knows(self, model: str) -> bool:
        return model == self.served_name or model in self.adapters

    def require(self, model: str) -> None:
        if not self.knows(model):
            raise ApiError(
                404, "NotFoundError", f"The model `{model}` does not exist. Valid aliases: {self.served_name}.", "model"
            )

    def submit(self, r: ChatRequest) -> None:
        """Queues a request; r.done is called on the engine thread with its ChatResult or exception."""
        with self._lock:
            if self._rows_waiting + r.n > MAX_WAITING_ROWS:
                raise ApiError(
                    503,
                    "ServiceUnavailableError",
                    f"{self._rows_waiting} answers are waiting already, try again later.",
                )
            self._rows_waiting += r.n
            self._waiting.append(r)
            self._lock.notify()

    def call(self, op: Callable, done: Callable) -> None:
        """Runs op() on the engine thread, ahead of waiting requests, and passes its result or exception to done."""
        with self._lock:
            self._ops.append((op, done))
            self._lock.notify()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify()

    # --- engine thread

    def run(self) -> None:
        while True:
            with self._lock:
                while not (self._ops or self._waiting or self._stopped):
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
        """The oldest request and those after it that use the same model, up to max_rows answers."""
        model, rows, batch, rest = self._waiting[0].model, 0, [], deque()
        for r in self._waiting:
            if r.model == model and (not batch or rows + r.n <= self.max_rows):
                rows += r.n
                batch.append(r)
            else:
                rest.append(r)
        self._waiting = rest
        self._rows_waiting -= rows
        return batch

    def _serve(self, batch: list[ChatRequest]) -> None:
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
        """Answers a batch of requests for one model and calls their `done`."""
        rows = [(i, r, k) for i, r in enumerate(batch) for k in range(r.n)]
        texts = [
            self.processor.apply_chat_template(r.messages, add_generation_prompt=True, tokenize=False) for r in batch
        ]
        # add_special_tokens=False: the chat template writes them, as in vLLM.
        kwargs = {
            "text": [texts[i] for i, _, _ in rows],
            "padding": True,
            "add_special_tokens": False,
            "return_tensors": "pt",
        }
        images = [im for _, r, _ in rows for im in r.images]
        if images:
            kwargs["images"] = images
        inputs = self.processor(**kwargs)
        lengths = inputs["attention_mask"].sum(1).tolist()
        limits = []
        for (_, r, _), length in zip(rows, lengths, strict=True):
            room = self.max_len - length
            want = room if r.max_tokens is None else r.max_tokens
            if want > room or room < 1:
                raise bad_request(
                    f"This model's maximum context length is {self.max_len} tokens. However, you requested {want} "
                    f"output tokens and your prompt contains {length} input tokens. Please reduce the length of the "
                    "input or max_tokens.",
                    "max_tokens",
                )
            limits.append(want)
        sampler = Sampler(rows, max(limits), self.eos, limits)
        self._generate(batch[0].model, inputs, sampler, max(limits))
        results = [ChatResult(0, []) for _ in batch]
        for (i, _, _), choice, length in zip(rows, sampler.choices, lengths, strict=True):
            results[i].prompt_tokens = length
            results[i].choices.append(choice)
        for r, result in zip(batch, results, strict=True):
            r.done(result)

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
