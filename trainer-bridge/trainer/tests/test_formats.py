"""CAIG's pair files and the CreativeRanking lists become dataset folders; what is wrong with them is said."""

import io
import json
import math
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from PIL import Image

from ctrloop_trainer import errors, pictures
from ctrloop_trainer.data import load_dataset
from ctrloop_trainer.reward import evidence as ev
from ctrloop_trainer.reward import formats


def closed_form(ax: int, bx: int, ay: int, by: int) -> float:
    """P(X > Y) for integer Beta parameters (Cook, "Exact calculation of beta inequalities", 2005)."""

    def lb(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return sum(math.exp(lb(ay + i, bx + by) - math.log(bx + i) - lb(1 + i, bx) - lb(ay, by)) for i in range(ax))


def test_probability_equals_the_closed_form():
    rng = np.random.default_rng(0)
    p = np.stack([rng.integers(1, hi, 150) for hi in (201, 5001, 201, 5001)])
    p = np.concatenate([p, np.array([[1, 1, 1, 1], [200, 1, 1, 5000], [1, 5000, 200, 1], [3, 40, 3, 40]]).T], 1)
    want = [closed_form(*map(int, x)) for x in p.T]
    assert np.abs(ev.prob_greater(*p) - want).max() < 1e-4


# The pairer (Go, pairer/pairs) prints these for the same counts, placement "", span 0 to 0, least weight 0.02.
COUNTS = (
    ("p-1", "c-a", 2000, 100),
    ("p-1", "c-b", 2000, 60),
    ("p-1", "c-c", 2400, 61),
    ("p-2", "c-d", 1500, 50),
    ("p-2", "c-e", 1500, 46),
    ("p-3", "c-f", 50, 5),
)
PAIRER = {
    ev.POSTERIOR: (
        ("pair-0ead8afbe1a47142", "c-a", "c-b", True, 0.997250085),
        ("pair-5568f7da3fc6d24b", "c-a", "c-c", True, 0.999930625),
        ("pair-5760338ed851d10c", "c-b", "c-c", True, 0.613262004),
        ("pair-1407d646d16eda25", "c-d", "c-e", False, 0.286078057),
    ),
    ev.CAIG: (
        ("pair-0cfd5f58a72ce589", "c-b", "c-c", False, 1.0),
        ("pair-2ce4761c57746da4", "c-d", "c-e", False, 1.0),
    ),
}


@pytest.mark.parametrize("policy", ev.POLICIES)
def test_pairs_are_the_pairer_s(policy):
    rows = [ev.Evidence(*c) for c in COUNTS]
    prior = ev.fit_prior(*np.array([c[2:] for c in COUNTS]).T)
    assert (prior.alpha, prior.beta) == pytest.approx((13.939709230921702, 395.16045298091086))
    for order in (rows, rows[::-1]):
        got = ev.build(ev.Rule(policy), prior, order)
        assert [(p.id, p.chosen.creative, p.rejected.creative, p.chosen_is_left) for p in got] == [
            w[:4] for w in PAIRER[policy]
        ]
        assert [p.weight for p in got] == pytest.approx([w[4] for w in PAIRER[policy]], abs=1e-8)


def test_prior_without_evidence_or_spread():
    assert ev.fit_prior(np.array([]), np.array([])) == ev.Prior(1.0, 1.0)
    flat = ev.fit_prior(np.array([1000, 1000]), np.array([30, 30]))
    assert flat.alpha + flat.beta == pytest.approx(ev.STRONGEST)


def test_held_out_products_are_the_pairer_s():
    # schemas.Holdout turns true for these from this fraction on.
    for product, above in (("p-1", 5482), ("p-2", 2625), ("p-17", 2299), ("mug", 2341), ("Ä", 3583)):
        assert ev.holdout(product, above / 10_000)
        assert not ev.holdout(product, (above - 1) / 10_000)


# --- pictures ---


def bomb(path):
    """A small PNG that claims 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def flat(path, colour, size=(48, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_view_keeps_proportions_and_pads():
    png = pictures.view(Image.new("RGB", (200, 100), (10, 20, 30)), 64)
    x = np.asarray(Image.open(io.BytesIO(png)))
    assert x.shape == (64, 64, 3)
    assert (x[:16] == 245).all()
    assert (x[48:] == 245).all()
    assert (x[16:48] == (10, 20, 30)).all()


def test_transparent_parts_show_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (np.asarray(pictures.load(tmp_path / "a.png")) == 245).all()


def test_pictures_that_are_not_taken(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    flat(tmp_path / "secret.png", (1, 2, 3))
    (folder / "text.png").write_text("no picture")
    flat(folder / "whole.jpg", (9, 9, 9), (300, 300))
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:400])
    bomb(folder / "bomb.png")
    for name, why in (
        ("none.png", "no picture 'none.png'"),
        ("../secret.png", "no picture"),
        (str(tmp_path / "secret.png"), "no picture"),
        ("text.png", "is not a picture"),
        ("cut.jpg", "damaged"),
        ("bomb.png", "60000 x 60000|too large"),
    ):
        with pytest.raises(pictures.BadPictureError, match=why):
            pictures.load(pictures.find(folder, name))
    with pytest.raises(pictures.BadPictureError, match=r"300 x 300 px, more than 1,000 pixels"):
        pictures.load(folder / "whole.jpg", 1000)


# --- CAIG ---


def table(path):
    with pa.memory_map(str(path)) as f:
        return pa.ipc.open_file(f).read_all().to_pylist()


def caig_record(folder, n, product, left, right, ctr=(0.03, 0.028), **fields):
    """A record and its picture: left and right are colours, ctr in that order."""
    name = f"ali_dataset/{product}_{n}.png"
    picture = Image.new("RGB", (64, 32), left)
    picture.paste(Image.new("RGB", (32, 32), right), (32, 0))
    (folder / "ali_dataset").mkdir(parents=True, exist_ok=True)
    picture.save(folder / name)
    target = "left" if ctr[0] > ctr[1] else "right"
    rates = {"left_ctr": ctr[0], "right_ctr": ctr[1]}
    return {
        "id": f"{product}_{n}",
        "image": name,
        **rates,
        "question": "<image>\nWhich is better?",
        "target": target,
    } | fields


@pytest.fixture
def caig(tmp_path):
    """Records of 30 products with two pairs each, which share a picture."""
    rows = []
    for k in range(30):
        a, b, c = ((k * 8, 10 * i, 100) for i in range(3))
        rows += [
            caig_record(tmp_path / "images", 2 * k, f"{k}", a, b, (0.030, 0.028)),
            caig_record(tmp_path / "images", 2 * k + 1, f"{k}", b, c, (0.028, 0.031)),
        ]
    return rows


def convert(tmp_path, rows, *options, name="pairs.json", out="d"):
    (tmp_path / name).write_text(rows if isinstance(rows, str) else json.dumps(rows, indent=1))
    command = ["caig", str(tmp_path / name), "--images", str(tmp_path / "images"), "--out", str(tmp_path / out)]
    return formats.main([*command, *options]), tmp_path / out


def test_caig_s_pairs_become_a_dataset(tmp_path, caig, capsys):
    code, out = convert(tmp_path, caig)
    assert code == 0
    creatives, pairs = load_dataset(out)
    assert len(pairs) == 60
    assert len(creatives.ids) == 90  # a picture that two pairs share is one creative
    assert creatives.images.shape == (90, 64, 64, 3)
    assert 0 < pairs.test.sum() < 30
    assert pairs.left_wins.tolist() == [True, False] * 30
    assert (pairs.weight == 1).all()
    # What is on the left is what was on the left.
    first = creatives.images[pairs.left[0]]
    assert (first[32, 32] == (0, 0, 100)).all()
    assert creatives.posterior_mean[pairs.left[0]] == pytest.approx(0.030)
    assert creatives.clicks[pairs.left[0]] == 30
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["pairs"] == manifest["train"] + manifest["test"] == 60
    assert manifest["policy"] == "caig"
    assert json.loads(capsys.readouterr().out)["products"] == 30
    assert not list(tmp_path.glob(".d.*"))


def test_pairs_that_share_a_picture_are_one_product_whatever_their_ids_say(tmp_path, caig):
    # The published scripts number pairs where the id seems to name a product.
    rows = [{**r, "id": f"{n}_{n}"} for n, r in enumerate(caig)]
    _, out = convert(tmp_path, rows)
    assert json.loads((out / "manifest.json").read_text())["products"] == 30
    _, out = convert(tmp_path, rows, "--product-by", "id", out="e")
    assert json.loads((out / "manifest.json").read_text())["products"] == 60


def test_the_order_of_the_file_does_not_matter_and_json_lines_do(tmp_path, caig):
    text = "".join(json.dumps(r) + "\n" for r in reversed(caig))
    assert convert(tmp_path, text, name="pairs.jsonl")[0] == 0
    _, out = convert(tmp_path, caig, out="e")
    a, b = ({r["pair_id"]: r for r in table(x / "pairs.arrow")} for x in (tmp_path / "d", out))
    assert a == b


def test_caption_and_category_are_carried_and_rates_are_not(tmp_path, caig):
    question = (
        "<image>\nWhich side is preferred by users for the product 'red mug'? the click-through rate of it is 0.03"
    )
    rows = [{**caig[0], "question": question, "category": "kitchen/mugs"}, *caig[1:]]
    rows[2] = {k: v for k, v in rows[2].items() if k != "question"} | {
        "conversations": [{"from": "human", "value": "for the product 'blue cup' ?"}]
    }
    _, out = convert(tmp_path, rows)
    by = {p["pair_id"]: p for p in table(out / "pairs.arrow")}
    captions = {c["creative"]: c["caption"] for c in table(out / "creatives.arrow")}
    assert len(by) == 60
    said = set(captions.values())
    assert said == {"red mug. kitchen/mugs", "blue cup", "product"}


def test_other_names_for_fields(tmp_path, caig):
    rows = [{("winner" if k == "target" else k): v for k, v in r.items()} for r in caig]
    assert convert(tmp_path, rows)[0] == 2
    assert convert(tmp_path, rows, "--field", "target=winner")[0] == 0
    assert convert(tmp_path, rows, "--field", "goal=winner", out="e")[0] == 2


def test_without_rates_the_pairs_still_count(tmp_path, caig):
    rows = [{k: v for k, v in r.items() if not k.endswith("_ctr")} for r in caig]
    code, out = convert(tmp_path, rows, "--split", "test")
    assert code == 0
    assert {p["split"] for p in table(out / "pairs.arrow")} == {"test"}
    assert {c["impressions"] for c in table(out / "creatives.arrow")} == {0}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"target": "up"}, "target must be left or right, got 'up'"),
        ({"image": "ali_dataset/none.png"}, "no picture"),
        ({"image": "../../etc/passwd"}, "no picture"),
        ({"image": 5}, "image must name a picture"),
        ({"left_ctr": float("nan")}, "between 0 and 1"),
        ({"left_ctr": 3.0}, "between 0 and 1"),
        ({"right_ctr": None}, "between 0 and 1"),
        ({"target": "left"}, "contradicts"),
        ({"left_ctr": 0.029}, "a picture has click-through rate 0.029, and 0.028 in an earlier record"),
    ],
)
def test_bad_records_are_reported_with_their_line_and_skipped_on_request(tmp_path, caig, capsys, change, why):
    rows = [*caig[:-1], {**caig[-1], **change}]
    code, out = convert(tmp_path, rows)
    err = capsys.readouterr().err
    assert code == errors.BAD_INPUT
    # Written one field a line: the list's bracket, and eight lines for each of the 59 records before.
    assert f"pairs.json:{2 + 8 * 59}: " in err
    assert why in err
    assert err.count("pairs.json:") == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".d.*"))
    assert convert(tmp_path, rows, "--skip-bad", "1")[0] == 0
    assert "skipped" in capsys.readouterr().err
    assert len(json.loads((out / "manifest.json").read_text())["source"]["skipped"]) == 1


def test_a_cut_file_is_refused_whatever_the_budget(tmp_path, caig, capsys):
    text = json.dumps(caig, indent=1)
    assert convert(tmp_path, text[: len(text) // 2], "--skip-bad", "100")[0] == errors.BAD_INPUT
    assert "damaged or cut" in capsys.readouterr().err


def test_corrupt_and_huge_pictures_are_reported(tmp_path, caig, capsys):
    (tmp_path / "images" / caig[0]["image"]).write_bytes(b"\x89PNG broken")
    bomb(tmp_path / "images" / caig[2]["image"])
    flat(tmp_path / "images" / caig[4]["image"], (1, 1, 1), (33, 32))
    flat(tmp_path / "images" / caig[6]["image"], (1, 1, 1), (64, 32))
    assert convert(tmp_path, caig, "--skip-bad", "3")[0] == errors.BAD_INPUT
    err = capsys.readouterr().err
    assert "4 problems or more, --skip-bad allows 3" in err
    for why in ("is not a picture", "33 x 32 px cannot be two pictures", "both halves are the same"):
        assert why in err
    assert convert(tmp_path, caig, "--skip-bad", "4")[0] == 0


def test_a_dataset_is_never_overwritten(tmp_path, caig, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("x")
    assert convert(tmp_path, caig)[0] == errors.BAD_INPUT
    assert "exists" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["mine"]


# --- CreativeRanking ---


@pytest.fixture
def ranking(tmp_path):
    """Twenty items with three pictures over three days, half in each list."""
    rng = np.random.default_rng(1)
    lines = {"train": [], "test": []}
    for k in range(20):
        for c in range(3):
            flat(tmp_path / "images" / f"{k}_{c}.jpg", (10 * k, 80 * c, 99), (60, 40))
            for day in range(3):
                clicks = rng.binomial(600, 0.03 * (1 + 0.3 * c))
                lines["train" if k < 10 else "test"].append(f"item{k}\t{k}_{c}.jpg\t2020070{day}\t600\t{clicks}")
    write_lists(tmp_path, lines)
    return lines


def write_lists(folder, lines):
    (folder / "data").mkdir(exist_ok=True)
    for name, rows in lines.items():
        (folder / "data" / f"{name}_data_list.txt").write_text("\n".join(rows) + "\n")


def ranks(folder, *options, out="d"):
    return formats.main(["creative-ranking", str(folder), "--out", str(folder / out), *options]), folder / out


def test_creative_ranking_becomes_a_dataset(tmp_path, ranking, capsys):
    code, out = ranks(tmp_path, "--test-policy", "posterior")
    assert code == 0
    creatives, pairs = load_dataset(out)
    assert {p for p, t in zip(pairs.products, pairs.test, strict=True) if t} <= {f"item{k}" for k in range(10, 20)}
    assert set(creatives.impressions) == {1800}  # the days add up
    assert creatives.images.shape[1:] == (64, 64, 3)
    rows = table(out / "pairs.arrow")
    for p in rows:
        a, b = p["left_clicks"] / p["left_impressions"], p["right_clicks"] / p["right_impressions"]
        assert p["left_wins"] == (a > b)
        assert 0.02 <= p["weight"] <= 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["effective"] == pytest.approx(sum(p["weight"] for p in rows if p["split"] == "train"))
    assert manifest["source"]["split"] == "lists"
    assert "skipped" not in capsys.readouterr().err


def test_test_pairs_follow_caig_s_rule_unless_told_otherwise(tmp_path, ranking):
    _, out = ranks(tmp_path)
    rows = [p for p in table(out / "pairs.arrow") if p["split"] == "test"]
    assert rows
    for p in rows:
        a, b = p["left_clicks"] / p["left_impressions"], p["right_clicks"] / p["right_impressions"]
        assert 1.05 <= max(a, b) / min(a, b) <= 1.20
        assert p["weight"] == 1


def test_an_item_in_both_lists_is_only_tested(tmp_path, ranking, capsys):
    ranking["train"].append(ranking["test"][0])
    write_lists(tmp_path, ranking)
    _, out = ranks(tmp_path, "--test-policy", "posterior")
    assert "1 items are in both lists" in capsys.readouterr().err
    assert not any(p["product"] == "item10" and p["split"] == "train" for p in table(out / "pairs.arrow"))


def test_one_list_is_split_by_hash(tmp_path, ranking):
    write_lists(tmp_path, {"train": ranking["train"] + ranking["test"]})
    (tmp_path / "data" / "test_data_list.txt").unlink()
    _, out = ranks(tmp_path, "--holdout", "0.4", "--test-policy", "posterior")
    for p in table(out / "pairs.arrow"):
        assert (p["split"] == "test") == ev.holdout(p["product"], 0.4)
    assert ranks(tmp_path, "--split", "lists", out="e")[0] == errors.BAD_INPUT


def test_other_columns_captions_and_a_sample(tmp_path, ranking):
    lines = {k: [",".join(reversed(x.split("\t"))) for x in v] for k, v in ranking.items()}
    write_lists(tmp_path, lines)
    (tmp_path / "c.jsonl").write_text('{"item": "item3", "caption": "red mug", "category": "kitchen/mugs"}\n')
    options = ("--columns", "4,3,2,1,0", "--separator", ",", "--captions", str(tmp_path / "c.jsonl"))
    code, out = ranks(tmp_path, *options, "--field", "product=item", "--px", "32", "--threads", "2")
    assert code == 0
    rows = table(out / "creatives.arrow")
    assert {r["caption"] for r in rows if r["product"] == "item3"} == {"red mug. kitchen/mugs"}
    assert {r["caption"] for r in rows if r["product"] == "item4"} == {"product"}
    assert Image.open(io.BytesIO(rows[0]["image_png"])).size == (32, 32)
    code, few = ranks(tmp_path, *options[:4], "--max-products", "8", "--test-policy", "posterior", out="few")
    assert 2 <= json.loads((few / "manifest.json").read_text())["products"] <= 14


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("item1\t1_0.jpg\t20200701\t600", "4 fields, 5 are needed"),
        ("item1\t1_0.jpg\t20200701\tmany\t3", "could not convert"),
        ("item1\t1_0.jpg\t20200701\tnan\t3", "is not a count"),
        ("item1\t1_0.jpg\t20200701\tinf\t3", "is not a count"),
        ("item1\t1_0.jpg\t20200701\t600\t-1", "is not a count"),
        ("item1\t1_0.jpg\t20200701\t600\t601", "601 clicks on 600 impressions"),
        ("\t1_0.jpg\t20200701\t600\t3", "item or picture is empty"),
    ],
)
def test_bad_lines_are_reported_with_file_and_line(tmp_path, ranking, capsys, line, why):
    ranking["train"].insert(7, line)
    write_lists(tmp_path, ranking)
    code, out = ranks(tmp_path)
    assert code == errors.BAD_INPUT
    err = capsys.readouterr().err
    assert "train_data_list.txt:8: " in err
    assert why in err
    assert not out.exists()
    assert ranks(tmp_path, "--skip-bad", "1")[0] == 0


def test_bad_pictures_are_reported_with_their_line(tmp_path, ranking, capsys):
    (tmp_path / "images" / "0_0.jpg").unlink()
    (tmp_path / "images" / "0_1.jpg").write_text("no picture")
    bomb(tmp_path / "images" / "0_2.jpg")
    code, out = ranks(tmp_path, "--min-weight", "0")
    assert code == errors.BAD_INPUT
    err = capsys.readouterr().err
    for line, why in ((1, "no picture '0_0.jpg'"), (4, "is not a picture"), (7, "too large")):
        assert f"train_data_list.txt:{line}: " in err
        assert why in err
    assert not out.exists()
    assert ranks(tmp_path, "--min-weight", "0", "--skip-bad", "3")[0] == 0
    assert "item0" not in {p["product"] for p in table(out / "pairs.arrow")}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--min-impressions", "9999999"), "no pairs are left"),
        (("--images", "none"), "no folder"),
        (("--columns", "0,1"), "five positions"),
        (("--train-list", "none"), "no list at none"),
        (("--px", "0"), "--px must be at least 1"),
    ],
)
def test_options_that_cannot_work(tmp_path, ranking, capsys, options, why):
    code, out = ranks(tmp_path, *options)
    assert code == errors.BAD_INPUT
    assert why in capsys.readouterr().err
    assert not out.exists()


def test_no_lists_at_all(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert ranks(tmp_path)[0] == errors.BAD_INPUT
    assert "no train_data_list.txt or test_data_list.txt" in capsys.readouterr().err


# --- join ---


def test_training_pairs_of_one_and_test_pairs_of_another(tmp_path, ranking, caig):
    _, train = ranks(tmp_path, "--policy", "posterior")
    _, test = convert(tmp_path, caig, "--split", "test", out="t")
    assert formats.main(["join", str(train), str(test), "--out", str(tmp_path / "j")]) == 0
    creatives, pairs = load_dataset(tmp_path / "j")
    assert pairs.test.sum() == 60
    assert (~pairs.test).sum() == json.loads((train / "manifest.json").read_text())["train"]
    assert len(creatives.ids) == len(set(creatives.ids))
    # Joined with itself nothing is left to learn from.
    assert formats.main(["join", str(test), str(test), "--out", str(tmp_path / "k")]) == errors.BAD_INPUT
    assert not (tmp_path / "k").exists()
