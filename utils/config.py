"""The file of --config: a JSON object of flags, such as the flags.json of a run."""
import argparse
import difflib
import json
import sys
from collections.abc import Sequence

from utils.arguments import Parser, check_not_empty
from utils.errors import InputError, naming


def with_config(arguments: Sequence[str] | None, parser: Parser) -> tuple[list[str], list[str]]:
    """The words of a command, after those of its --config, over which they win.

    Also a sentence about the flags that are not taken from the file. Raises InputError.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = parser.parse_args(words)
    if given.config is None:
        return words, []
    check_not_empty(given, 'config')
    other_method = {'--no-binaryWeight', '--bnnModel'} & set(words)
    added, left_out = config_words(given.config, parser, {'binarizer'} if other_method else set())
    names = ' and '.join(f'--{name}' for name in left_out)
    ignored = f'{given.config}: ignored {names}, which only the command line gives'
    return added + words, [ignored] if names else []


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


def config_words(path: str, parser: Parser, without: set[str]) -> tuple[list[str], list[str]]:
    """The flags in the file as words of a command, and the names of those that are left out.

    What concerns one command only (Rule.once) is left out, and what `without` names. Raises
    InputError, which names the file and the flag.
    """
    with naming('--config'), naming(path):
        values = read_config(path, parser)
        if values.get('binaryWeight') is False:     # a run of real weights records the default
            without = without | {'binarizer'}
        if values.get('binarizer'):
            without = without | {'bnnModel'}        # which says the same
        left_out = [name for name, value in values.items()
                    if parser.rules[name].once and value not in (None, False) and name != 'config']
        words = [word for name, value in values.items()
                 if not (parser.rules[name].once or name in without)
                 for word in words_of(parser.actions[name], value)]
        parser.parse_args(words)
    return words, left_out


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
