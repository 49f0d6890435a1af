"""The argument parser of all commands, and the types of their flags.

A type converts the text of a flag to its value. It raises ArgumentTypeError with the reason where
it cannot.
"""
import argparse
import difflib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import datasets
from models.blocks import layer_set, layer_string
from utils.system.devices import GPUS, NUMBERED
from utils.system.errors import InputError

MOST = {int: 2 ** 32 - 1, float: 1e37}  # a step of Adam, up to 10 × --maxlr, must fit in float32
NAME_BYTES = 255    # of a folder's name, on every common file system
NOT_IN_NAMES = '<>:"\\|?*' if os.name == 'nt' else ''
SWITCH = argparse.BooleanOptionalAction


class Flags(argparse.Namespace):
    """Immutable flags of an experiment; replace() returns a changed copy."""

    def __init__(self, **values):
        vars(self).update(values)

    def __setattr__(self, name, value):
        raise AttributeError(f'flags do not change: {name} cannot be set')

    def replace(self, **values) -> 'Flags':
        return Flags(**vars(self) | values)


class Flag(NamedTuple):
    """A flag with the facts that opts.py describes."""

    action: argparse.Action
    default: object
    fixed_by: frozenset[str]
    changes_result: bool
    once: bool
    follows: frozenset[str]

    def read(self, value: object) -> object:
        """Convert a value from JSON: a string, a number, true or false. Raises InputError."""
        name = self.action.option_strings[0]
        if self.action.nargs == 0:
            if not isinstance(value, bool):
                raise InputError(f'{name} must be true or false, not {json.dumps(value)}')
            return value
        if isinstance(value, bool | list | dict):
            raise InputError(f'{name} cannot be {json.dumps(value)}')
        try:
            found = self.action.type(str(value)) if self.action.type else str(value)
        except argparse.ArgumentTypeError as error:
            raise InputError(f'argument {name}: {error}') from None
        if self.action.choices and found not in self.action.choices:
            choices = ', '.join(map(str, self.action.choices))
            raise InputError(f'argument {name}: {value!r} is not one of {choices}')
        return found

    def is_valid(self, value: object) -> bool:
        """Whether a checkpoint can have recorded this value."""
        name = self.action.dest
        if value is None:
            return self.default is None and name not in ('inpsize', 'binEnd')
        is_switch = self.action.nargs == 0
        kind = bool if is_switch else getattr(self.action.type, 'kind', str)
        if type(value) is not kind or (kind is str and '\0' in value):  # which no command can have
            return False
        if name in ('model_def', 'name'):       # of experiment.load; not used
            return True
        try:
            return self.read(value) == value
        except InputError:
            return False

    def spelled(self, value: object) -> str:
        """Describe the value as typed: 'with --inpsize=97', 'without --signLayers'."""
        value = self.default if value is None else value
        name, *negated = self.action.option_strings
        if value is None or value is False:
            return f'with {negated[0]}' if negated and value is False else f'without {name}'
        return f'with {name}' if value is True else f'with {name}={shlex.quote(str(value))}'


class Parser(argparse.ArgumentParser):
    """Raises InputError for a wrong command; flags that are not typed have no value."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allow_abbrev=False, **options)
        self.flags: dict[str, Flag] = {}

    def error(self, message):
        raise InputError(message)

    def _match_argument(self, action, pattern):
        try:
            return super()._match_argument(action, pattern)
        except argparse.ArgumentError as error:
            if action.choices:
                error.message += f' (choose from {", ".join(map(repr, action.choices))})'
            raise

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        for word in args:
            flag, equals, value = word.partition('=')
            action = self._option_string_actions.get(flag)
            if equals and action and action.nargs == 0:
                self.error(f'{flag} takes no value, and {value!r} was given: write '
                           f'{" or ".join(action.option_strings)}')
        return super().parse_known_args(args, namespace)

    def add_flag(self, group, name: str, help: str, default: object = None, fixed_by: str = '',
                 changes_result: bool = True, once: bool = False, follows: str = '', **options):
        """Add a flag; opts.py describes the options that argparse does not have."""
        if options.get('action') == 'store_true':
            default = False
        action = group.add_argument(name, default=argparse.SUPPRESS,
                                    help=help.replace('%(default)s', str(default)), **options)
        self.flags[action.dest] = Flag(action, default, frozenset(fixed_by.split()),
                                       changes_result, once, frozenset(follows.split()))


def one_of(names: Callable[[], Sequence[str]]) -> Callable[[str], str]:
    """Return the type of a flag that takes one of names(), looked up when it is parsed."""
    def choose(name):
        known = names()
        if name in known:
            return name
        near = ' or '.join(difflib.get_close_matches(name, known, 3))
        raise argparse.ArgumentTypeError(f'unknown name {name!r}: ' + (
            f'did you mean {near}?' if near else f'the names are {", ".join(known)}'))
    return choose


def some_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return the type of a flag that takes any of the names, separated by commas.

    Its value has each of them once, in the order of `names`.
    """
    choose_one = one_of(lambda: names)

    def choose(text):
        chosen = {choose_one(name) for name in text.split(',') if text}
        return ','.join(name for name in names if name in chosen)
    return choose


def at_least(smallest: float, kind: type = int, above: bool = False, most: float | None = None,
             why: str = '', below: float | None = None) -> Callable[[str], float]:
    """Return the type of a flag that takes a finite number, at least `smallest`.

    above: more than `smallest`. most: the largest (default: MOST); why: the reason, for the error
    message. below: exclusive upper bound.
    """
    largest = MOST[kind] if most is None else most

    def number(text):
        try:
            value = kind(text)
        except ValueError:
            kind_name = 'whole number' if kind is int else 'number'
            raise argparse.ArgumentTypeError(f'{text!r} is not a {kind_name}') from None
        if not value >= smallest or (above and value == smallest):     # so is NaN
            bound = 'more than' if above else 'at least'
            raise argparse.ArgumentTypeError(f'must be {bound} {smallest}, not {text}')
        if below is not None and value >= below:
            raise argparse.ArgumentTypeError(f'must be less than {below}, not {text}')
        if value > largest:
            reason = f': {why}' if why else ''
            raise argparse.ArgumentTypeError(f'must be at most {largest}, not {text}{reason}')
        return value
    number.kind = kind
    return number


def run_name(text: str) -> str:
    """Type of --name: a folder inside --logdir, like run or group/run."""
    if not text:
        raise argparse.ArgumentTypeError('must not be empty')
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f'{text!r} has characters that cannot be printed')
    if {'', '.', '..'} & set(text.split('/')):
        raise argparse.ArgumentTypeError(
            f'{text!r} must be a folder inside --logdir, like run or group/run')
    if wrong := [character for character in text if character in NOT_IN_NAMES]:
        raise argparse.ArgumentTypeError(f'{text!r} has {wrong[0]}, which names on Windows cannot')
    if len(os.fsencode(text)) > NAME_BYTES:
        raise argparse.ArgumentTypeError(f'must have at most {NAME_BYTES} bytes, not '
                                         f'{len(os.fsencode(text))}')
    return text


def layers(text: str) -> str:
    """Type of flags that list convolutions, like '2-5,7'; the value is the shortest spelling."""
    try:
        return layer_string(layer_set(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def dataset(text: str) -> str:
    """Type of --dataset: a name of datasets.names(), 'folder' or 'folder:NAME'."""
    kind, colon, name = text.partition(':')
    if kind == datasets.OWN:
        return kind + colon + (run_name(name) if colon else '')
    try:
        return one_of(lambda: [*datasets.names(), datasets.OWN])(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f'{error} ({datasets.OWN} is for your own images in train/<class>/ and val/<class>/)'
        ) from None


def device(text: str) -> str:
    """Type of --device: auto, cpu or one of devices.GPUS, also with a number, like cuda:1."""
    if re.fullmatch(rf'auto|cpu|mps|({"|".join(NUMBERED)})(:\d{{1,3}})?', text):
        return text
    raise argparse.ArgumentTypeError(f'{text!r} is not one of auto, cpu, {", ".join(GPUS)}, cuda:1')


def per_channel(smallest: float) -> Callable[[str], str]:
    """Return the type of a flag with a number of `smallest` to 1 per channel, like '0.5,0.4,0.5'.

    Its value is text, each number in its shortest spelling; numbers() reads it.
    """
    number = at_least(smallest, float, most=1, why='pixels lie in 0..1')

    def texts(text):
        return ','.join(str(number(part) + 0.0) for part in text.split(','))     # no -0.0
    return texts


def numbers(text: str | None) -> list[float] | None:
    """Parse the value of a per_channel flag. Raises ValueError."""
    return None if text is None else [float(part) for part in text.split(',')]


def check_not_empty(flags: argparse.Namespace, *names: str):
    """Raise InputError if one of these flags is an empty string."""
    for name in names:
        if getattr(flags, name) == '':
            raise InputError(f'--{name} must not be empty')
