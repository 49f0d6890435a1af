"""Doodles: sketches that the program draws itself, so that a fresh machine can train at once."""
from PIL import Image

from utils.system.errors import InputError

from .drawings import DOODLES
from .pen import Hand, draw

CLASSES = sorted(DOODLES)
PER_CLASS = {'train': 100, 'val': 25}


class Doodles:
    """`per_class` drawings of each class, `side` pixels wide, each drawn when it is asked for."""

    def __init__(self, split: str, seed: int = 0, per_class: int | None = None, side: int = 128):
        if split not in PER_CLASS:
            raise ValueError(f"unknown split {split!r}: choose 'train' or 'val'")
        self.split, self.seed, self.side = split, seed, side
        self.length = len(CLASSES) * (PER_CLASS[split] if per_class is None else per_class)

    def __len__(self):
        return self.length

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """(PIL image of mode 'L', label): a function of (seed, split, index) alone."""
        index = range(self.length)[index]
        hand, label = Hand(f'{self.seed} {self.split} {index}'), index % len(CLASSES)
        return draw(DOODLES[CLASSES[label]](hand), hand, self.side), label


def find(data_dir, channels, split='val'):
    """(train, images of the split, classes); no folder is needed, and both first parameters are
    ignored. Raises InputError for a third split."""
    if split not in PER_CLASS:
        raise InputError(f'doodles have {" and ".join(PER_CLASS)}, but no {split}')
    return Doodles('train'), Doodles(split), CLASSES
