"""Reading the .jsonl files of a run (record.py), whatever became of them."""
import contextlib
import json
from pathlib import Path

from utils.system.errors import RunError, naming
from utils.system.files import has_file, write_text


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
