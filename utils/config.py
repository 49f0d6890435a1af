"""The file of --config: a JSON object of flags, such as the flags.json of a run."""
import argparse
import difflib
import json
import sys
from collections.abc import Collection, Sequence

from utils.arguments import Parser, check_not_empty
from utils.errors import InputError, naming
from utils.files import check_file

# Flags that a run records resolved, and the flags that they can follow from.
FOLLOWS = {
    'binEnd': {'model_def', 'binStart', 'signLayers'},
    'inpsize': {'model_def', 'dataset'},
    'nClasses': {'dataset', 'data_dir'},
    'mean': {'dataset', 'data_dir', 'channels', 'ink'},
    'std': {'dataset', 'data_dir', 'channels', 'ink'},
    'channels': {'dataset'},
    'channelsLast': {'amp'},
}


def with_config(arguments: Sequence[str] | None, parser: Parser) -> tuple[list[str], list[str]]:
    """The words of a command, after those of its --config, over which they win.

    Also sentences about the flags that are not taken from the file. Raises InputError.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = parser.parse_args(words)
    if given.config is None:
        return words, []
    check_not_empty(given, 'config')
    added, sentences = config_words(given.config, parser, words)
    return added + words, sentences


def config_words(path: str, parser: Parser, typed: Sequence[str],
                 without: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """The flags in the file as words of a command, and sentences about those that are left out.

    typed: the words of the command. Left out is what concerns one command only (Rule.once), what
    `without` names, and of the flags.json of a run, which has all flags, what can follow from typed
    ones (FOLLOWS). Raises InputError, which names the file and the flag.
    """
    options = {word.partition('=')[0] for word in typed}
    names = {name for name, action in parser.actions.items() if options & {*action.option_strings}}
    with naming('--config'):
        check_file(path)
    with naming('--config'), naming(path):
        values = read_config(path, parser)
        once = [name for name, value in values.items()
                if parser.rules[name].once and name != 'config'
                and value not in (None, False, parser.get_default(name))]
        followed = [name for name, others in FOLLOWS.items() if 'resume' in values   # of a run
                    and names & others and name not in names and values.get(name) is not None]
        if 'data_dir' in names and str(values.get('dataset')).startswith('folder:'):
            values['dataset'] = 'folder'    # whose name is that of the other folder
        left_out = {*without, *once, *followed}
        if values.get('binaryWeight') is False or {'--no-binaryWeight', '--bnnModel'} & options:
            left_out.add('binarizer')       # of a run of real weights it is the default
        if values.get('binarizer') == 'bnn':
            left_out.add('bnnModel')        # which says the same
        words = [word for name, value in values.items()
                 if not (parser.rules[name].once or name in left_out)
                 for word in words_of(parser.actions[name], value)]
        parser.parse_args(words)
    why = (once, 'only the command line gives'), (followed, 'can follow from other flags given')
    return words, [f'{path}: ignored {" and ".join(f"--{name}" for name in some)}, which {reason}'
                   for some, reason in why if some]


def read_config(path: str, parser: Parser) -> dict[str, object]:
    """The flags in the file, by the names that parser.actions has. Raises InputError."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f'not a JSON object of flags: {error}') from error
    if not isinstance(values, dict):
        raise InputError('not a JSON object of flags, like {"epochs": 3}')
    values = {name.replace('-', '_'): value for name, value in values.items()}
    for name in values:
        if name not in parser.actions:
            near = difflib.get_close_matches(name, parser.actions, 1)
            raise InputError(f'--{name} is not a flag of this program'
                             + (f': did you mean --{near[0]}?' if near else ''))
    return values


def words_of(action: argparse.Action, value: object) -> list[str]:
    """How a command gives a flag the value that a JSON file has. Raises InputError.

    null is a flag that is not given, but for --amp, where it is what runs record for off.
    """
    flag, *negated = action.option_strings
    if value is None:
        return [f'{flag}=off'] if action.dest == 'amp' else []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f'{flag} must be true or false, not {json.dumps(value)}')
        return [flag] if value else negated
    if isinstance(value, bool | list | dict):
        raise InputError(f'{flag} cannot be {json.dumps(value)}')
    return [f'{flag}={value}']
