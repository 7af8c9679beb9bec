"""The one reader of pictures, whoever they come from: RGB of eight bits, upright, transparent parts on the views' grey;
its size is looked at before anything is decoded, and what is wrong with a picture is said, not guessed.

All doors read by it (data sets, folders to learn from, other people's data, requests to the model server), so that a
model is asked about the same pixels that it was trained on.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadInputError

VIEW_PX = 64  # side of the embedded models' square view
GROUND = (245, 245, 245)  # the plain view's background, behind transparent pixels and beside narrow pictures
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decoded: 150 MB of memory, and nobody's creative
# The longer side over the shorter one. Processors refuse (Qwen, above 200) or blow up what is a line and no picture.
MAX_ASPECT = 100
# What browsers show. Every further decoder of the library is code that a stranger's bytes would run through.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class BadPictureError(Exception):
    """Missing, corrupt, too large, or no picture that a model could see."""


def find(folder: Path, name: str) -> Path:
    """The file that a list calls name: below folder as written, or directly in folder by its last part.

    The second form is for lists that carry the folders of the machine that wrote them. Nothing outside folder is
    ever opened.
    """
    base = folder.resolve()
    for candidate in (base / name, base / Path(name).name):
        path = candidate.resolve()
        if path.is_relative_to(base) and path.is_file():
            return path
    raise BadPictureError(f"no picture {name!r} in {folder}")


def load(path: Path, max_pixels: int = MAX_PIXELS, smallest: int = 0) -> Image.Image:
    """read() of a file; errors name it."""
    try:
        with open(path, "rb") as f:
            return read(f, max_pixels=max_pixels, smallest=smallest)
    except OSError as e:
        raise BadPictureError(f"{path.name} cannot be read: {e}") from None
    except BadPictureError as e:
        raise BadPictureError(f"{path.name} {e}") from None


def read(
    source: bytes | io.BufferedIOBase, max_pixels: int = MAX_PIXELS, max_side: int = 0, smallest: int = 0
) -> Image.Image:
    """An encoded picture as RGB; BadPictureError says why it is none.

    Its declared size is held against max_pixels, max_side (0: any) and MAX_ASPECT before it is decoded. A JPEG may come
    reduced, to no less than smallest px a side.
    """
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits here are lower
        try:
            with Image.open(source, formats=FORMATS) as picture:
                _check_size(picture, max_pixels, max_side)
                if smallest:
                    picture.draft("RGB", (smallest, smallest))
                return flatten(eight_bits(ImageOps.exif_transpose(picture)))
        except UnidentifiedImageError:
            raise BadPictureError("is not a picture") from None
        except Image.DecompressionBombError as e:  # the library's own limit, for formats that say their size late
            raise BadPictureError(f"is too large to be read: {e}") from None
        # Decoders raise these for files that are cut or damaged.
        except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as e:
            raise BadPictureError(f"is damaged: {e}") from None


def _check_size(picture: Image.Image, max_pixels: int, max_side: int) -> None:
    width, height = picture.size
    size = f"is {width} x {height} px"
    if width < 1 or height < 1:
        raise BadPictureError(f"{size}: there is nothing to see")
    if width * height > max_pixels:
        raise BadPictureError(f"{size}, more than {max_pixels:,} pixels are not read: scale it down")
    if max_side and max(width, height) > max_side:
        raise BadPictureError(f"{size}, too large to be a view: at most {max_side} px a side are read")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadPictureError(f"{size}, a line: the longer side may be {MAX_ASPECT} times the shorter one")


def eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with eight bits a channel. Pillow would cut sixteen bits of grey at 255, which leaves white."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        grey = np.asarray(picture).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 0xFFFF:
            raise BadPictureError("has more than 16 bits a pixel: save it with 8")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise BadPictureError("has floating-point pixels, which have no brightest value: save it with 8 bits")
    return picture


def flatten(picture: Image.Image) -> Image.Image:
    """RGB, transparency laid on GROUND."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*GROUND, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return picture.convert("RGB")


def square(picture: Image.Image, px: int) -> np.ndarray:
    """The models' view, uint8 (px, px, 3): the whole picture with its proportions, GROUND beside it."""
    scale = px / max(picture.size)
    # A box filter reduces, as the pipeline's own view does; it would only repeat pixels when enlarging.
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    size = tuple(max(1, round(x * scale)) for x in picture.size)
    out = Image.new("RGB", (px, px), GROUND)
    out.paste(picture.resize(size, how), ((px - size[0]) // 2, (px - size[1]) // 2))
    return np.asarray(out)


def fit(images: np.ndarray, px: int, reader: str) -> np.ndarray:
    """Views, uint8 (n, side, side, 3), as a model of px x px reads them: larger ones are reduced by averaging, as the
    pipeline makes its views. BadInputError for smaller ones: what was not drawn cannot be seen."""
    side = images.shape[1:3]
    if side == (px, px):
        return images
    if side[0] != side[1] or side[0] < px:
        got = " x ".join(map(str, side))
        raise BadInputError(
            f"pictures of {got} px: {reader} was trained on views of {px} x {px} px; build the data set, or "
            "draw, with views of at least that"
        )
    out = np.empty((len(images), px, px, 3), np.uint8)
    for o, x in zip(out, images, strict=True):
        o[:] = Image.fromarray(x).resize((px, px), Image.Resampling.BOX)
    return out


def view(picture: Image.Image, px: int) -> bytes:
    """square() as PNG."""
    return png(square(picture, px))


def png(image: np.ndarray) -> bytes:
    """PNG of uint8 (height, width, 3)."""
    b = io.BytesIO()
    Image.fromarray(image).save(b, "PNG")
    return b.getvalue()


def halves(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Left and right half of two pictures side by side."""
    w, h = picture.size
    if w < 2 or w % 2:
        raise BadPictureError(f"{w} x {h} px cannot be two pictures of equal width side by side")
    return picture.crop((0, 0, w // 2, h)), picture.crop((w // 2, 0, w, h))


def pixels(picture: Image.Image) -> bytes:
    """Size and raw pixels: equal for equal pictures, whatever file they came in."""
    return repr(picture.size).encode() + np.asarray(picture).tobytes()
