"""The images of an experiment, checked against those that its network was trained on."""
from pathlib import Path

import datasets
from utils.errors import InputError, naming
from utils.source import Source, own_data_flags


def load_data(spec: datasets.DatasetSpec, data_dir: str, inpsize: int,
              source: Source | None = None, tenCrop: bool = False, seed: int = 0,
              skipBroken: bool = False, split: str = 'val') -> datasets.Data:
    """What datasets.load returns; it must have the classes and channels of the source."""
    with naming('--data_dir'):
        classes = [datasets.nfc(name) for name in source.classes] if source else []
        data = datasets.load(spec, data_dir, inpsize, tenCrop, seed, skipBroken=skipBroken,
                             split=split, classes=classes)
        if source:
            check_same_data(source, data)
    return data


def check_same_data(source: Source, data: datasets.Data):
    """Raise InputError where the data has other classes or channels than the source's had."""
    had, has = ((len(some.classes), some.channels) for some in (source, data))
    if had != has:
        raise InputError(f'{source.path} was trained on other classes or channels: on {had[0]} '
                         f'classes and {had[1]} channels, and this data has {has[0]} classes and '
                         f'{has[1]} channels')
    for name, here in zip(map(datasets.nfc, source.classes), data.classes):
        if name != here:
            raise InputError(f'{source.path} was trained on other classes: its '
                             f'{datasets.shown(name, [here])} is {datasets.shown(here, [name])} '
                             'in this data')


def describe_own(dataset: str, data: datasets.Data) -> str:
    """The sentence of the log about one's own data: its name, kind and normalization."""
    flags = own_data_flags(data.spec.mean, data.spec.std)
    is_sketch = data.channels == 1
    kind = f'sketches, --ink={data.spec.ink}' if is_sketch else datasets.KINDS[data.channels]
    origin = ''
    if data.measured:
        origin = f', measured on {data.measured} of {len(data.train)} training images'
    return (f'own images: {datasets.data_name(dataset)} ({kind}), normalized by '
            f'--mean={flags["mean"]} --std={flags["std"]}{origin}')


def about_training(source: Source | None, data: datasets.Data, folder: Path) -> list[str]:
    """Sentences for the log of a run in `folder`: what it continues, on which data.

    Raises InputError where --resume=auto found a checkpoint of other training images.
    """
    sentences = []
    images = datasets.folder_of(data.val)
    if images and images.root.name == 'test':
        sentences.append(f'validation uses {images.root}, since val/ is missing: the best '
                         'checkpoint is chosen on it')
    if source:
        sentences.append(f'continues {source.path} after epoch {source.checkpoint["epoch"]}, in '
                         f'{folder}')
    if source and is_of_other_images(source.checkpoint, data.training_images,
                                     datasets.names_digest(data.train, 'NFD')):     # once, on a Mac
        sentence = f'{source.path} was trained on other images than those of --data_dir'
        if source.is_found:
            raise InputError(f'{sentence}: give another --name or, to go on all the same, '
                             f'--resume={source.path}')
        sentences.append(sentence)
    return sentences


def is_of_other_images(checkpoint: dict, *training_images: str) -> bool:
    """Whether it was trained on none of these, as far as it says so."""
    return checkpoint.get('training_images') not in (None, *training_images)
