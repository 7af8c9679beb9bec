"""Pictures of other people's data sets, made into the models' view; what is wrong with one is said, not guessed."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PAD = (245, 245, 245)  # the plain view's background, behind transparent pixels and beside narrow pictures
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decoded: 150 MB of memory, and nobody's creative


class BadPictureError(Exception):
    """Missing, corrupt or too large."""


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
    """RGB picture, upright, transparent parts on PAD. A JPEG may come reduced, to no less than smallest a side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is max_pixels
        try:
            with Image.open(path) as picture:
                if picture.width * picture.height > max_pixels:
                    size = f"{picture.width} x {picture.height}"
                    raise BadPictureError(f"{path.name} is {size} px, more than {max_pixels:,} pixels are not read")
                if smallest:
                    picture.draft("RGB", (smallest, smallest))
                return flatten(ImageOps.exif_transpose(picture))
        except UnidentifiedImageError:
            raise BadPictureError(f"{path.name} is not a picture") from None
        except Image.DecompressionBombError:
            raise BadPictureError(f"{path.name} is too large to be read") from None
        # Decoders raise these three for files that are cut or damaged.
        except (OSError, SyntaxError, ValueError) as e:
            raise BadPictureError(f"{path.name} is damaged: {e}") from None


def flatten(picture: Image.Image) -> Image.Image:
    """RGB, transparency laid on PAD."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*PAD, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return picture.convert("RGB")


def view(picture: Image.Image, px: int) -> bytes:
    """PNG of the models' view: px x px, the whole picture with its proportions, PAD beside it."""
    scale = px / max(picture.size)
    # A box filter reduces, as the pipeline's own view does; it would only repeat pixels when enlarging.
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    size = tuple(max(1, round(x * scale)) for x in picture.size)
    out = Image.new("RGB", (px, px), PAD)
    out.paste(picture.resize(size, how), ((px - size[0]) // 2, (px - size[1]) // 2))
    b = io.BytesIO()
    out.save(b, "PNG")
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
