"""From a PIL image to the normalized tensor that a network sees.

Each kind of image is a function inpsize -> (augment, frame), two lists of transforms of PIL images:
augment ends in a random inpsize x inpsize crop, frame in an image at least that large, out of which
validation takes the centre or the ten crops.
"""

import random

import torch
from PIL import ImageOps
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


def sketches(inpsize, flip=True):
    """Black on white; inverted first, so that the zeros a rotation uncovers are paper."""
    fit = [ink, v2.Resize(_side(inpsize))]
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    rotate = v2.RandomRotation(10, v2.InterpolationMode.BILINEAR)
    return [*fit, v2.RandomResizedCrop(inpsize), *mirror, rotate], fit


def photographs(inpsize):
    augment = [v2.RandomResizedCrop(inpsize), v2.RandomHorizontalFlip()]
    return augment, [v2.Resize(_side(inpsize))]


def thumbnails(inpsize):
    """CIFAR: 32x32, padded by 4 with black; both numbers grow with inpsize."""
    padded = [v2.Resize((inpsize, inpsize)), v2.Pad(inpsize // 8)]
    return [*padded, v2.RandomCrop(inpsize), v2.RandomHorizontalFlip()], padded


def ink(image):
    """The gray sketch with paper 0 and ink 255, padded with paper to a square."""
    return F.center_crop(ImageOps.invert(image), max(image.size))


def _side(inpsize):
    """256 for crops of 224 to 227, in proportion for others."""
    return max(inpsize, 8 * round(inpsize / 7))


def compose(kind, inpsize, mean, std, train=False, tenCrop=False):
    """The callable from a PIL image to a float32 tensor (C, inpsize, inpsize), or, for
    validation with tenCrop, (10, C, inpsize, inpsize): four corners, centre, and their mirror.
    """
    augment, frame = kind(inpsize)
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if train:
        return v2.Compose([*augment, *tensor])
    if tenCrop:
        return v2.Compose([*frame, *tensor, v2.TenCrop(inpsize), torch.stack])
    return v2.Compose([*frame, v2.CenterCrop(inpsize), *tensor])


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
