"""A child process with the interface of `ctrloop render pipe`, for tests only: flat colours instead of pictures.

The left half shows the product (a colour from its id), the right half the description (colours from its parts), so
that there is something to see and nothing to draw. `python stub_render.py fail` dies at the first request,
`SIGTERM` or `SIGKILL` in its place by that signal, `babble` says something else.
"""

import json
import os
import signal
import sys
import zlib

import numpy as np


def colour(text: str) -> list[int]:
    return [zlib.crc32(f"{text}/{i}".encode()) % 200 + 28 for i in range(3)]


def picture(shot: dict, px: int) -> tuple[np.ndarray, bool]:
    if shot.get("view") == "alpha":
        out = np.zeros((px, px, 3), np.uint8)
        out[px // 4 : -px // 4, 4 : px // 2] = 255
        return out, True
    out = np.full((px, px, 3), 245, np.uint8)
    parts = [p.strip() for p in shot["text"].split(",")] if shot["text"] else []
    valid = not parts or len(parts) == 4
    if valid:
        for i, part in enumerate(parts):
            out[i * px // 4 : (i + 1) * px // 4, px // 2 :] = colour(part)
    out[px // 4 : -px // 4, 4 : px // 2] = colour(shot["product"])
    return out, valid


def main() -> None:
    for line in sys.stdin:
        shots = json.loads(line)
        if sys.argv[1:] == ["fail"]:
            sys.exit("no such product: p-1")
        if sys.argv[1:] == ["babble"]:
            print("hello", flush=True)
            continue
        if sys.argv[1:]:
            os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        drawn = [picture(s, s["px"]) for s in shots]
        head = {"n": len(shots), "px": shots[0]["px"], "valid": [ok for _, ok in drawn]}
        sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + b"".join(x.tobytes() for x, _ in drawn))
        sys.stdout.buffer.flush()


main()
