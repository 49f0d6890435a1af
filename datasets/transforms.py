"""From a PIL image to the normalized tensor that a network sees.

Each kind of image is a function inpsize -> (augment, frame), two lists of transforms of PIL images:
augment ends in a random inpsize x inpsize crop, frame in an image at least that large, out of which
validation takes the centre or the ten crops.
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
    fit = [partial(square, side=side(inpsize)), ImageOps.invert, v2.Resize(side(inpsize))]
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    rotate = v2.RandomRotation(10, v2.InterpolationMode.BILINEAR)
    return [*fit, v2.RandomResizedCrop(inpsize), *mirror, rotate], fit


def photographs(inpsize):
    augment = [v2.RandomResizedCrop(inpsize), v2.RandomHorizontalFlip()]
    return augment, [v2.Resize(side(inpsize))]


def thumbnails(inpsize):
    """CIFAR: 32x32, padded by 4 with black; both numbers grow with inpsize."""
    padded = [v2.Resize((inpsize, inpsize)), v2.Pad(inpsize // 8)]
    return [*padded, v2.RandomCrop(inpsize), v2.RandomHorizontalFlip()], padded


def square(image, side):
    """The gray sketch padded with paper to a square, shrunk if that is wider than `side`."""
    if image.width != image.height:
        whole = Image.new('L', [max(image.size)] * 2, 'white')
        whole.paste(image, [(whole.width - length) // 2 for length in image.size])
        image = whole
    return image if image.width <= side else image.resize((side, side), Image.BILINEAR)


def side(inpsize):
    """256 for crops of 224 to 227, in proportion for others."""
    return max(inpsize, 8 * round(inpsize / 7))


def compose(kind, inpsize, mean, std, train=False, tenCrop=False, fused=False):
    """The callable from a PIL image to a float32 tensor (C, inpsize, inpsize), or, for
    validation with tenCrop, (10, C, inpsize, inpsize): four corners, centre, and their mirror.

    With `fused`, for sketches, training takes one pass instead of one transform after the other.
    """
    augment, frame = kind(inpsize)
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if train:
        return OnePass(augment, mean, std) if fused else v2.Compose([*augment, *tensor])
    if tenCrop:
        return v2.Compose([*frame, *tensor, v2.TenCrop(inpsize), torch.stack])
    return v2.Compose([*frame, v2.CenterCrop(inpsize), *tensor])


class OnePass:
    """What the transforms `augment` of sketches and normalization do, but sampled only once.

    Crop, resize, flip and rotation become one affine map, drawn by those transforms in their order.
    It does not smooth where it shrinks, but that is by 8 / 7 or so at most: `square` does the rest.
    What a rotation uncovers is paper, the crop being rounded to whole pixels of the sketch.
    """

    def __init__(self, augment, mean, std):
        (resize,), (self.crop,), self.mirror, (self.rotate,) = (
            [step for step in augment if isinstance(step, kind)] for kind in
            (v2.Resize, v2.RandomResizedCrop, v2.RandomHorizontalFlip, v2.RandomRotation))
        self.side, = resize.size
        self.frame = [Image.new('L', (self.side, self.side))]   # only its size is asked for
        inpsize, _ = self.crop.size
        self.ticks = (2 * np.arange(inpsize, dtype=np.float32) + 1) / inpsize - 1
        (self.mean,), (self.std,) = mean, std

    def __call__(self, image):
        crop = self.crop.make_params(self.frame)
        flip = any(torch.rand(1) < mirror.p for mirror in self.mirror)
        angle = math.radians(self.rotate.make_params([])['angle'])

        pixels = np.asarray(square(image, self.side))
        scale = len(pixels) / self.side
        start = scale * np.array([crop['left'], crop['top']])
        size = scale * np.array([crop['width'], crop['height']])
        low = np.minimum(start.round(), len(pixels) - 1)
        high = np.maximum((start + size).round(), low + 1)
        (left, top), (right, bottom) = low.astype(int), high.astype(int)
        ink = torch.from_numpy(255 - pixels[top:bottom, left:right]).to(torch.float32)

        # From the centres of the output's pixels into `ink`, whose sides lie at -1 and 1.
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        reach, middle = size / (high - low), (2 * start + size - low - high) / (high - low)
        reach[0] *= -1 if flip else 1
        x, y = (reach[:, None] * turn).astype(np.float32).T[..., None]
        y = y * self.ticks + middle.astype(np.float32)[:, None]
        grid = torch.from_numpy((x * self.ticks)[:, None] + y[..., None]).permute(1, 2, 0)
        ink = grid_sample(ink[None, None], grid[None], align_corners=False)[0]
        return ink.div_(255).sub_(self.mean).div_(self.std)


class Transformed(Dataset):
    """Items (tensor, label) from a sequence of (PIL image, label).

    All chance in an item comes from (seed, epoch, index), whichever process makes it, and the
    global random state stays as it was. The epoch lies in shared memory: workers that outlive an
    epoch see it too.
    """

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed = images, transform, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        chance = random.Random(f'{self.seed} {int(self.epoch)} {index}')
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the GPUs too
            torch.default_generator.manual_seed(chance.getrandbits(63))
            return self.transform(image), label
