"""From a PIL image, or from a batch of squares, to what a network sees.

Each kind of image is a function (inpsize, minCrop) -> Steps. Validation takes the center crop or
ten crops of what before_crop makes; of sketches and thumbnails that is a uint8 square of one side
for all images, from which training batches are augmented too (augmentation.py). Photographs go one
by one through torchvision's transforms. torchvision is imported where it is used, since that takes
as long as importing PyTorch.
"""
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from datasets.augmentation import MIN_CROP, RATIO, SketchAugmentation, ThumbnailAugmentation

LONGEST_SHAPE = 16      # times as long as wide: validation sees the middle of longer photographs
STRIP = 1024    # rows that are padded at a time


class Steps(NamedTuple):
    before_crop: list   # transforms of a PIL image to one that is at least inpsize x inpsize
    # Training: of a batch that before_crop has made, or transforms of a PIL image as it is read.
    augment: SketchAugmentation | ThumbnailAugmentation | list
    enough: tuple[int, int] | None = None   # see read_image: for training and for validation

    @property
    def in_batches(self) -> bool:
        return not isinstance(self.augment, list)


def sketches(inpsize, minCrop=MIN_CROP, flip=True):
    """Black on white; inverted first, so that the zeros a rotation uncovers are paper."""
    from torchvision.transforms import v2
    side = side_before_crop(inpsize)
    before_crop = [partial(fit_in_square, side=side), ImageOps.invert, v2.Resize(side)]
    return Steps(before_crop, SketchAugmentation(inpsize, side, flip, minCrop))


def photographs(inpsize, minCrop=MIN_CROP):
    """A training crop is at least sqrt(minCrop * 3 / 4) of the shorter side, and keeps inpsize."""
    from torchvision.transforms import v2
    side = side_before_crop(inpsize)
    augment = [v2.RandomResizedCrop(inpsize, (minCrop, 1)), v2.RandomHorizontalFlip()]
    enough = math.ceil(inpsize / math.sqrt(minCrop * RATIO[0])), 2 * side
    return Steps([middle_of_long, v2.Resize(side)], augment, enough)


def thumbnails(inpsize, minCrop=MIN_CROP):
    """CIFAR: 32x32, padded by 4 with black; both numbers grow with inpsize. minCrop is ignored."""
    from torchvision.transforms import v2
    padding = inpsize // 8
    return Steps([v2.Resize((inpsize, inpsize)), v2.Pad(padding)],
                 ThumbnailAugmentation(inpsize, inpsize + 2 * padding))


def middle_of_long(image):
    """The image without its ends, where Resize of its shorter side would make it huge."""
    width, height = image.size
    most = LONGEST_SHAPE * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = max(width - most, 0) // 2, max(height - most, 0) // 2
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def fit_in_square(image, side):
    """The gray sketch padded with white to a square, shrunk if that is wider than `side`.

    It is shrunk as Pillow shrinks it, first in width and then in height; the square of a thin
    sketch would take a gigabyte.
    """
    length = max(image.size)
    left, top = ((length - own) // 2 for own in image.size)
    if length <= side:
        square = Image.new('L', (length, length), 'white')
        square.paste(image, (left, top))
        return square
    narrow = Image.new('L', (side, length), 'white')
    for start in range(0, image.height, STRIP):
        rows = image.crop((0, start, image.width, min(start + STRIP, image.height)))
        strip = Image.new('L', (length, rows.height), 'white')
        strip.paste(rows, (left, 0))
        narrow.paste(strip.resize((side, rows.height), Image.BILINEAR), (0, top + start))
    return narrow.resize((side, side), Image.BILINEAR)


def side_before_crop(inpsize):
    """256 for crops of 224 to 227, in proportion for others."""
    return max(inpsize, 8 * round(inpsize / 7))


def compose(steps: Steps, inpsize: int, mean: Sequence[float], std: Sequence[float],
            train: bool = False, tenCrop: bool = False) -> Callable[[Image.Image], Tensor]:
    """The callable from a PIL image to a normalized float32 tensor (C, inpsize, inpsize).

    Training draws from PyTorch's random state. For validation with tenCrop the tensor is
    (10, C, inpsize, inpsize): four corners, center, and the mirror image of each.
    """
    if train and steps.in_batches:
        return partial(_augmented, SquareTransform(steps, inpsize, mean, std, train))
    from torchvision.transforms import v2
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if train:
        return v2.Compose([*steps.augment, *tensor])
    if tenCrop:
        return v2.Compose([*steps.before_crop, *tensor, v2.TenCrop(inpsize), torch.stack])
    return v2.Compose([*steps.before_crop, v2.CenterCrop(inpsize), *tensor])


def _augmented(transform, image):
    drawn = transform.draw(int(torch.randint(2 ** 63 - 1, ())), 0, [0])
    return transform(transform.square(image)[None], drawn)[0]


def before_crop(steps: Steps) -> Callable[[Image.Image], Tensor]:
    """The callable from a PIL image to uint8 (C, height, width) of which validation takes crops."""
    from torchvision.transforms import v2
    return v2.Compose([*steps.before_crop, v2.PILToTensor()])


def center(image: Tensor) -> Tensor:
    """The image (C, h, w), or the center one of its ten crops (10, C, h, w)."""
    return image[4] if image.dim() == 4 else image      # after the four corners


def pixels(image: Tensor, spec) -> Tensor:
    """The pixels of a normalized image, or of its center crop, as a network sees them.

    (C, h, w) in [0, 1]; sketches are dark on light.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    seen = (center(image) * std + mean).clamp(0, 1)
    return 1 - seen if spec.is_sketch else seen


class SquareTransform:
    """Transform a batch on any device as compose does an image; for Steps that augment batches."""

    def __init__(self, steps: Steps, inpsize: int, mean: Sequence[float], std: Sequence[float],
                 train: bool = False, tenCrop: bool = False):
        self.square = before_crop(steps)
        self.shape = len(mean), steps.augment.side, steps.augment.side      # of a square
        self.inpsize, self.mean, self.std, self.tenCrop = inpsize, mean, std, tenCrop
        self.augmentation = steps.augment if train else None

    def draw(self, seed: int, epoch: int, indices: Sequence[int]) -> Tensor:
        """Draw the random numbers of the images of these indices: (len(indices), numbers)."""
        if self.augmentation is None:
            return torch.empty(len(indices), 0)
        return torch.from_numpy(self.augmentation.draw(seed, epoch, indices))

    def __call__(self, squares: Tensor, drawn: Tensor) -> Tensor:
        """From uint8 squares (N, C, side, side) to normalized float32 (N, C, inpsize, inpsize).

        With tenCrop, (N, 10, C, inpsize, inpsize). drawn: of these images, on their device.
        """
        from torchvision.transforms.v2.functional import center_crop, ten_crop
        if self.augmentation:
            return self.normalized(self.augmentation.augment(squares, drawn))
        if self.tenCrop:
            return torch.stack(ten_crop(self.normalized(squares.float()), self.inpsize), 1)
        return self.normalized(center_crop(squares, self.inpsize).float())

    def normalized(self, images: Tensor) -> Tensor:
        """In place; by numbers, not tensors, which a GPU would have to wait for."""
        images.mul_(1 / 255)
        for channel, mean, std in zip(images.unbind(1), self.mean, self.std):
            channel.sub_(mean).div_(std)
        return images
