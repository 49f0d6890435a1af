"""The folder of a run: which files in it are the run's, and whether a new start may use it."""
import shutil
from pathlib import Path

from utils.record.events import SPLITS
from utils.system.errors import InputError
from utils.system.files import LOCK, TEMPORARY, check_writable_in_place, write_atomically
from utils.training.checkpoint import CHECKPOINTS, read_checkpoint

STARTS = 'log.txt', 'history.jsonl'             # kept of a start that finished no epoch
EVENTS = 'events.out.tfevents.*'                # beside the others where an older version wrote it
TEXTS = *STARTS, 'flags.json', 'metrics.jsonl', 'weights.jsonl'
FILES = (*TEXTS, EVENTS,
         *(f'{split}/{EVENTS}' for split in SPLITS), *CHECKPOINTS)


def make_room(folder: Path, saved: int, resume: str | None, continued: bool, overwrite: bool,
              pretrained: str | None):
    """Refuse a folder that holds other things, or remove its run under `overwrite`.

    saved: the epochs of the checkpoint `resume`; continued: whether that is of the folder's run. A
    start that finished no epoch is in nobody's way. Raises InputError.
    """
    for name in TEXTS:
        check_writable_in_place(folder / name)
    for path in folder.glob(TEMPORARY):     # of a process that was killed
        path.unlink()
    for place in (folder / split for split in SPLITS):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise InputError(f'{place} is in the way of the events of a run: give another --name')
    is_run = any((folder / name).exists() for name in (*STARTS, *CHECKPOINTS))
    own = {path for pattern in FILES for path in folder.glob(pattern) if is_run}
    checkpoints = [folder / name for name in CHECKPOINTS if folder / name in own]
    if continued:
        later = checkpoints and read_checkpoint(checkpoints[0])['epoch'] > saved
        if later and not overwrite:
            raise InputError(f'{folder} holds later epochs than {resume}: give another --name, '
                             f'--overwrite them, or continue with --resume={checkpoints[0]}')
        if later:       # before the records go, what a next start continues
            copy_atomically(resume, folder / 'last.pth.tar')
        return
    if checkpoints and not overwrite:
        raise InputError(f'{folder} already holds a run: give another --name, --overwrite it, or '
                         f'continue it with --resume={checkpoints[0]}')
    foreign = contents(folder) - own - {folder / LOCK}
    if foreign and folder / 'history.jsonl' not in own and not overwrite:
        raise InputError(f'{folder} holds something else, such as {min(foreign).name}: give '
                         'another --name')
    if pretrained and Path(pretrained).resolve() in {path.resolve() for path in own}:
        raise InputError(f'--overwrite would remove {pretrained}, where --pretrained_file is: '
                         'give another --name')
    for path in own:
        if overwrite or path.name not in STARTS:
            path.unlink()


def contents(folder: Path) -> set[Path]:
    """What lies in the folder and in its folders of events."""
    places = [folder, *(folder / split for split in SPLITS if (folder / split).is_dir())]
    return {path for place in places for path in place.iterdir()} - set(places)


def copy_atomically(source: str | Path, target: Path):
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
