"""Where the product is: canvas, control image, mask, and what happens to generated pixels.

The geometry is the Go side's (internal/imaging): the cut-out cropped to its alpha box, its longer side 0.78 of the
canvas, centred. Product pixels are copied, never generated: `composite` multiplies by the undilated mask.
All pictures are square, uint8, px pixels a side.
"""

import dataclasses

import cv2
import numpy as np

PRODUCT_SCALE = 0.78  # longer side of the product, as a share of the canvas
CANNY_LOW, CANNY_HIGH = 100, 200  # thresholds of the control image
DILATE_PX, DILATE_OF = 20, 512  # the inpaint mask reaches so far into the product, on a canvas of so many pixels
GROUND = 245  # grey of the plain view


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A product in its place. Colours are premultiplied: the product on black."""

    colour: np.ndarray  # uint8 (px, px, 3)
    alpha: np.ndarray  # uint8 (px, px)

    @property
    def px(self) -> int:
        return len(self.alpha)

    @staticmethod
    def of_rgba(rgba: np.ndarray) -> "Canvas":
        """From straight RGBA, uint8 (px, px, 4)."""
        a = rgba[..., 3:].astype(np.uint16)
        return Canvas(((rgba[..., :3] * a + 127) // 255).astype(np.uint8), rgba[..., 3].copy())

    @staticmethod
    def of_plain(plain: np.ndarray, alpha: np.ndarray) -> "Canvas":
        """From the plain view (product on GROUND) and the product's coverage."""
        colour = plain.astype(np.int32) - ((255 - alpha.astype(np.int32))[..., None] * GROUND + 127) // 255
        return Canvas(colour.clip(0, alpha[..., None]).astype(np.uint8), alpha)

    def resized(self, px: int) -> "Canvas":
        """The same canvas at another size."""
        if px == self.px:
            return self
        colour, alpha = resize(self.colour, px), resize(self.alpha, px)
        return Canvas(np.minimum(colour, alpha[..., None]), alpha)

    def plain(self) -> np.ndarray:
        """The product on light grey: what the pipeline starts from and the prompt model sees."""
        return self.composite(np.full_like(self.colour, GROUND))

    def control(self) -> np.ndarray:
        """Edges of the product on black, (px, px, 3), 0 or 255."""
        edges = cv2.Canny(cv2.cvtColor(self.colour, cv2.COLOR_RGB2GRAY), CANNY_LOW, CANNY_HIGH)
        return np.repeat(edges[..., None], 3, 2)

    def mask(self) -> np.ndarray:
        """255 where the pipeline paints: around the product, and a rim of it, so that seams are painted over."""
        reach = dilation(self.px)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        return cv2.dilate(255 - self.alpha, kernel)

    def composite(self, background: np.ndarray) -> np.ndarray:
        """mask x background + (1 - mask) x product with the undilated mask; exact where alpha is 255."""
        if background.shape != self.colour.shape:
            raise ValueError(f"background of {background.shape} for a canvas of {self.colour.shape}")
        clear = 255 - self.alpha.astype(np.int32)[..., None]
        return (self.colour + (background * clear + 127) // 255).clip(0, 255).astype(np.uint8)


def place(rgba: np.ndarray, px: int) -> Canvas:
    """A cut-out of any size, uint8 (h, w, 4), on a canvas of px pixels. ValueError when it has no opaque part."""
    ys, xs = np.nonzero(rgba[..., 3])
    if not len(ys):
        raise ValueError("the cut-out is fully transparent")
    box = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.float32)
    box[..., :3] *= box[..., 3:] / 255
    k = PRODUCT_SCALE * px / max(box.shape[:2])
    h, w = (max(1, int(n * k + 0.5)) for n in box.shape[:2])
    small = cv2.resize(box, (w, h), interpolation=cv2.INTER_AREA if k < 1 else cv2.INTER_CUBIC)
    small = np.rint(small).clip(0, 255).astype(np.uint8)
    colour, alpha = np.zeros((px, px, 3), np.uint8), np.zeros((px, px), np.uint8)
    y, x = (px - h) // 2, (px - w) // 2
    alpha[y : y + h, x : x + w] = small[..., 3]
    colour[y : y + h, x : x + w] = np.minimum(small[..., :3], small[..., 3:])
    return Canvas(colour, alpha)


def dilation(px: int) -> int:
    """Reach of the inpaint mask into the product on a canvas of px pixels, at least one."""
    return max(1, int(px * DILATE_PX / DILATE_OF + 0.5))


def resize(image: np.ndarray, px: int) -> np.ndarray:
    """To px pixels a side: the mean of an area when smaller, bicubic when larger."""
    if px == image.shape[0]:
        return image
    return cv2.resize(image, (px, px), interpolation=cv2.INTER_AREA if px < image.shape[0] else cv2.INTER_CUBIC)


def spread(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Continues the background into the product's place.

    A generated picture shows the product, too, softened by the VAE. Enlarged and with the sharp product pasted on top
    that would be a halo, so product pixels are replaced by the nearest background before: Gaussian means over the
    background alone, each pixel from the narrowest one that reaches some.
    """
    if not alpha.any() or (alpha > 0).all():
        return image
    known = (alpha == 0).astype(np.float32)
    colour = image.astype(np.float32) * known[..., None]
    out, todo = image.astype(np.float32), known == 0
    sigma = 1.0
    while todo.any() and sigma < 4 * len(alpha):
        weight = cv2.GaussianBlur(known, (0, 0), sigma)
        mean = cv2.GaussianBlur(colour, (0, 0), sigma)
        here = todo & (weight > 0.02)
        out[here] = mean[here] / weight[here][:, None]
        todo &= ~here
        sigma *= 2
    return np.rint(out).clip(0, 255).astype(np.uint8)
