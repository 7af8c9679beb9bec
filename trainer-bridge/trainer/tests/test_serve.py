"""The model server, against a miniature with random weights that is built here.

Error bodies are compared with those recorded from vLLM 0.32; where this server is stricter, the test says so.
"""

import base64
import concurrent.futures
import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from ctrloop_trainer.prompt import families
from ctrloop_trainer.prompt import model as M
from ctrloop_trainer.serve import ApiError, ChatRequest, Engine, Sampler, Server

TEXT = "oak kitchen table, warm amber tones, soft morning light, fresh leaves. red shoe, dark red. fashion/shoes"
BASE = "prompt-base"


def make_adapter(base: Path, out: Path, seed: int, rank: int = 4) -> Path:
    model, _, _ = M.load_parts(base)
    torch.manual_seed(seed)
    cfg = LoraConfig(
        r=rank,
        lora_alpha=4 * rank,
        target_modules=list(families.LORA_TARGETS),
        exclude_modules=families.of(model).lora_exclude,
        init_lora_weights=False,
    )
    get_peft_model(model, cfg).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    d = tmp_path_factory.mktemp("models")
    size = M.Size(hidden=64, layers=2, feed_forward=96, vision_hidden=32, vision_layers=1, patch=16)
    model, processor = M.build(M.make_tokenizer([TEXT] * 3), size, seed=0)
    model.save_pretrained(d / "base")
    processor.save_pretrained(d / "base")
    M.Prompting(("describe a background for this product",)).save(d / "base")
    for i in (0, 1):
        make_adapter(d / "base", d / f"lora{i}", i)
    return d


def damaged(folders: Path, name: str, change) -> Path:
    """A copy of lora0 whose tensors went through change."""
    out = folders / name
    shutil.copytree(folders / "lora0", out, dirs_exist_ok=True)
    weights = out / "adapter_model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(weights)).items()}, weights)
    return out


@pytest.fixture
def client(folders):
    engine = Engine(str(folders / "base"), BASE, max_rows=64, max_rank=16)
    engine.start()
    with TestClient(Server(engine).app()) as c:
        yield c
    engine.stop()
    engine.thread.join(10)
    assert not engine.thread.is_alive()


def picture(colour=(200, 30, 40)) -> str:
    b = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(b, "PNG")
    return "data:image/png;base64," + base64.b64encode(b.getvalue()).decode()


def ask(model=BASE, text=TEXT, image=None, **kw) -> dict:
    content = [{"type": "image_url", "image_url": {"url": image or picture()}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 12} | kw


def chat(client, **kw) -> dict:
    r = client.post("/v1/chat/completions", json=ask(**kw))
    assert r.status_code == 200, r.text
    return r.json()


def texts(reply: dict) -> list[str]:
    return [c["message"]["content"] for c in reply["choices"]]


def load(client, name: str, path: Path):
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})


def error(r) -> dict:
    return r.json()["error"]


def test_health_and_models(client, folders):
    assert client.get("/health").status_code == 200
    r = load(client, "a", folders / "lora0")
    assert (r.status_code, r.text) == (200, "Success: LoRA adapter 'a' added successfully.")
    assert "content-type" not in r.headers  # as vLLM
    cards = client.get("/v1/models").json()["data"]
    assert [(c["id"], c["parent"]) for c in cards] == [(BASE, None), ("a", BASE)]
    assert cards[1]["root"] == str(folders / "lora0")


def test_greedy_answer_is_the_trainers(client, folders):
    """The probe rests on this: the trainer's own code and the server agree, on the base and on an adapter."""
    load(client, "a", folders / "lora0")
    answers = {}
    for name, adapter in ((BASE, None), ("a", folders / "lora0")):
        pm = M.PromptModel.load(folders / "base")
        if adapter:
            from peft import PeftModel

            pm.model = PeftModel.from_pretrained(pm.model, adapter).eval()
        reply = chat(client, model=name, temperature=0, logprobs=True, max_tokens=32)
        pm.add_image("i", torch.tensor([200, 30, 40], dtype=torch.uint8).expand(64, 64, 3).numpy())
        want = pm.sample([M.Ask(TEXT, "i")], 0, greedy=True)[0]
        assert texts(reply)[0].strip() == want
        answers[name] = want
        got = torch.tensor([x["logprob"] for x in reply["choices"][0]["logprobs"]["content"]])
        assert torch.isfinite(got).all()
        assert (got < 0).all()
    assert answers[BASE] != answers["a"]


def test_adapters_do_not_leak(client, folders):
    before = texts(chat(client, temperature=0))
    load(client, "a", folders / "lora0")
    a = texts(chat(client, model="a", temperature=0))
    load(client, "b", folders / "lora1")
    b = texts(chat(client, model="b", temperature=0))
    assert len({*before, *a, *b}) == 3
    assert texts(chat(client, temperature=0)) == before
    assert texts(chat(client, model="a", temperature=0)) == a
    client.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
    assert texts(chat(client, model="b", temperature=0)) == b
    client.post("/v1/unload_lora_adapter", json={"lora_name": "b"})
    assert texts(chat(client, temperature=0)) == before


def test_seed_decides_whatever_the_company(client, folders):
    load(client, "a", folders / "lora0")
    alone = {s: texts(chat(client, model=m, seed=s, n=3)) for s, m in ((1, BASE), (2, "a"), (3, BASE))}
    assert len({t for ts in alone.values() for t in ts}) == 9  # choices differ, seeds differ
    jobs = [(s, m) for s, m in ((1, BASE), (2, "a"), (3, BASE))] * 4
    with concurrent.futures.ThreadPoolExecutor(12) as ex:
        together = list(ex.map(lambda j: (j[0], texts(chat(client, model=j[1], seed=j[0], n=3))), jobs))
    for seed, got in together:
        assert got == alone[seed]


def test_answers_depend_on_the_picture(client):
    red, blue = (texts(chat(client, image=picture(c), seed=5, n=8)) for c in ((220, 20, 20), (20, 20, 220)))
    assert red != blue


def test_n_and_usage(client):
    r = chat(client, n=16, max_tokens=5)
    assert [c["index"] for c in r["choices"]] == list(range(16))
    u = r["usage"]
    assert u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"]
    assert u["completion_tokens"] <= 16 * 5


def test_logprobs(client):
    r = chat(client, temperature=0, logprobs=True, top_logprobs=3, max_tokens=4)
    for c in r["choices"][0]["logprobs"]["content"]:
        assert c["top_logprobs"][0]["logprob"] == pytest.approx(c["logprob"])  # greedy: the likeliest one
        assert len(c["top_logprobs"]) == 3


def test_stream_equals_whole(client):
    whole = texts(chat(client, seed=7, n=2))
    got, finish, models = ["", ""], {}, set()
    with client.stream("POST", "/v1/chat/completions", json=ask(seed=7, n=2, stream=True)) as r:
        assert r.headers["content-type"].startswith("text/event-stream")
        lines = [x[6:] for x in r.iter_lines() if x.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        chunk = json.loads(line)
        models.add(chunk["model"])
        for c in chunk["choices"]:
            got[c["index"]] += c["delta"].get("content", "")
            if c["finish_reason"]:
                finish[c["index"]] = c["finish_reason"]
    assert got == whole
    assert models == {BASE}
    assert set(finish) == {0, 1}


# ------------------------------------------------------------------------------ errors, as recorded from vLLM


def test_unknown_model(client):
    r = client.post("/v1/chat/completions", json=ask(model="nope"))
    assert r.status_code == 404
    want = {
        "message": f"The model `nope` does not exist. Valid aliases: {BASE}.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    assert error(r) == want


def test_load_errors(client, folders):
    load(client, "a", folders / "lora0")
    r = load(client, "a", folders / "lora1")
    assert r.status_code == 400
    assert error(r) == {
        "message": "The lora adapter 'a' has already been loaded. If you want to load the adapter in place, "
        "set 'load_inplace' to True.",
        "type": "InvalidUserInput",
        "param": None,
        "code": 400,
    }
    r = load(client, BASE, folders / "lora0")
    assert r.status_code == 400
    assert error(r)["message"] == f"The lora adapter '{BASE}' conflicts with a served base model."
    r = load(client, "x", folders / "none")
    assert r.status_code == 404
    assert error(r)["message"] == f"Loading lora x failed: No adapter found for {folders / 'none'}"
    r = client.post("/v1/load_lora_adapter", json={"lora_name": "q"})
    assert r.status_code == 400
    assert error(r) == {
        "message": "1 validation error:\n  {'type': 'missing', 'loc': 'body.lora_path', 'msg': 'Field required', "
        "'input': '<dict of 1 items>'}",
        "type": "Bad Request",
        "param": "body.lora_path",
        "code": 400,
    }
    r = client.post("/v1/load_lora_adapter", json={"lora_name": "", "lora_path": ""})
    assert error(r)["message"] == "Both 'lora_name' and 'lora_path' must be provided."
    r = client.post("/v1/load_lora_adapter", content="{")
    assert r.status_code == 400
    assert error(r)["message"] == (
        "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode error', "
        "'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}"
    )


def test_unload(client, folders):
    load(client, "a", folders / "lora0")
    r = client.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
    assert (r.status_code, r.text) == (200, "Success: LoRA adapter 'a' removed successfully.")
    for name in ("a", "nope", BASE):
        r = client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        assert r.status_code == 404
        assert error(r)["message"] == f"The lora adapter '{name}' cannot be found."
    assert client.post("/v1/chat/completions", json=ask(model="a")).status_code == 404


def test_names_are_never_reused(client, folders):
    """Stricter than vLLM: a name means one content, even after an unload, and never changes in place."""
    load(client, "a", folders / "lora0")
    body = {"lora_name": "a", "lora_path": str(folders / "lora1"), "load_inplace": True}
    assert client.post("/v1/load_lora_adapter", json=body).status_code == 400
    client.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
    r = load(client, "a", folders / "lora1")
    assert r.status_code == 400
    assert "names are never reused" in error(r)["message"]
    assert load(client, "a", folders / "lora0").status_code == 200


def wrong_prefix(t):
    return {k.replace("model.language_model.", ""): v for k, v in t.items()}


def other_layers(t):
    return {k.replace("layers.1.", "layers.9."): v for k, v in t.items()}


def bad_shape(t):
    return {k: v[:, :-1] if k.endswith("q_proj.lora_A.weight") else v for k, v in t.items()}


def half(t):
    return {k: v for k, v in t.items() if "layers.0." in k}


def not_a_number(t):
    return {k: v * float("nan") if k.endswith("layers.1.mlp.up_proj.lora_B.weight") else v for k, v in t.items()}


def enormous(t):
    return {k: v * 1e6 for k, v in t.items()}


def lone_side(t):
    return {k: v for k, v in t.items() if not k.endswith("layers.0.self_attn.q_proj.lora_B.weight")}


@pytest.mark.parametrize("change", [wrong_prefix, other_layers, bad_shape, half, lone_side, not_a_number, enormous])
def test_misfit_is_refused(client, folders, change):
    """Stricter than vLLM, which answers 200 to these and serves the base or garbage."""
    before = texts(chat(client, temperature=0))
    r = load(client, "x", damaged(folders, change.__name__, change))
    assert r.status_code == 400, r.text
    assert error(r)["type"] == "InvalidUserInput"
    assert [c["id"] for c in client.get("/v1/models").json()["data"]] == [BASE]
    assert texts(chat(client, temperature=0)) == before
    assert load(client, "x", folders / "lora0").status_code == 200  # the failure has not burnt the name


def test_broken_adapters_are_500_as_in_vllm(client, folders):
    trunc = damaged(folders, "trunc", lambda t: t)
    weights = trunc / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    empty = damaged(folders, "noweights", lambda t: t)
    (empty / "adapter_model.safetensors").unlink()
    unknown = damaged(folders, "wrongmod", lambda t: {k.replace("q_proj", "nope_proj"): v for k, v in t.items()})
    dora = damaged(folders, "dora", lambda t: t)
    cfg = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(cfg | {"use_dora": True}))
    big = make_adapter(folders / "base", folders / "rank32", 3, rank=32)
    cases = {
        trunc: "incomplete metadata, file not fully covered",
        empty: "doesn't contain tensors",
        unknown: "expected target modules in",
        dora: "does not yet support DoRA",
        big: "LoRA rank 32 is greater than max_lora_rank 16",
    }
    for i, (path, want) in enumerate(cases.items()):
        r = load(client, f"bad{i}", path)
        assert r.status_code == 500, (path, r.text)
        assert want in error(r)["message"]
    assert [c["id"] for c in client.get("/v1/models").json()["data"]] == [BASE]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100000}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a"]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages"),
        (ask(image="http://example.com/a.png"), "messages"),
        (ask(image="data:image/png;base64,AAAA"), "messages"),
    ],
)
def test_bad_requests(client, change, param):
    r = client.post("/v1/chat/completions", json=ask() | change)
    assert r.status_code == 400, r.text
    assert error(r)["param"] == param
    assert error(r)["type"] == "BadRequestError"


def test_bad_neighbour_does_not_hurt(client):
    """Requests of one batch: one is too long for the model, the others are answered."""
    bodies = [ask(seed=i, max_tokens=12 if i != 3 else 500) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as ex:
        codes = list(ex.map(lambda b: client.post("/v1/chat/completions", json=b).status_code, bodies))
    assert codes == [200, 200, 200, 400, 200, 200, 200, 200]


# ------------------------------------------------------------------------------ sampler


def rows(n: int, **kw) -> list[tuple[int, ChatRequest, int]]:
    return [(i, ChatRequest(BASE, [], [], seed=i, **kw), 0) for i in range(n)]


def draw(logits: torch.Tensor, n: int, **kw) -> torch.Tensor:
    s = Sampler(rows(n, **kw), 1, set(), [9] * n)
    with contextlib.suppress(ApiError):
        s(torch.zeros(n, 1, dtype=torch.long), logits.expand(n, -1))
    return torch.bincount(torch.tensor([c.tokens[0] for c in s.choices]), minlength=logits.shape[0]) / n


def test_sampler_draws_the_distribution():
    p = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    n = 20000
    got = draw(p.log(), n)
    assert ((got - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()  # five standard errors, seeds are fixed
    cold = (p**2) / (p**2).sum()
    got = draw(p.log(), n, temperature=0.5)
    assert ((got - cold).abs() < 5 * (cold * (1 - cold) / n).sqrt() + 1e-9).all()


def test_sampler_cuts():
    p = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    assert (draw(p.log(), 4000, min_p=0.1) > 0).tolist() == [True, True, True, False, False]
    assert (draw(p.log(), 4000, top_p=0.75) > 0).tolist() == [True, True, False, False, False]
    assert (draw(p.log(), 4000, top_k=3) > 0).tolist() == [True, True, True, False, False]
    assert draw(p.log(), 10, temperature=0.0).tolist() == [1, 0, 0, 0, 0]


def test_sampler_never_takes_a_masked_token():
    logits = torch.full((50,), -torch.inf)
    logits[7], logits[49] = 0.0, -1.0
    got = draw(logits, 5000)
    assert set(got.nonzero()[:, 0].tolist()) == {7, 49}


def test_version_names_the_recorded_protocol(client):
    assert re.match(r"0\.32\.", client.get("/version").json()["version"])


# ------------------------------------------------------------------------------ one client and the others


@pytest.fixture
def still(folders):
    """An engine whose threads do not run: requests stay where they are put, and steps are taken by hand."""
    return Engine(str(folders / "base"), BASE, max_rows=8, max_rank=16)


def waiting(client: str, text: str = TEXT, model: str = BASE, **kw) -> ChatRequest:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    told = []
    image = base64.b64decode(picture().partition(",")[2])
    return ChatRequest(model, [message], [image], client=client, max_tokens=4, done=told.append, **kw)


def prepared(engine: Engine, *requests: ChatRequest) -> None:
    for r in requests:
        r.prepared = engine.prepare(r)
        engine._ready.put(r)


def test_a_long_prompt_is_refused_before_anything_is_done_for_it(still):
    """8 MB in one request: nothing of it is tokenised, and the answer beside it does not wait."""
    with TestClient(Server(still).app()) as c:  # its threads stand: an answer can only come from the door itself
        r = c.post("/v1/chat/completions", json=ask(text="word " * 1_600_000))
    assert r.status_code == 400
    assert "8000000 bytes" in error(r)["message"]
    assert not still._incoming
    r = still.max_text
    assert r == 16 * still.max_len


def test_many_messages_and_pictures_are_bounded_together(client):
    many = {"model": BASE, "messages": [{"role": "user", "content": "a"}] * 300}
    r = client.post("/v1/chat/completions", json=many)
    assert (r.status_code, error(r)["param"]) == (400, "messages")
    b = io.BytesIO()
    Image.new("1", (4000, 3000)).save(b, "PNG")  # two of them are more than a request may declare
    big = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(b.getvalue()).decode()},
    }
    content = [big, big, {"type": "text", "text": "a"}]
    r = client.post("/v1/chat/completions", json={"model": BASE, "messages": [{"role": "user", "content": content}]})
    assert (r.status_code, error(r)["param"]) == (400, "messages")
    assert "4000 x 3000" in error(r)["message"]


def test_bodies_have_a_bound_together(still, monkeypatch):
    """However many connections send them, and given back when they are answered."""
    from ctrloop_trainer.serve import server as module

    server = Server(still)
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 100)
    with TestClient(server.app()) as c:
        r = c.post("/v1/chat/completions", json=ask())
        assert r.status_code == 503
        assert c.post("/v1/chat/completions", content=b"{}").status_code == 400
    assert server.held == 0


def test_pictures_are_decoded_when_it_is_the_client_s_turn(still, monkeypatch):
    """Not at the door, where a thousand requests of one client would be ahead of everyone."""
    monkeypatch.setattr("ctrloop_trainer.serve.engine.decoded", lambda _: pytest.fail("decoded"))
    r = waiting("greedy")
    still.submit(r)
    assert still._incoming.pop() is r
    with pytest.raises(BaseException, match="decoded"):
        still.prepare(r)


def test_a_body_is_refused_by_its_declared_length(client):
    r = client.post("/v1/chat/completions", content=b"x", headers={"content-length": str(1 << 40)})
    assert r.status_code == 413


def test_clients_take_turns(still):
    """A thousand requests of one client: the other's only one is in the first batch."""
    many = [waiting("greedy") for _ in range(50)]
    one = waiting("modest")
    prepared(still, *many, one)
    still._rows_waiting.update({None: 51, "greedy": 50, "modest": 1})
    batch = still._take()
    assert len(batch) == 8
    assert one in batch
    assert still._rows_waiting == {None: 43, "greedy": 43}
    late = waiting("late")
    prepared(still, late)
    still._count(still._rows_waiting, "late", 1)
    assert still._take()[0] is not late  # the line is as it was
    assert late not in many


def test_turns_are_taken_while_requests_are_prepared_too(still):
    for r in [waiting("greedy", seed=i) for i in range(5)] + [waiting("modest", seed=9)]:
        still.submit(r)
    assert [still._incoming.pop().client for _ in range(6)] == ["greedy", "modest", *["greedy"] * 4]


def test_one_client_cannot_fill_the_room(still, monkeypatch):
    from ctrloop_trainer.serve import engine as module

    monkeypatch.setattr(module, "MAX_WAITING_ROWS", 16)
    for _ in range(4):
        still.submit(waiting("greedy"))
    with pytest.raises(ApiError, match="4 answers are waiting already, 4 of them of this client") as e:
        still.submit(waiting("greedy"))
    assert e.value.code == 503
    still.submit(waiting("modest"))
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 400)
    still.submit(waiting("heavy", size=90))
    with pytest.raises(ApiError, match="bytes of requests are waiting"):
        still.submit(waiting("heavy", size=90))


def test_padding_is_bounded(still):
    """One long prompt among short ones would make every row as long."""
    short = [waiting(f"c{i}") for i in range(6)]
    long = waiting("long", text=TEXT + " word" * 60)
    prepared(still, *short[:3], long, *short[3:])
    still.max_batch_tokens = 6 * (short[0].prepared.length + 4)
    assert still._take() == short
    assert still._take() == [long]


def test_what_nobody_waits_for_is_not_computed(still, monkeypatch):
    gone, there = waiting("a"), waiting("b")
    prepared(still, gone, there)
    gone.cancelled = True
    assert still._take() == [there]
    # One that goes while it is answered: its row ends at the next token, the other's is whole.
    left, stays = waiting("a", temperature=0.0), waiting("b", temperature=0.0)
    left.max_tokens = stays.max_tokens = 12
    prepared(still, left, stays)
    told = {}
    left.done, stays.done = (lambda r: told.update(left=r)), (lambda r: told.update(stays=r))
    left.on_token = lambda index, tokens: setattr(left, "cancelled", True)
    still._serve(still._take())
    assert set(told) == {"stays"}
    assert told["stays"].choices[0].tokens


def test_a_short_answer_does_not_wait_for_its_neighbours(still):
    order = []
    short, long = waiting("a", temperature=0.0), waiting("b", temperature=0.0)
    short.max_tokens, long.max_tokens = 1, 40
    short.done = lambda r: order.append("short")
    long.on_token = lambda index, tokens: order.append(len(tokens))
    long.done = lambda r: order.append("long")
    prepared(still, long, short)
    still._serve(still._take())
    assert order.index("short") <= 2
    assert order[-1] == "long"


def test_a_client_that_goes_cancels_its_request(still):
    """The connection ends while the request waits: the engine, when it comes to it, finds it cancelled."""
    import asyncio

    from starlette.requests import Request

    body = json.dumps(ask()).encode()
    sent = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive():
        return sent.pop(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [],
        "client": ("10.0.0.1", 5),
        "query_string": b"",
    }
    reply = asyncio.run(Server(still).chat(Request(scope, receive)))
    assert reply.status_code == 499
    r = still._incoming.pop()
    assert r.cancelled
    assert r.client.startswith("10.0.0.1 ")
