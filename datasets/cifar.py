"""CIFAR-10 and CIFAR-100: the official python batches, or folders of images."""
from datasets import folders
from utils.errors import InputError


def find(data_dir, channels, name, official):
    """(train, val, classes); `official` is the name of torchvision's class for the batches.

    `data_dir` is the folder of the batches, its parent, or a folder with train/ and val/. Raises
    InputError where it is none of them or a batch is not the official file.
    """
    import torchvision      # here, since it takes as long as PyTorch
    official = getattr(torchvision.datasets, official)
    names = (official.base_folder, name, f'{name}/{official.base_folder}')
    for folder in folders.candidates(data_dir, names):
        if folder.is_dir() and folder.absolute().name == official.base_folder:
            return _batches(folder.absolute(), official)
    return folders.find(data_dir, channels, names)


def _batches(folder, official):
    from torchvision.datasets.utils import check_integrity
    meta = official.meta['filename'], official.meta['md5']
    for filename, md5 in (*official.train_list, *official.test_list, meta):
        if not check_integrity(folder / filename, md5):
            raise InputError(f'{folder / filename} is missing or is not the official file (its MD5 '
                             f'sum differs); unpack {official.filename} again')
    train, val = (official(folder.parent, train=split) for split in (True, False))
    return train, val, train.classes
