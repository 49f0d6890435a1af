"""The images of an experiment, as its flags describe them."""
from collections.abc import Sequence

import datasets
from utils.flags.parser import numbers
from utils.system.errors import InputError, naming


def dataset_spec(flags: dict) -> datasets.DatasetSpec:
    """Return the DatasetSpec of the data flags. Raises InputError."""
    try:
        mean, std = numbers(flags['mean']), numbers(flags['std'])
    except ValueError as error:
        raise InputError(f'--mean and --std: {error}') from None
    return datasets.spec(flags['dataset'], flags['channels'], mean, std, flags['ink'],
                         flags['minCrop'])


def own_data_flags(mean: Sequence[float], std: Sequence[float]) -> dict:
    """Return the flags that describe a folder with this normalization."""
    texts = (','.join(str(float(value)) for value in values) for values in (mean, std))
    return dict(zip(('channels', 'mean', 'std'), (len(mean), *texts)))


def load_data(spec: datasets.DatasetSpec, data_dir: str, inpsize: int,
              source=None, tenCrop: bool = False, seed: int = 0,
              skipBroken: bool = False, split: str = 'val') -> datasets.Data:
    """Load images; they must have the classes and channels of the Source. Raises InputError."""
    with naming('--data_dir'):
        classes = [datasets.nfc(name) for name in source.classes] if source else []
        data = datasets.load(spec, data_dir, inpsize, tenCrop, seed, skipBroken=skipBroken,
                             split=split, classes=classes)
        if source:
            source.check_data(data)
    return data


def describe_own(dataset: str, data: datasets.Data) -> str:
    """Describe a folder for the log: its name, kind and normalization."""
    flags = own_data_flags(data.spec.mean, data.spec.std)
    is_sketch = data.channels == 1
    kind = f'sketches, --ink={data.spec.ink}' if is_sketch else datasets.KINDS[data.channels]
    origin = ''
    if data.measured:
        origin = f', measured on {data.measured} of {len(data.train)} training images'
    return (f'own images: {datasets.data_name(dataset)} ({kind}), normalized by '
            f'--mean={flags["mean"]} --std={flags["std"]}{origin}')


def note_validation(data: datasets.Data) -> list[str]:
    """Note that test/ chooses the best checkpoint, where there is no val/."""
    images = datasets.folder_of(data.val)
    if images and images.root.name == 'test':
        return [f'validation uses {images.root}, since val/ is missing: the best checkpoint is '
                'chosen on it']
    return []
