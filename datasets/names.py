"""What datasets and classes are called.

The dataset of a user's own images is called 'folder:NAME', NAME being that of the folder, so that
a run, a checkpoint or a packed model says what it was trained on wherever the data lies later.
Class names are compared in NFC: a Mac may store é as e and an accent (NFD) where Linux and Windows
store one character (NFC).
"""
import os
import unicodedata

OWN = 'folder'
MAX_NAME = 50       # characters, which leaves room in the name of a run's folder


def is_own(dataset: str) -> bool:
    """Whether the dataset is 'folder' or 'folder:NAME'."""
    return dataset.partition(':')[0] == OWN


def data_name(dataset: str) -> str:
    """What people call the dataset: NAME of 'folder:NAME', the dataset's own name otherwise."""
    return dataset.partition(':')[2] or dataset if is_own(dataset) else dataset


def name_of_folder(data_dir: str) -> str:
    """'folder:NAME' of the images in data_dir, NAME without what cannot be printed."""
    name = os.path.basename(os.path.abspath(os.path.expanduser(data_dir))) or 'root'
    name = ''.join(character if character.isprintable() else '_' for character in name)
    return f'{OWN}:{name[:MAX_NAME]}'


def nfc(name: str) -> str:
    """The name, or path, in the Unicode form NFC, in which names are compared and recorded."""
    return unicodedata.normalize('NFC', name)
