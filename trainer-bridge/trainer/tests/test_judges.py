"""Zero-shot judges against a local server that speaks both forms."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import stub_judge as stubs
from stub_judge import INPUT_TOKENS, OUTPUT_TOKENS, Stub, pictures

from ctrloop_trainer import errors
from ctrloop_trainer.reward import judges
from ctrloop_trainer.reward.judge_api import Answer, Where, retry_after
from ctrloop_trainer.reward.scorer import both_orders
from ctrloop_trainer.reward.trunk import Trunk

PRICE = {"usd_per_million_input": 1000.0, "usd_per_million_output": 1000.0, "max_tokens": 10, "guess_tokens": 600}
EACH = (INPUT_TOKENS + OUTPUT_TOKENS) * 1e-3  # dollars that the stub's answer costs at PRICE
MOST = (1.25 * INPUT_TOKENS + PRICE["max_tokens"]) * 1e-3  # what is promised for one request


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for k in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(k, raising=False)


@pytest.fixture
def stub():
    with Stub() as s:
        yield s


def entry(stub, form="openai", **settings):
    return {"judge": f"{form}:{stub.url}:some-model", "logprobs": False, **settings}


def ask(stub, folder, pairs=None, form="openai", waits=None, **settings):
    waits = [] if waits is None else waits
    with judges.build(entry(stub, form, **settings), folder, sleep=waits.append) as judge:
        return judge.judge(*(pairs or pictures(4)))


@pytest.mark.parametrize("form", ["openai", "anthropic"])
def test_judges_in_both_forms_and_both_orders(stub, tmp_path, form):
    pairs = pictures(6)
    judged = ask(stub, tmp_path, pairs, form)
    brighter = pairs[1].mean((1, 2, 3)) > pairs[2].mean((1, 2, 3))
    assert ((judged.p_left > 0.5) == brighter).all()
    assert judged.swap_consistency == 1.0
    assert judged.left_share == 0.5
    assert len(stub.requests) == 12
    assert set(stub.sizes) == {(384, 384)}
    assert {r["model"] for r in stub.requests} == {"some-model"}
    assert judged.about()["pairs_judged"] == 6
    assert judged.about()["input_tokens"] == 12 * INPUT_TOKENS
    want = "anthropic-version" if form == "anthropic" else "Content-Type"
    assert all(want in {k.lower(): k for k in h} or want in h for h in stub.headers)


def test_the_prompt_tells_caption_and_nothing_else(stub, tmp_path):
    ask(stub, tmp_path, pictures(1))
    texts = stub.requests[0]["messages"]
    assert texts[0].startswith("Two advertising pictures of one product: mug 0. kitchen/mugs")
    assert len(texts) == 3
    told = " ".join(texts).lower().replace("mug 0", "")
    assert not any(c.isdigit() for c in told)
    assert not any(w in told for w in ("rate", "ctr", "impression", "%"))


def test_a_judge_that_always_says_left_scores_chance(tmp_path):
    with Stub(lambda *_: "LEFT") as stub:
        judged = ask(stub, tmp_path, pictures(5))
    assert (judged.p_left == 0.5).all()
    assert judged.swap_consistency == 0.0
    assert judged.left_share == 1.0


def test_log_probabilities_are_used_and_average_to_chance_exactly(tmp_path):
    with Stub(lambda *_: "LEFT") as stub:
        for k, p in enumerate((0.9, 0.7, 0.61, 0.123)):
            stub.logprobs = (p, 0.95 - p)
            judged = ask(stub, tmp_path / str(k), pictures(2), logprobs=True)
            assert judged.forward == pytest.approx(p / 0.95, abs=1e-3)
            assert (judged.p_left == 0.5).all()


def test_one_order_through_the_scorer_interface(stub, tmp_path):
    pairs = pictures(3)
    with judges.build(entry(stub), tmp_path) as judge:
        once = judge.p_left(*pairs)
        both = both_orders(judge, *pairs)
        judged = judge.judge(*pairs)
    assert set(once) <= {0.25, 0.75}
    assert (both.p_left == judged.p_left).all()
    assert len(stub.requests) == 6


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("LEFT", 1.0),
        ("right.", 0.0),
        ("**Left**", 1.0),
        ("Answer: RIGHT", 0.0),
        ("LEFT\n\nIts background suits the mug, the right one is busy.", 1.0),
        ("The left one is busy.\n\nRIGHT", 0.0),
        ("<think>LEFT?</think>\nRIGHT", 0.0),
        ("<|begin_of_box|>LEFT<|end_of_box|>", 1.0),
        ("LEFT\nRIGHT", None),
        ("the left one, I think", None),
        ("Neither", None),
        ("", None),
        ("LEFT or RIGHT", None),
        ("upright", None),
    ],
)
def test_answers_are_read_strictly(text, want):
    assert judges.side(text) == want


def test_log_probabilities_inside_a_sentence_are_not_an_answer():
    said = Answer("Well...\nLEFT", "stop", 1, 1, (0.1, 0.9))
    assert judges.probability(said, 0.75) == 0.75
    rare = Answer("LEFT", "stop", 1, 1, (0.1, 0.2))
    assert judges.probability(rare, 0.75) == 0.75


def test_unusable_answers_abstain_and_are_counted(tmp_path):
    with Stub(lambda caption, *_: "LEFT" if "mug 0" in caption else "I cannot tell.") as stub:
        judged = ask(stub, tmp_path, pictures(3))
    assert (judged.p_left == 0.5).all()
    assert judged.about()["unparseable"] == 4
    assert judged.about()["pairs_missing"] == 0


def test_answers_that_max_tokens_cut_are_counted(stub, tmp_path):
    def cut(stub, h, openai):
        answer = stub.openai_answer("")
        answer["choices"][0] |= {"finish_reason": "length"}
        stubs.send(h, 200, answer)
        return True

    stub.faults = [cut]
    about = ask(stub, tmp_path, pictures(1), concurrency=1).about()
    assert (about["cut"], about["unparseable"]) == (1, 1)


def test_refused_content_abstains(stub, tmp_path):
    stub.faults = [stubs.content_policy] * 2
    judged = ask(stub, tmp_path, pictures(2), concurrency=1)
    assert judged.p_left[0] == 0.5
    assert judged.p_left[1] != 0.5
    assert judged.about()["refused"] == 2


@pytest.mark.parametrize("form", ["openai", "anthropic"])
def test_waits_as_long_as_the_server_asks_and_backs_off_otherwise(stub, tmp_path, form):
    stub.faults = [stubs.too_many, stubs.server_error, stubs.overloaded]
    waits = []
    judged = ask(stub, tmp_path, pictures(1), form, waits, concurrency=1)
    assert waits[0] == 7
    assert 1 <= waits[1] <= 3  # 1 s, doubled once, with jitter
    assert 2 <= waits[2] <= 6
    assert np.isfinite(judged.p_left).all()


def test_retry_after_may_be_a_date():
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_gives_up_in_the_end_and_goes_on_later(stub, tmp_path):
    pairs = pictures(3)
    stub.faults = [None, None, None, *[stubs.server_error] * 4]
    with pytest.raises(judges.JudgeUnavailableError, match=r"no answer in 4 attempts.*500.*run the same command") as e:
        ask(stub, tmp_path, pairs, concurrency=1, attempts=4)
    assert e.value.exit_code == errors.INTERRUPTED
    stub.requests.clear()
    judged = ask(stub, tmp_path, pairs)
    assert len(stub.requests) == 3
    assert judged.about()["from_cache"] == 3


def test_a_server_that_asks_for_hours_is_unavailable(stub, tmp_path):
    stub.faults = [stubs.too_many]
    waits = []
    with pytest.raises(judges.JudgeUnavailableError, match="asks to wait 7 s"):
        ask(stub, tmp_path, pictures(1), waits=waits, max_wait_s=5.0, concurrency=1)
    assert waits == []


@pytest.mark.parametrize("fault", [stubs.not_json, stubs.other_shape, stubs.hang_up])
def test_garbage_instead_of_an_answer_is_tried_again_and_counted_as_paid(stub, tmp_path, fault):
    stub.faults = [None, fault]
    judged = ask(stub, tmp_path, pictures(1), concurrency=1, **PRICE)
    assert np.isfinite(judged.p_left).all()
    assert judged.about()["lost_requests"] == 1
    assert judged.cost_usd == pytest.approx(2 * EACH + MOST)
    # A later run of the same pairs knows of the loss, too.
    assert ask(stub, tmp_path, pictures(1), **PRICE).cost_usd == pytest.approx(2 * EACH + MOST)


def test_nobody_listens(tmp_path):
    with Stub() as stub:
        pass
    with pytest.raises(judges.JudgeUnavailableError, match="cannot reach"):
        ask(stub, tmp_path, attempts=2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [(stubs.no_money, "no credit left"), (stubs.bad_key, "refuses the key"), (stubs.redirect, "answers 307")],
)
def test_what_no_waiting_cures_ends_the_job_at_once(stub, tmp_path, fault, message):
    stub.faults = [fault] * 9
    with pytest.raises(errors.BadInputError, match=message):
        ask(stub, tmp_path, concurrency=1)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("form", ["openai", "anthropic"])
def test_parameters_that_a_model_refuses_are_left_out(stub, tmp_path, form):
    stub.refuse_parameters = ("temperature", "logprobs", "max_tokens") if form == "openai" else ("temperature",)
    judged = ask(stub, tmp_path, pictures(2), form, logprobs=True, concurrency=1)
    assert np.isfinite(judged.p_left).all()
    last = stub.requests[-1]
    assert not {"temperature", "logprobs", "top_logprobs"} & set(last)
    assert last["max_completion_tokens" if form == "openai" else "max_tokens"] == 1024


def test_extra_fields_are_sent_and_part_of_the_cache_s_key(stub, tmp_path):
    ask(stub, tmp_path, pictures(1), "anthropic", extra={"thinking": {"type": "disabled"}})
    assert stub.requests[0]["thinking"] == {"type": "disabled"}
    ask(stub, tmp_path, pictures(1), "anthropic")
    assert len(stub.requests) == 4


def test_a_second_run_is_free_and_asks_nothing(stub, tmp_path):
    first = ask(stub, tmp_path, **PRICE)
    assert first.cost_usd == pytest.approx(8 * EACH)
    assert first.paid_now_usd == pytest.approx(8 * EACH)
    stub.requests.clear()
    second = ask(stub, tmp_path, **PRICE)
    assert stub.requests == []
    assert (second.p_left == first.p_left).all()
    assert second.cost_usd == pytest.approx(first.cost_usd)
    assert second.paid_now_usd == 0


def test_another_caption_picture_or_model_is_another_question(stub, tmp_path):
    captions, left, right = pictures(1)
    ask(stub, tmp_path, (captions, left, right))
    for changed in ((["a cup. kitchen/mugs"], left, right), (captions, left + 1, right), (captions, left, right + 1)):
        stub.requests.clear()
        ask(stub, tmp_path, changed)
        assert len(stub.requests) == 2
    stub.requests.clear()
    ask(stub, tmp_path, judge=f"openai:{stub.url}:other-model", pairs=(captions, left, right))
    assert len(stub.requests) == 2


def test_the_cost_cap_stops_before_it_is_exceeded(stub, tmp_path):
    cap = 5 * EACH + MOST
    judged = ask(stub, tmp_path, pictures(10), max_cost_usd=cap, **PRICE)
    about = judged.about()
    assert judged.cost_usd <= cap
    assert about["pairs_judged"] == 3  # six requests: whole pairs, both orders
    assert about["pairs_missing"] == 7
    assert "would be exceeded: 3 of 10 pairs" in about["why_missing"]
    assert f"about {14 * EACH:.4f} USD" in about["why_missing"]
    # Raising the cap pays for what is missing only.
    stub.requests.clear()
    whole = ask(stub, tmp_path, pictures(10), max_cost_usd=100.0, **PRICE)
    assert len(stub.requests) == 14
    assert np.isfinite(whole.p_left).all()
    assert whole.paid_now_usd == pytest.approx(14 * EACH)
    # A cap that is used up still lets the cache speak.
    assert np.isfinite(ask(stub, tmp_path, pictures(10), max_cost_usd=0.0, **PRICE).p_left).all()


def test_a_cap_below_the_first_request_sends_nothing(stub, tmp_path):
    judged = ask(stub, tmp_path, max_cost_usd=0.6, **PRICE)
    assert stub.requests == []
    assert np.isnan(judged.p_left).all()
    with (
        judges.build(entry(stub, max_cost_usd=0.6, **PRICE), tmp_path) as judge,
        pytest.raises(judges.CostCapError, match="raise max_cost_usd"),
    ):
        judge.p_left(*pictures(1))


def test_lost_requests_count_towards_the_cap(stub, tmp_path):
    stub.faults = [None] + [stubs.hang_up] * 50
    judged = ask(stub, tmp_path, pictures(2), max_cost_usd=EACH + 3.5 * MOST, concurrency=1, attempts=50, **PRICE)
    assert len(stub.requests) == 4
    assert judged.cost_usd == pytest.approx(EACH + 3 * MOST)
    assert np.isnan(judged.p_left).all()


def test_concurrency_is_bounded_and_used(tmp_path):
    gate = threading.Barrier(3)

    def decide(*_):
        gate.wait(timeout=20)
        return "LEFT"

    with Stub(decide) as stub:
        ask(stub, tmp_path, pictures(3), concurrency=3)
        assert stub.most_under_way == 3


def test_max_pairs_judges_the_same_few_each_time(stub, tmp_path):
    few = ask(stub, tmp_path, pictures(10), max_pairs=3)
    assert np.isfinite(few.p_left).sum() == 3
    assert "max_pairs 3 of 10" in few.why_missing
    stub.requests.clear()
    assert (np.isnan(ask(stub, tmp_path, pictures(10), max_pairs=3).p_left) == np.isnan(few.p_left)).all()
    assert stub.requests == []


def test_interruption_keeps_what_is_paid(stub, tmp_path):
    looks = []

    def check():
        looks.append(1)
        if len(stub.requests) >= 3:
            raise errors.InterruptedJobError("stopped")

    with judges.build(entry(stub, concurrency=2), tmp_path, check) as judge:
        with pytest.raises(errors.InterruptedJobError):
            judge.judge(*pictures(10))
        asked = len(stub.requests)
    assert 3 <= asked < 20
    stub.requests.clear()
    ask(stub, tmp_path, pictures(10))
    assert len(stub.requests) == 20 - asked


CHILD = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from stub_judge import pictures
from ctrloop_trainer.reward import judges
judges.build({"judge": sys.argv[1], "concurrency": 1}, Path(sys.argv[2])).judge(*pictures(4))
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    fifth, free = threading.Event(), threading.Event()
    with Stub() as stub:
        where = f"openai:{stub.url}:some-model"
        stub.faults = [None] * 4 + [lambda *_: (fifth.set(), free.wait(30), None)[2]]
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        child = subprocess.Popen([sys.executable, "-c", CHILD, where, str(tmp_path), *paths])
        assert fifth.wait(60)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        free.set()
        (file,) = tmp_path.glob("*.jsonl")
        with open(file, "a") as f:
            f.write('{"key": "cut in the mid')
        stub.requests.clear()
        with judges.build({"judge": where}, tmp_path) as judge:
            judged = judge.judge(*pictures(4))
        assert len(stub.requests) == 4
        assert judged.about()["from_cache"] == 4
        assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_cache_is_one_process_s_and_must_be_whole(stub, tmp_path):
    with judges.build(entry(stub), tmp_path), pytest.raises(errors.BadInputError, match="another process"):
        judges.build(entry(stub), tmp_path)
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text('{"key": 1}\n')
    with pytest.raises(errors.BadInputError, match=r":1 is not a cached answer"):
        judges.build(entry(stub), tmp_path)


@pytest.mark.parametrize(("form", "header"), [("openai", "Authorization"), ("anthropic", "x-api-key")])
def test_the_key_goes_into_the_header_and_nowhere_else(stub, tmp_path, monkeypatch, form, header):
    secret = "s3cret-of-the-shop"
    monkeypatch.setenv(f"{form.upper()}_API_KEY", secret)
    judged = ask(stub, tmp_path, form=form)
    headers = {k.lower(): v for k, v in stub.headers[0].items()}
    assert secret in headers[header.lower()]
    written = "".join(f.read_text() for f in tmp_path.rglob("*") if f.is_file())
    assert secret not in written + json.dumps(judged.about())
    stub.faults = [stubs.bad_key]
    with pytest.raises(errors.BadInputError, match=r"\*\*\*") as e:
        ask(stub, tmp_path / "other", form=form, concurrency=1)
    assert secret not in str(e.value)


def test_keys_are_asked_for_and_not_sent_in_clear(tmp_path, monkeypatch):
    far = {"judge": "openai:http://judge.example:8000:m", "usd_per_million_input": 1, "usd_per_million_output": 1}
    with pytest.raises(errors.BadInputError, match="set OPENAI_API_KEY"):
        judges.build(far, tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    with pytest.raises(errors.BadInputError, match="plain http"):
        judges.build(far, tmp_path)
    monkeypatch.setenv("GLM_KEY", "x")
    judges.build({**far, "judge": far["judge"].replace("http:", "https:"), "key_env": "GLM_KEY"}, tmp_path).close()


@pytest.mark.parametrize(
    ("spec", "url", "model"),
    [
        ("openai:https://api.openai.com:gpt-4o", "https://api.openai.com/v1/chat/completions", "gpt-4o"),
        ("openai:https://h/api/paas/v4:glm-4v", "https://h/api/paas/v4/chat/completions", "glm-4v"),
        ("openai:http://localhost:11434:llava:7b", "http://localhost:11434/v1/chat/completions", "llava:7b"),
        ("anthropic:https://api.anthropic.com/v1/:claude-x", "https://api.anthropic.com/v1/messages", "claude-x"),
        ("openai:https://h/v1:claude-x@20240620", "https://h/v1/chat/completions", "claude-x@20240620"),
        ("openai:http://[::1]:80:m", "http://[::1]:80/v1/chat/completions", "m"),
    ],
)
def test_addresses(spec, url, model):
    w = Where.parse(spec)
    assert (w.url, w.model) == (url, model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gpt-4o", "openai:BASE_URL:MODEL"),
        ("openai:https://user:pass@host:m", "belongs in the address"),
        ("openai:https://user:12345@host:m", "belongs in the address"),
        ("openai:https://user:pass@host", "belongs in the address"),
        ("openai:https://host/?key=1:m", "belongs in the address"),
        ({"judge": "openai:http://localhost:m", "tau": 1}, "judges.tau: unknown"),
        ({"judge": "openai:http://localhost:m", "attempts": 0}, "judges.attempts: must be above 0"),
        ({"judge": "openai:http://localhost:m", "certainty": 1.0}, "judges.certainty"),
        ({"judge": "openai:http://localhost:m", "max_cost_usd": math.nan}, "judges.max_cost_usd"),
        ("openai:https://api.openai.com:gpt-4o", "usd_per_million_input: missing"),
        (5, "must be a text or an object"),
    ],
)
def test_bad_entries(given, message):
    with pytest.raises(errors.BadInputError, match=message) as e:
        judges.parse(given)
    assert "pass@" not in str(e.value)
    assert "12345@" not in str(e.value)


# --- as rows of the evaluate job's table ---


@pytest.fixture
def evaluate(make_data, make_spec, grammar, tmp_path):
    """evaluate(judges): an evaluate job on a miniature data set."""
    Trunk(grammar.sizes).save(tmp_path / "trunk")
    data = make_data(lambda x: 0.0, per=3, names=24).write(tmp_path / "data")

    def make(*entries, **hyper) -> dict:
        fast = {"baselines": False, "epochs": 2, "folds": 2, "penalties": "0.01"}
        hyper = {"trunk": str(tmp_path / "trunk"), "judges": list(entries), **fast, **hyper}
        return make_spec("evaluate", hyper, dataset=str(data))

    return make


def test_judges_are_rows_of_the_table(evaluate, run_job, tmp_path):
    cache = str(tmp_path / "answers")
    with Stub() as good, Stub(lambda *_: "LEFT") as left, Stub() as dear:
        entries = (
            entry(good, name="good", **PRICE, max_cost_usd=100.0),
            entry(left, "anthropic", name="left"),
            entry(dear, name="dear", **PRICE, max_cost_usd=0.1),
            entry(dear, name="some", **PRICE, max_cost_usd=4 * EACH + MOST, extra={"seed": 1}),
        )
        code, out = run_job(evaluate(*entries, judge_cache=cache))
        assert code == errors.OK
        asked = len(good.requests)
        code, again = run_job(evaluate(*entries[:2], judge_cache=cache), "again")
        assert code == errors.OK
        assert len(good.requests) == asked
    rows = {r["model"]: r for r in json.loads((out / "table.json").read_text())}
    assert rows["judge:left"]["accuracy"] == 0.5
    assert rows["judge:left"]["swap_consistency"] == 0.0
    assert rows["judge:good"]["cost_usd"] == pytest.approx(asked * EACH)
    assert rows["judge:good"]["pairs"] == asked / 2
    assert rows["judge:some"]["pairs"] == 2
    assert rows["judge:some"]["pairs_missing"] == asked / 2 - 2
    # The one whose budget was too small is told apart from one that is bad.
    assert "judge:dear" not in rows
    metrics = json.loads((out / "metrics.json").read_text())
    assert "would be exceeded" in metrics["unjudged"]["judge:dear"]["why_missing"]
    told = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert {r["p_left"] for r in told if r["model"] == "judge:left"} == {0.5}
    same = {r["model"]: r["accuracy"] for r in json.loads((again / "table.json").read_text())}
    assert same["judge:good"] == rows["judge:good"]["accuracy"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["gpt-4o"], "openai:BASE_URL:MODEL"),
        (["openai:http://localhost:m"] * 2, "two judges are called m"),
        ([{"judge": "openai:https://h:m", "usd_per_million_input": 1, "usd_per_million_output": 1}], "OPENAI_API_KEY"),
    ],
)
def test_judges_are_checked_before_anything_is_trained(evaluate, run_job, capsys, entries, message):
    code, out = run_job(evaluate(*entries))
    assert code == errors.BAD_INPUT
    assert message in capsys.readouterr().err
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1  # started, and no more


def test_an_empty_caption_is_refused(stub, tmp_path):
    _, left, right = pictures(1)
    with pytest.raises(errors.BadInputError, match="empty caption"):
        ask(stub, tmp_path, ([" "], left, right))
