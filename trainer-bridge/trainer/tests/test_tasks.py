"""The three task families: what is asked and answered, from the shop and from a folder of pictures and texts."""

import json
import random

import numpy as np
import pytest
from conftest import png
from PIL import Image

from ctrloop_trainer import pictures
from ctrloop_trainer.errors import BadInputError
from ctrloop_trainer.matching import text_figures
from ctrloop_trainer.prompt import folder, pretrain, tasks
from ctrloop_trainer.prompt.tasks import FAMILIES, FAULTLESS, Scene, Shop, Teacher


@pytest.fixture
def shop_(products, grammar):
    rng = random.Random(1)
    scenes = [Scene(("scene", i), rng.choice(products), grammar.random(rng)) for i in range(20)]
    return Shop(products, scenes, grammar)


def draws(source, family, n=300, teacher=FAULTLESS):
    rng = random.Random(2)
    return [source.draw(family, teacher, rng) for _ in range(n)]


def test_every_family_of_the_shop_has_its_tasks(shop_):
    seen = {f: {e.task for e in draws(shop_, f)} for f in FAMILIES}
    assert seen == {
        "image": {"see", "name"},
        "content": {"see_with_text", "title", "suits"},
        "prompt": {"write", "rewrite"},
    }


def test_answers_are_true(shop_, products, grammar):
    by_id = {p.id: p for p in products}
    scenes = {s.key: s for s in shop_.scenes}
    for family in FAMILIES:
        for e in draws(shop_, family):
            if e.task in ("see", "see_with_text"):
                assert grammar.parse(e.answer) == scenes[e.ask.image].tokens
                continue
            p = by_id[e.ask.image[1]]
            if e.task == "name":
                assert e.answer == p.caption
            elif e.task == "title":
                assert e.answer == p.title
                assert p.title not in e.ask.text  # the answer is not in the question
            elif e.task == "suits":
                scenes_, palettes = (set(x.split(", ")) for x in e.answer.split("; "))
                assert (scenes_, palettes) == (p.fits, p.harmonious)
            else:
                t = grammar.parse(e.answer)
                assert grammar.all_scenes[t[0]] in p.fits
                assert grammar.palettes[t[1]] in p.harmonious


def test_some_captions_hide_the_colour(shop_, products):
    by_id = {p.id: p for p in products}
    asked = [e for e in draws(shop_, "prompt", 1000) if e.task == "write"]
    told = np.mean([by_id[e.ask.image[1]].colour in e.ask.text for e in asked])
    assert 0.45 < told < 0.75


def test_teacher_is_as_imperfect_as_it_says(products, grammar):
    teacher, rng = Teacher(clickbait=0.06, fit=0.75, harmony=0.8), random.Random(3)
    rows = [p for p in products for _ in range(600)]
    figures = text_figures(rows, [grammar.describe(teacher.write(p, grammar, rng)) for p in rows], grammar)
    expected = np.mean([teacher.matching(len(p.fits), len(grammar.scenes), 4, len(grammar.palettes)) for p in products])
    assert figures["clickbait"] == pytest.approx(0.06, abs=0.01)
    # The miniature shop's products have four harmonious palettes as the real ones, and two scenes.
    assert figures["matching"] == pytest.approx(expected, abs=0.015)


def test_a_rewrite_keeps_what_is_good(products, grammar):
    p, rng = products[0], random.Random(4)
    good = [sorted(p.fits)[0], f"{sorted(p.harmonious)[0]} tones", grammar.lights[1], grammar.props[2]]
    assert grammar.describe(FAULTLESS.rewrite(p, good, grammar, rng)) == ", ".join(good)
    bad = [grammar.clickbait[0], "no such tones", grammar.lights[1]]
    t = FAULTLESS.rewrite(p, bad, grammar, rng)
    assert grammar.all_scenes[t[0]] in p.fits
    assert grammar.palettes[t[1]] in p.harmonious
    assert t[2] == 1


# ---- a folder of pictures and texts


def line(**changed) -> dict:
    row = {"image": "a.png", "title": "tea pot", "category": "kitchen/pots", "background": "oak table, soft light"}
    return {k: v for k, v in {**row, **changed}.items() if v is not None}


@pytest.fixture
def make_folder(tmp_path):
    """make_folder(*lines): a folder with products.jsonl and three good pictures (a.png, wide.jpg, cut.webp)."""

    def make(*lines):
        d = tmp_path / "folder"
        d.mkdir(exist_ok=True)
        (d / "a.png").write_bytes(png(np.full((20, 20, 3), 90, np.uint8)))
        Image.new("RGB", (400, 100), (200, 30, 30)).save(d / "wide.jpg")
        Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(d / "cut.webp", lossless=True)
        rows = [x if isinstance(x, str) else json.dumps(x) for x in lines]
        (d / "products.jsonl").write_text("\n".join(rows) + "\n")
        return d

    return make


def test_folder_gives_all_three_families(make_folder):
    d = make_folder(
        line(attributes={"colour": "blue", "size": ""}, creative="wide.jpg"),
        line(title="desk lamp", image="cut.webp", attributes="brass", background="city street at night"),
        line(title="chair", background=None),
        line(title="vase", holdout=True),
    )
    train, held = folder.load(d)
    assert [e.title for e in held.entries] == ["vase"]
    assert train.entries[0].caption == "tea pot, colour: blue. kitchen/pots"
    assert {e.task for f in train.families for e in draws(train, f)} == {
        *("see", "name", "see_with_text", "title", "write", "rewrite")
    }
    backgrounds = {"oak table, soft light", "city street at night"}
    assert {e.answer for e in draws(train, "prompt")} == backgrounds
    for e in draws(train, "content"):
        if e.task == "title":
            assert e.answer not in e.ask.text


def test_folder_without_backgrounds_teaches_understanding_only(make_folder):
    train, _ = folder.load(make_folder(line(background=None, holdout=True), line(background=None, title="x")))
    assert train.families == ("image", "content")


def test_entries_of_a_product_stay_on_one_side(make_folder):
    rows = [line(title=f"thing {i % 30}") for i in range(90)]
    train, held = folder.load(make_folder(*rows))
    assert not {e.product for e in train.entries} & {e.product for e in held.entries}
    more, _ = folder.load(make_folder(*rows, *(line(title=f"new {i}") for i in range(30))))
    assert {e.product for e in train.entries} <= {e.product for e in more.entries}  # nothing moved


def test_pictures_are_whole_squares_on_grey(make_folder):
    d = make_folder(line())
    wide = folder.picture(d / "wide.jpg", 64)
    assert wide.shape == (64, 64, 3)
    assert (wide[0] == pictures.GROUND).all()
    assert wide[32, 1, 0] > 150  # the left edge is not cropped
    assert (folder.picture(d / "cut.webp", 64) == pictures.GROUND).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        (line(image=None), "image is empty"),
        (line(title="  "), "title is empty"),
        (line(category=3), "category must be a text"),
        (line(colour="red"), "unknown field 'colour'"),
        (line(attributes=["red"]), "attributes must be"),
        (line(holdout="yes"), "holdout must be true or false"),
        (line(image="none.png"), "no picture at none.png"),
        (line(image="../secret.png"), "outside the folder"),
        (line(image="broken.png"), "not a readable picture"),
        (line(image="half.png"), "not a readable picture"),
        (line(image="huge.png"), "scale it down"),
        (line(background=None, creative="a.png"), "creative without background"),
    ],
)
def test_bad_line_is_named(make_folder, row, message):
    d = make_folder(line(), row, line(title="other"))
    (d / "broken.png").write_bytes(b"GIF89 no picture")
    noise = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    (d / "half.png").write_bytes(noise[: len(noise) // 2])
    Image.new("1", (8000, 7000)).save(d / "huge.png")
    with pytest.raises(BadInputError) as e:
        folder.load(d)
    assert message in str(e.value)
    assert "products.jsonl:2: " in str(e.value)


def test_all_bad_lines_are_listed_up_to_a_bound(make_folder):
    with pytest.raises(BadInputError) as e:
        folder.load(make_folder(*["{"] * 30))
    assert str(e.value).count("not JSON") == folder.MAX_PROBLEMS
    assert "and 10 more" in str(e.value)


def test_folder_needs_both_sides(make_folder):
    with pytest.raises(BadInputError, match="both are needed"):
        folder.load(make_folder(line(holdout=True)))
    with pytest.raises(BadInputError, match="cannot read"):
        folder.load(make_folder(line()).parent / "nowhere")


def test_shares_choose_source_and_family(make_folder, shop_):
    train, _ = folder.load(make_folder(line(), line(title="x", holdout=True)))
    inputs = pretrain.Inputs(shop=shop_, folder=train)
    h = pretrain.Hyper(image_share=0.0, content_share=1.0, folder_share=0.25)
    rng = random.Random(5)
    got = [pretrain.draw(inputs, h, FAULTLESS, rng) for _ in range(400)]
    assert {e.family for e in got} == {"content"}
    assert 0.15 < np.mean([e.ask.image[0] == "entry" for e in got]) < 0.35
    only = pretrain.Inputs(folder=train)
    assert all(pretrain.draw(only, h, FAULTLESS, rng).ask.image[0] == "entry" for _ in range(20))
    assert tasks.TITLE in pretrain.draw(only, h, FAULTLESS, rng).ask.text
