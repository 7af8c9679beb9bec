"""The model server as a process; see the package."""

from __future__ import annotations

import argparse

from .engine import Engine
from .server import Server


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description="Serve a vision-language model and its LoRA adapters over vLLM's HTTP calls."
    )
    p.add_argument(
        "--model", required=True, help="folder of a Hugging Face image-text-to-text model with its processor"
    )
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--served-model-name", help="default: the folder as given")
    # One: on a machine that is busy with the stream, two threads that wait for each other took six times as long.
    p.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    p.add_argument("--max-batch", type=int, default=256, help="answers generated together")
    p.add_argument("--max-lora-rank", type=int, default=256)
    a = p.parse_args(argv)
    import uvicorn

    engine = Engine(a.model, a.served_model_name or a.model, a.threads, a.max_batch, a.max_lora_rank)
    engine.start()
    # Kept connections outlive any client's pause: a request on one that is just being closed would fail.
    options = {"log_level": "warning", "timeout_graceful_shutdown": 5, "timeout_keep_alive": 75}
    uvicorn.run(Server(engine).app(), host=a.host, port=a.port, **options)
    engine.stop()


if __name__ == "__main__":
    main()
