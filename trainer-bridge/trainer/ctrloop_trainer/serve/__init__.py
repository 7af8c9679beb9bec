"""Model server for prompt models on transformers + PEFT, speaking vLLM's HTTP calls.

It is the embedded stand-in for vLLM (held against a recording of vLLM 0.32): chat completions with image data
URLs, runtime LoRA adapters, /v1/models with parents, the same status codes and error bodies. It is stricter where
vLLM is unsafe:

* an adapter whose keys or shapes do not fit the base is refused with 400 (vLLM answers 200 and then applies
  nothing, or answers garbage);
* a name means one content for the life of the process: `load_inplace`, and loading other content under a name that
  was ever used, are 400 (vLLM serves stale caches then). The same content may come back under its name after an
  unload.

Threads: HTTP runs on the event loop; a second thread makes tokens and pixels of requests; one engine thread owns the
model and does everything to it, one operation at a time: a batch of requests for one adapter, a load, an unload.
Requests that arrive while a batch runs form the next one, so batching needs no waiting window. What one client can make
long is bounded before it costs the others anything, and clients take turns (engine.py, queue.py).

Run: python -m ctrloop_trainer.serve --model DIR --host 127.0.0.1 --port N --served-model-name prompt-base
"""

from __future__ import annotations

from .chat import ChatRequest
from .engine import Engine
from .errors import ApiError, bad_request
from .sampler import Sampler
from .server import Server

__all__ = ["ApiError", "ChatRequest", "Engine", "Sampler", "Server", "bad_request"]
