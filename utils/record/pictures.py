"""Pictures of what a network gets wrong and of its first filters, drawn with PIL."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

import datasets
from utils.training import parallel
from utils.training.predictions import Predictions, mistakes

MISTAKES, MOST_FILTERS = 6, 256
TILE, GAP, TEXT, FONT = 200, 12, 220, 20    # pixels; TensorBoard's cards are wide and 200 high
FILTER, BETWEEN = 48, 3


@dataclass(frozen=True)
class Pictures:
    """Draws validation images, items (tensor, class number), which are normalized as spec says."""

    images: Sequence
    spec: datasets.DatasetSpec
    classes: list[str]

    def mistakes(self, predictions: Predictions) -> list[Image.Image]:
        """Up to MISTAKES pictures, of the surest ones on this process's validation images.

        Each is the image as the network saw it, its class, and the two likeliest classes.
        """
        target, likeliest, probabilities = predictions.of_this_rank()
        pictures, classes = [], drawable(self.classes)
        for place in surest_mistakes(target, likeliest, probabilities, MISTAKES):
            image, _ = self.images[parallel.rank() + place * parallel.processes()]
            two = zip(likeliest[place, :2].tolist(), probabilities[place, :2].tolist())
            pictures.append(with_text(to_pil(datasets.pixels(image, self.spec)), [
                classes[target[place]], 'taken for',
                *(f'{classes[label]} {100 * share:.1f} %' for label, share in two)]))
        return pictures


def surest_mistakes(target: Tensor, likeliest: Tensor, probabilities: Tensor,
                    most: int) -> list[int]:
    """The places of up to `most` wrong predictions, see Predictions, the likeliest ones first.

    One of each class before the second of any.
    """
    wrong = mistakes(target, likeliest, probabilities)
    labels, first = target.tolist(), {}
    for place in wrong:
        first.setdefault(labels[place], place)
    chosen = set(first.values())
    return [*first.values(), *(place for place in wrong if place not in chosen)][:most]


def with_text(picture: Image.Image, lines: list[str]) -> Image.Image:
    """A picture in a frame of TILE × TILE, and beside it lines of text, on white."""
    page = Image.new(picture.mode, (TILE + GAP + TEXT, TILE), 'white')
    draw = ImageDraw.Draw(page)
    picture = in_tile(picture)
    page.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    draw.rectangle((0, 0, TILE - 1, TILE - 1), outline='silver')
    for number, text in enumerate(lines):
        place, font = (TILE + GAP, round((number + .8) * 1.5 * FONT)), font_of(text)
        draw.text(place, shortened(text, font), 'black', font)
    return page


def drawable(classes: list[str]) -> list[str]:
    """The names as the fonts of this machine can show them; see utils.style."""
    if all(name.isascii() and name.isprintable() for name in classes):
        return classes      # Matplotlib takes long to import
    from utils import style
    return style.drawable(classes)


def font_of(text: str):
    """A font that has all characters of a text, which begins with a drawable name."""
    if not text.isascii():
        from utils import style
        if font := style.font_for(text):
            return ImageFont.truetype(font.fname, FONT)
    return ImageFont.load_default(FONT)


def in_tile(picture: Image.Image) -> Image.Image:
    """At most TILE wide and high; the pixels of a small picture are enlarged to squares."""
    longest = max(picture.size)
    if longest > TILE:
        return ImageOps.contain(picture, (TILE, TILE), Image.Resampling.LANCZOS)
    return ImageOps.scale(picture, TILE // longest, Image.Resampling.NEAREST)


def shortened(text: str, font) -> str:
    """The text without its middle where it is wider than its column."""
    kept = text
    length = len(text)
    while font.getlength(kept) > TEXT - GAP:
        length -= 1
        kept = f'{text[:length // 2]}…{text[length // 2 - length:]}'
    return kept


def filters(weight: Tensor) -> Image.Image | None:
    """Filters (N, C, h, w) of 1 or 3 channels, each scaled by its largest weight; 0 is mid-gray.

    At most MOST_FILTERS of them; None where there are other channels.
    """
    weight = weight.detach().float().cpu()[:MOST_FILTERS]
    if weight.size(1) not in datasets.KINDS:
        return None
    from torchvision.utils import make_grid     # slow to import
    largest = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    scale = max(1, FILTER // max(weight.shape[2:]))
    pixels = (weight / largest + 1) / 2
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    columns = min(8 * math.ceil(math.sqrt(2 * len(pixels)) / 8), len(pixels))   # wide, not high
    grid = make_grid(pixels, columns, padding=BETWEEN, pad_value=1)     # always of 3 channels
    return to_pil(grid[:weight.size(1)])


def to_pil(pixels: Tensor) -> Image.Image:
    """A gray or an RGB picture of (1 or 3, H, W), numbers from 0 to 1."""
    array = (255 * pixels).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
