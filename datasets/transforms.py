"""From a PIL image to the normalized tensor that a network sees.

Each kind of image is a function inpsize -> (augment, before_crop), two lists of transforms of PIL
images: augment ends in a random inpsize x inpsize crop, before_crop in an image at least that
large, from which validation takes the center crop or ten crops.
"""
import math
import random
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import grid_sample
from torch.utils.data import Dataset
from torchvision.transforms import v2


def sketches(inpsize, flip=True):
    """Black on white; inverted first, so that the zeros a rotation uncovers are paper."""
    side = side_before_crop(inpsize)
    before_crop = [partial(fit_in_square, side=side), ImageOps.invert, v2.Resize(side)]
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    rotate = v2.RandomRotation(10, v2.InterpolationMode.BILINEAR)
    return [*before_crop, v2.RandomResizedCrop(inpsize), *mirror, rotate], before_crop


def photographs(inpsize):
    augment = [v2.RandomResizedCrop(inpsize), v2.RandomHorizontalFlip()]
    return augment, [v2.Resize(side_before_crop(inpsize))]


def thumbnails(inpsize):
    """CIFAR: 32x32, padded by 4 with black; both numbers grow with inpsize."""
    padded = [v2.Resize((inpsize, inpsize)), v2.Pad(inpsize // 8)]
    return [*padded, v2.RandomCrop(inpsize), v2.RandomHorizontalFlip()], padded


def fit_in_square(image, side):
    """The gray sketch padded with white to a square, shrunk if that is wider than `side`."""
    if image.width != image.height:
        square = Image.new('L', [max(image.size)] * 2, 'white')
        square.paste(image, [(square.width - length) // 2 for length in image.size])
        image = square
    return image if image.width <= side else image.resize((side, side), Image.BILINEAR)


def side_before_crop(inpsize):
    """256 for crops of 224 to 227, in proportion for others."""
    return max(inpsize, 8 * round(inpsize / 7))


def compose(steps, inpsize, mean, std, train=False, tenCrop=False, fused=False):
    """The callable from a PIL image to a normalized float32 tensor (C, inpsize, inpsize).

    For validation with tenCrop it is (10, C, inpsize, inpsize): four corners, center, and the
    mirror image of each. `steps` is one of the functions above. With `fused`, for sketches,
    training samples the image once instead of in every transform.
    """
    augment, before_crop = steps(inpsize)
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if train and fused:
        return FusedAugmentation(augment, mean, std)
    if train:
        return v2.Compose([*augment, *tensor])
    if tenCrop:
        return v2.Compose([*before_crop, *tensor, v2.TenCrop(inpsize), torch.stack])
    return v2.Compose([*before_crop, v2.CenterCrop(inpsize), *tensor])


class FusedAugmentation:
    """What the transforms `augment` of sketches and normalization do, but sampled only once.

    Crop, resize, flip and rotation become one affine map, whose parameters those transforms draw,
    in their order. It does not smooth where it shrinks, but that is by about 8 / 7 at most:
    `fit_in_square` does the rest. What a rotation uncovers is paper, since the crop is rounded to
    whole pixels of the sketch.
    """

    def __init__(self, augment, mean, std):
        (resize,), (self.crop,), self.mirror, (self.rotate,) = (
            [step for step in augment if isinstance(step, kind)] for kind in
            (v2.Resize, v2.RandomResizedCrop, v2.RandomHorizontalFlip, v2.RandomRotation))
        self.side, = resize.size
        self.resized = [Image.new('L', (self.side, self.side))]     # only its size is asked for
        inpsize, _ = self.crop.size
        self.centers = (2 * np.arange(inpsize, dtype=np.float32) + 1) / inpsize - 1
        (self.mean,), (self.std,) = mean, std

    def __call__(self, image):
        crop = self.crop.make_params(self.resized)
        flip = any(torch.rand(1) < mirror.p for mirror in self.mirror)
        angle = math.radians(self.rotate.make_params([])['angle'])

        pixels = np.asarray(fit_in_square(image, self.side))
        scale = len(pixels) / self.side
        start = scale * np.array([crop['left'], crop['top']])
        size = scale * np.array([crop['width'], crop['height']])
        low = np.minimum(start.round(), len(pixels) - 1)
        high = np.maximum((start + size).round(), low + 1)
        (left, top), (right, bottom) = low.astype(int), high.astype(int)
        ink = torch.from_numpy(255 - pixels[top:bottom, left:right]).to(torch.float32)

        # From the centers of the output's pixels into `ink`, whose sides lie at -1 and 1.
        rotation = np.array([[math.cos(angle), -math.sin(angle)],
                             [math.sin(angle), math.cos(angle)]])
        half_size, center = size / (high - low), (2 * start + size - low - high) / (high - low)
        half_size[0] *= -1 if flip else 1
        x, y = (half_size[:, None] * rotation).astype(np.float32).T[..., None]
        y = y * self.centers + center.astype(np.float32)[:, None]
        grid = torch.from_numpy((x * self.centers)[:, None] + y[..., None]).permute(1, 2, 0)
        ink = grid_sample(ink[None, None], grid[None], align_corners=False)[0]
        return ink.div_(255).sub_(self.mean).div_(self.std)


class Transformed(Dataset):
    """Items (tensor, label) from a sequence of (PIL image, label).

    All randomness in an item is drawn from (seed, epoch, index), whichever process makes it, and
    the global random state is left alone. The epoch is in shared memory, so that persistent workers
    see it change.
    """

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed = images, transform, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        rng = random.Random(f'{self.seed} {int(self.epoch)} {index}')
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the GPUs too
            torch.default_generator.manual_seed(rng.getrandbits(63))
            return self.transform(image), label
