"""The folder of a run under --logdir: whether a start may use it, and reading its .jsonl files."""
import contextlib
import json
import shutil
from pathlib import Path

from utils.record.tensorboard import SPLITS
from utils.system.errors import InputError, RunError, naming
from utils.system.files import (LOCK, TEMPORARY, check_writable_in_place, has_file,
                                write_atomically, write_text)
from utils.training.checkpoint import CHECKPOINTS, read_checkpoint

STARTS = 'log.txt', 'history.jsonl'     # kept where a run is started again before its first epoch
TEXTS = *STARTS, 'flags.json', 'metrics.jsonl', 'weights.jsonl'
EVENTS = 'events.out.tfevents.*'        # beside the other files where an older version wrote it
FILES = (*TEXTS, EVENTS, *(f'{split}/{EVENTS}' for split in SPLITS), *CHECKPOINTS)


def make_room(folder: Path, saved: int, resume: str | None, continued: bool, overwrite: bool,
              pretrained: str | None):
    """Refuse a folder that holds other things, or remove its run under `overwrite`.

    saved: the epochs of the checkpoint `resume`; continued: whether that is of the folder's run. A
    run without a finished epoch may be replaced. Raises InputError.
    """
    for name in TEXTS:
        check_writable_in_place(folder / name)
    for path in folder.glob(TEMPORARY):     # of a process that was killed
        path.unlink()
    for place in (folder / split for split in SPLITS):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise InputError(f'{place} is in the way of the events of a run: give another --name')
    is_run = any((folder / name).exists() for name in (*STARTS, *CHECKPOINTS))
    files = {path for pattern in FILES for path in folder.glob(pattern) if is_run}
    checkpoints = [folder / name for name in CHECKPOINTS if folder / name in files]
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
    foreign = contents(folder) - files - {folder / LOCK}
    if foreign and folder / 'history.jsonl' not in files and not overwrite:
        raise InputError(f'{folder} holds something else, such as {min(foreign).name}: give '
                         'another --name')
    if pretrained and Path(pretrained).resolve() in {path.resolve() for path in files}:
        raise InputError(f'--overwrite would remove {pretrained}, where --pretrained_file is: '
                         'give another --name')
    for path in files:
        if overwrite or path.name not in STARTS:
            path.unlink()


def contents(folder: Path) -> set[Path]:
    """Return the paths in the folder and in its folders of events."""
    places = [folder, *(folder / split for split in SPLITS if (folder / split).is_dir())]
    return {path for place in places for path in place.iterdir()} - set(places)


def copy_atomically(source: str | Path, target: Path):
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def restore_best(folder: Path, saved: int, continued: dict | None, resume: str | None) -> float:
    """The best top-1 until epoch `saved`, which is that of best.pth.tar; -1 where there is none.

    continued: the checkpoint, read from `resume`, of this folder's run, or None.
    """
    best = folder / 'best.pth.tar'
    try:
        stored = read_checkpoint(best) if best.exists() else None
    except InputError as error:
        raise InputError(f'{error}: move it away to continue without it') from error
    if stored and stored['epoch'] > saved:
        best.unlink()       # of an epoch that is trained again
        stored = None
    if continued and continued['metrics']['top1'] == continued['best']:
        # A run that was killed after it wrote last.pth.tar had no time for best.pth.tar.
        if not stored or stored['metrics']['top1'] < continued['best']:
            stored = continued
            copy_atomically(resume, best)
    return stored['metrics']['top1'] if stored else -1.0


def read_log(path: Path, keys: set[str]) -> list[dict]:
    """The rows of a .jsonl file of a run, each with at least these keys; [] if there is none.

    All values are numbers, but for the names of splits and layers. A last line without its end,
    which a full disk can leave, is none. Raises RunError for a damaged row.
    """
    if not has_file(path):
        return []
    with naming(str(path), RunError):
        *lines, _ = path.read_bytes().split(b'\n')
    rows = []
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and all(is_entry(key, row.get(key)) for key in keys):
                rows.append(row)
        if len(rows) < number:
            raise RunError(f'{path} is damaged in line {number}: repair it or remove the file')
    return rows


def is_entry(key: str, value: object) -> bool:
    """Whether a log can have this value under this key."""
    if key in ('split', 'layer'):
        return isinstance(value, str)
    is_count = type(value) is int and 0 <= value < 2 ** 32
    return is_count or (key != 'epoch' and type(value) is float)


def keep_epochs_before(epoch: int, path: Path):
    """Drop the rows of later epochs."""
    if path.exists():
        rows = [row for row in read_log(path, {'epoch'}) if row['epoch'] < epoch]
        write_text(path, ''.join(f'{json.dumps(row)}\n' for row in rows))
