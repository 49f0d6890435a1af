"""CIFAR-10 and CIFAR-100: the official python batches, or folders of images."""
from datasets import folders
from utils.system.errors import InputError


def find(data_dir, channels, name, official, split='val'):
    """(train, images of the split, classes); `official` names torchvision's class for the batches.

    `data_dir` is the folder of the batches, its parent, or a folder with train/ and val/. Raises
    InputError where it is none of them, a batch is not the official file, or the split does not
    exist.
    """
    import torchvision  # here, since it takes as long as PyTorch
    official = getattr(torchvision.datasets, official)
    names = (official.base_folder, name, f'{name}/{official.base_folder}')
    for folder in folders.candidates(data_dir, names):
        if folder.is_dir() and folder.absolute().name == official.base_folder:
            return _batches(folder.absolute(), official, split)
    return folders.find(data_dir, channels, names, split=split)


def _batches(folder, official, split):
    if split == 'test':
        raise InputError(f'the official batches in {folder} have no third split: their test batch '
                         'is what validation measures, as --split=val')
    from torchvision.datasets.utils import check_integrity
    meta = official.meta['filename'], official.meta['md5']
    for filename, md5 in (*official.train_list, *official.test_list, meta):
        if not check_integrity(folder / filename, md5):
            raise InputError(f'{folder / filename} is missing or is not the official file (its MD5 '
                             f'sum differs); unpack {official.filename} again')
    train, measured = (official(folder.parent, train=is_train)
                       for is_train in (True, split == 'train'))
    return train, measured, train.classes
