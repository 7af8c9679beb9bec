"""The eye: where the product is, what the picture's numbers are, and what the shipped eyes can do."""

import json

import numpy as np
import pytest
import torch
from conftest import WEIGHTS

from ctrloop_trainer import errors
from ctrloop_trainer.digest import dir_digest
from ctrloop_trainer.reward.trunk import STATISTICS, Trunk, product_masks, statistics, to_pixels


def picture(product, background, px=64):
    """A square product in front of a flat background; colours are RGB, 0 to 255."""
    image = np.empty((px, px, 3), np.uint8)
    image[:] = background
    image[px // 4 : -px // 4, px // 4 : -px // 4] = product
    return image


def square(px=32):
    mask = torch.zeros(1, 1, px, px)
    mask[..., px // 4 : -px // 4, px // 4 : -px // 4] = 1
    return mask


def measured(image, mask=None):
    values = statistics(to_pixels(image[None]), square() if mask is None else mask)[0]
    return dict(zip(STATISTICS, values.tolist(), strict=True))


def test_mask_is_where_pictures_do_not_change_with_the_background():
    rng = np.random.default_rng(0)
    images, products = [], []
    for i in range(24):
        image = picture((200, 30, 30), rng.integers(0, 255, 3))
        # A shadow on the background, never on the product, must not count as product.
        image[48:56] = (image[48:56] * 0.6).astype(np.uint8)
        images.append(image)
        products.append("p" if i % 2 else "p~h1")
    masks, shape = product_masks(np.stack(images), products)
    assert masks.shape == (1, 1, 32, 32)
    assert set(shape) == {0}
    assert torch.equal(masks > 0.5, square() > 0.5)


def test_statistics_of_flat_colours():
    s = measured(picture((255, 0, 0), (0, 255, 0)))
    assert s["p_area"] == pytest.approx(0.25)
    assert s["p_luma"] == pytest.approx(0.299, abs=1e-3)
    assert s["b_luma"] == pytest.approx(0.587, abs=1e-3)
    assert s["luma_contrast"] == pytest.approx(0.288, abs=1e-3)
    assert s["edge_luma_contrast"] == pytest.approx(0.288, abs=1e-2)
    assert s["p_u"] == pytest.approx(1.0, abs=1e-3)
    assert s["b_saturation"] == pytest.approx(1 / 1.05, abs=1e-3)
    assert s["b_luma_spread"] < 1e-3
    # Red and green are 120 degrees apart: neither near nor opposite, but two of a triad.
    assert s["hue_near"] == pytest.approx(-0.5, abs=0.01)
    assert s["hue_opposite"] == pytest.approx(-0.5, abs=0.01)
    assert s["hue_triad"] == pytest.approx(1.0, abs=0.01)


def test_opposite_hues_and_grey():
    opposite = measured(picture((255, 0, 0), (0, 255, 255)))
    assert opposite["hue_near"] == pytest.approx(-1, abs=0.01)
    assert opposite["hue_opposite"] == pytest.approx(1, abs=0.01)
    grey = measured(picture((255, 0, 0), (128, 128, 128)))
    assert abs(grey["vivid_near"]) < 1e-3  # a grey wall neither agrees nor clashes


def test_statistics_look_only_where_the_mask_says():
    one, two = picture((255, 0, 0), (90, 90, 90)), picture((0, 0, 255), (90, 90, 90))
    a, b = measured(one), measured(two)
    for name in ("b_luma", "b_u", "b_v", "b_chroma", "b_saturation"):
        assert a[name] == pytest.approx(b[name], abs=1e-4)
    assert a["p_u"] != pytest.approx(b["p_u"], abs=0.1)


def test_clutter_sees_what_half_resolution_would_lose():
    image = picture((10, 10, 10), (128, 128, 128))
    image[::2, ::2][:8] = 255
    assert measured(image)["b_clutter"] > 2 * measured(picture((10, 10, 10), (128, 128, 128)))["b_clutter"]


def test_describe_is_named_and_finite():
    trunk = Trunk.load(WEIGHTS / "reward-trunk")
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    x = trunk.describe(np.concatenate([images, np.zeros_like(images[:1]), np.full_like(images[:1], 255)]))
    assert x.shape == (5, len(trunk.columns))
    assert torch.isfinite(x).all()
    at = 0
    for n in trunk.sizes:
        assert torch.allclose(x[:, at : at + n].sum(1), torch.ones(5), atol=1e-5)
        at += n
    assert trunk.columns[at:] == STATISTICS
    assert trunk.describe(images[:0]).shape == (0, trunk.described)


@pytest.mark.parametrize("name", ["reward-trunk", "referee-trunk"])
def test_shipped_eyes_see(name):
    figures = json.loads((WEIGHTS / name / "figures.json").read_text())["figures"]
    named = figures["held_out_naming"]
    assert named["scene"] > 0.95
    assert named["palette"] > 0.85
    assert named["light"] > 0.95
    assert figures["held_out_mask_overlap"] > 0.75
    assert figures["held_out_statistics_error"]["median"] < 0.2


def test_the_two_eyes_are_strangers():
    made = [json.loads((WEIGHTS / n / "figures.json").read_text())["seed"] for n in ("reward-trunk", "referee-trunk")]
    assert made[0] != made[1]
    a, b = (Trunk.load(WEIGHTS / n) for n in ("reward-trunk", "referee-trunk"))
    assert not torch.equal(a.project.weight, b.project.weight)


def losses_of_guessing(grammar):
    """Cross-entropy of uniform names and of a mask of one half."""
    return sum(np.log(n) for n in grammar.sizes) + 2 * np.log(2)


def test_job_learns_and_repeats(make_spec, run_job, grammar):
    spec = make_spec("trunk", {"steps": 30, "batch": 8, "pictures": 120, "eval_pictures": 48, "warmup": 3})
    (code, a), (_, b) = run_job(spec, "a"), run_job(spec, "b")
    assert code == errors.OK
    curve = [json.loads(x) for x in (a / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in curve if r["stage"] == "trunk"][-1] < 0.85 * losses_of_guessing(grammar)
    tensors = [(f / "model" / "trunk.safetensors").read_bytes() for f in (a, b)]
    assert tensors[0] == tensors[1]
    other = run_job({**spec, "seed": 6}, "c")[1]
    assert dir_digest(other / "model") != dir_digest(a / "model")


def test_a_trunk_of_another_shape_is_refused(tmp_path, grammar):
    Trunk(grammar.sizes).save(tmp_path)
    (tmp_path / "trunk.json").write_text('{"sizes": [1, 2, 3, 4]}')
    with pytest.raises(errors.BadInputError, match="cannot load the trunk"):
        Trunk.load(tmp_path)
    with pytest.raises(errors.BadInputError, match="holds no trunk"):
        Trunk.load(tmp_path / "none")
