"""The one reader of pictures: upright, eight bits, transparency on the views' grey, bounded before it decodes; and that
everything which reads pictures goes through it."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import write_arrow
from PIL import Image

from ctrloop_trainer import data, errors, pictures
from ctrloop_trainer.pictures import BadPictureError
from ctrloop_trainer.prompt import folder
from ctrloop_trainer.serve import ApiError, chat


def encoded(picture: Image.Image, kind: str = "PNG", **how) -> bytes:
    b = io.BytesIO()
    picture.save(b, kind, **how)
    return b.getvalue()


def rotated() -> bytes:
    """Stored 64 x 32, the left half red; shown upright (orientation 6) the upper half is."""
    picture = Image.new("RGB", (64, 32), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture, "JPEG", exif=exif, quality=95)


def ramp() -> bytes:
    """Sixteen bits of grey from 0 to 65,535, from left to right."""
    return encoded(Image.fromarray(np.linspace(0, 65535, 64)[None].repeat(64, 0).astype(np.uint16)))


def cut_out() -> bytes:
    """An opaque square on nothing."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (200, 50, 50, 255)
    return encoded(Image.fromarray(rgba))


def bomb(side: int = 60_000) -> bytes:
    """About a hundred bytes that claim side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def by_itself(raw: bytes, tmp_path: Path) -> np.ndarray:
    return np.asarray(pictures.read(raw))


def of_a_folder(raw: bytes, tmp_path: Path) -> np.ndarray:
    path = tmp_path / "picture"
    path.write_bytes(raw)
    return folder.picture(path, 64)


def of_a_dataset(raw: bytes, tmp_path: Path) -> np.ndarray:
    return data._images(["c"], [raw])[0]


def of_a_request(raw: bytes, tmp_path: Path) -> np.ndarray:
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    return np.asarray(chat.decoded([chat._encoded(url)])[0])


READERS = [by_itself, of_a_folder, of_a_dataset, of_a_request]


@pytest.fixture(params=READERS, ids=lambda f: f.__name__)
def read(request, tmp_path):
    """read(raw): the picture by one of the doors that it may come in by, uint8 (height, width, 3)."""
    return lambda raw: request.param(raw, tmp_path)


def test_a_rotated_photograph_is_upright(read):
    x = read(rotated()).astype(int)
    middle = x.shape[1] // 2
    assert x[x.shape[0] // 4, middle, 0] > 180 > 90 > x[3 * x.shape[0] // 4, middle, 0]


def test_sixteen_bits_keep_their_greys(read):
    row = read(ramp())[32, :, 0]
    assert row[0] == 0
    assert row[-1] == 255
    assert 120 < np.median(row) < 135
    assert (np.diff(row.astype(int)) > 0).all()


def test_transparency_shows_the_grey_that_training_saw(read):
    x = read(cut_out())
    assert x[0, 0].tolist() == list(pictures.GROUND)
    assert x[32, 32].tolist() == [200, 50, 50]


def test_colours_of_print_and_of_palettes(read):
    assert np.abs(read(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"))[16, 16] - [254, 0, 0]).max() < 9
    palette = Image.new("RGB", (32, 32), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.abs(read(encoded(palette, "GIF")).astype(int)[16, 16] - [10, 200, 30]).max() < 9


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (bomb(), "too large"),
        (bomb(9_000), "9000 x 9000"),
        (encoded(Image.new("RGB", (400, 1))), "400 x 1"),
        (encoded(Image.new("RGB", (2, 1900))), "2 x 1900"),
        (cut_out()[:90], "damaged"),
        (b"GIF89 no picture", "not a picture"),
    ],
    ids=["bomb", "smaller bomb", "wide line", "tall line", "cut", "no picture"],
)
def test_what_cannot_be_used_is_bad_input(read, raw, told):
    with pytest.raises((errors.BadInputError, BadPictureError, ValueError, ApiError)) as e:
        read(raw)
    assert told in str(e.value)
    if isinstance(e.value, ApiError):
        assert e.value.code == 400


def test_nothing_is_decoded_before_the_size_is_known(monkeypatch):
    """A file of a hundred bytes may ask for gigabytes."""
    view = encoded(Image.new("RGB", (101, 80)))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadPictureError, match="more than"):
        pictures.read(bomb(9_000))
    with pytest.raises(BadPictureError, match="at most 100"):
        pictures.read(view, max_side=100)


def test_an_empty_dataset_has_views_of_the_default_size(tmp_path):
    write_arrow(tmp_path / "x.arrow", {"a": [1]})
    assert data._images([], []).shape == (0, pictures.VIEW_PX, pictures.VIEW_PX, 3)
