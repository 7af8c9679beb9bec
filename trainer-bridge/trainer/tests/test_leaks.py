"""Data sets that lie about what was held out: what load_dataset lets through must be an honest exam."""

import numpy as np
import pyarrow as pa
import pytest
from conftest import png, write_arrow

from ctrloop_trainer import data, errors

GOOD = [("A", "a1", "a2", True, 0.8, "train"), ("B", "b1", "b2", True, 0.8, "train")]
TEST = ("X", "x1", "x2", True, 0.8, "test")
COLUMNS = ("product", "left", "right", "left_wins", "weight", "split")


@pytest.fixture
def load(tmp_path):
    """load(pairs, pictures, **columns): a data set of three products with two creatives each, written and read."""

    def make(pairs, pictures=lambda images: images, **columns):
        images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
        creatives = {
            "creative": ["a1", "a2", "b1", "b2", "x1", "x2"],
            "product": list("AABBXX"),
            "caption": ["mug. k/m"] * 6,
            "description": ["d"] * 6,
            "seed": pa.array([1] * 6, pa.uint64()),
            "image_png": [png(x) for x in pictures(images)],
            "impressions": [1000] * 6,
            "clicks": [40, 30] * 3,
            "posterior_mean": [0.04, 0.03] * 3,
        }
        write_arrow(tmp_path / "creatives.arrow", creatives)
        rows = {"pair_id": [f"q{i}" for i in range(len(pairs))]}
        rows |= {name: [p[i] for p in pairs] for i, name in enumerate(COLUMNS)}
        write_arrow(tmp_path / "pairs.arrow", rows | columns)
        return data.load_dataset(tmp_path)

    return make


def test_an_honest_data_set_is_read(load):
    assert len(load([*GOOD, TEST])[1]) == 3


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([*GOOD, ("X", "x1", "b1", True, 0.8, "test")], "right creative b1 of B"),
        ([*GOOD, ("A", "x1", "x2", True, 0.8, "train"), TEST], "left creative x1 of X"),
        ([*GOOD, ("X", "a1", "a2", True, 0.8, "train")], "left creative a1 of A"),
        ([*GOOD, ("A", "a1", "a1", True, 0.8, "train")], "creative a1 against itself"),
        ([*GOOD, GOOD[0]], "pairs q0 and q2 .* the same two creatives"),
        ([*GOOD, ("A", "a2", "a1", False, 0.8, "train")], "pairs q0 and q2 .* the same two creatives"),
        ([*GOOD, TEST, ("X", "x1", "x2", True, 0.8, "train")], "product X is in the training and in the test"),
    ],
    ids=["right side", "product of others", "name of others", "itself", "again", "mirrored", "both splits"],
)
def test_a_pair_that_lies_is_refused(load, pairs, told):
    with pytest.raises(errors.BadInputError, match=told):
        load(pairs)


def test_one_id_for_two_pairs_is_refused(load):
    with pytest.raises(errors.BadInputError, match="pair q is twice"):
        load(GOOD, pair_id=["q", "q"])


def test_the_same_creatives_elsewhere_or_on_other_evidence_are_another_pair(load):
    again = [*GOOD, GOOD[0]]
    assert len(load(again, placement=["feed", "feed", "search"])[1]) == 3
    counts = {"left_impressions": [500] * 3, "left_clicks": [20, 20, 21], "right_impressions": [500] * 3}
    assert len(load(again, **counts, right_clicks=[15] * 3)[1]) == 3
    with pytest.raises(errors.BadInputError, match="same two creatives"):
        load(again, **{**counts, "left_clicks": [20] * 3}, right_clicks=[15] * 3)


def test_a_picture_under_a_training_and_a_test_product_is_refused(load):
    """A shop that lists one article twice: the test would be about what was learned."""

    def same(images):
        images[5] = images[0]
        return images

    with pytest.raises(errors.BadInputError, match="a1 of training product A and x2 of test product X"):
        load([*GOOD, TEST], same)
    assert len(load(GOOD, same)[1]) == 2  # nobody is examined on it


def test_pairs_that_are_all_ties_are_no_evidence(load):
    with pytest.raises(errors.NoEvidenceError, match="weight 0"):
        load([(*p[:4], 0.0, p[5]) for p in GOOD])
