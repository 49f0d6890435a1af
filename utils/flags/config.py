"""The file of --config: a JSON object of flags, such as the flags.json of a run."""
import difflib
import json
from collections.abc import Collection, Mapping

import opts
from utils.system.errors import InputError, naming
from utils.system.files import check_file


def config_flags(path: str, given: Mapping[str, object],
                 without: Collection[str] = ()) -> tuple[dict[str, object], list[str]]:
    """Return {name: value} of the flags in the file, and notes about those that are ignored.

    given: the flags of the command line. Ignored are flags of a single command (Flag.once), those
    in `without`, and, in the flags.json of a run, which has all flags, values that follow from
    given flags (Flag.follows). Raises InputError, which names file and flag.
    """
    with naming('--config'):
        if not path:
            raise InputError('must not be empty')
        check_file(path)
    with naming('--config'), naming(path):
        found = read_config(path)
        of_command = [name for name, value in found.items() if opts.FLAGS[name].once
                      and name != 'config' and value not in (None, False, opts.default(name))]
        follows = [name for name in found if 'resume' in found and found[name] is not None
                   and opts.FLAGS[name].follows & given.keys() and name not in given]
        flags = {name: opts.FLAGS[name].read(value) for name, value in found.items()
                 if value is not None and not opts.FLAGS[name].once
                 and name not in {*without, *follows}}
    if 'data_dir' in given and str(flags.get('dataset')).startswith('folder:'):
        flags['dataset'] = 'folder'     # whose name is that of the other folder
    reasons = {'only the command line gives': of_command,
               'can follow from other flags given': follows}
    return flags, [f'{path}: ignored {" and ".join(f"--{name}" for name in names)}, which {reason}'
                   for reason, names in reasons.items() if names]


def read_config(path: str) -> dict[str, object]:
    """Read the JSON object in the file. Raises InputError, also for unknown flags."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f'not a JSON object of flags: {error}') from error
    if not isinstance(values, dict):
        raise InputError('not a JSON object of flags, like {"epochs": 3}')
    values = opts.without_aliases({name.replace('-', '_'): value
                                   for name, value in values.items()})
    for name in values:
        if name not in opts.FLAGS:
            near = difflib.get_close_matches(name, opts.FLAGS, 1)
            raise InputError(f'--{name} is not a flag of this program'
                             + (f': did you mean --{near[0]}?' if near else ''))
    return values
