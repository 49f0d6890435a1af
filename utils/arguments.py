"""The parser of every command, and the types of its flags.

A type is a function from the text of a flag to its value, which raises ArgumentTypeError with the
reason for a refusal.
"""
import argparse
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import datasets
from models.blocks import layer_set, layer_string
from utils.devices import GPUS, NUMBERED
from utils.errors import InputError

MOST = {int: 2 ** 32 - 1, float: 1e37}  # a step of Adam, up to 10 × --maxlr, must fit in float32
NAME_BYTES = 255    # of a folder's name, on every common file system
NOT_IN_NAMES = '<>:"\\|?*' if os.name == 'nt' else ''
SWITCH = argparse.BooleanOptionalAction


class Flags(argparse.Namespace):
    """Flags whose values do not change any more."""

    def __setattr__(self, name, value):
        raise AttributeError(f'flags are resolved once: {name} cannot be set')

    def __init__(self, **values):
        vars(self).update(values)


class Rule(NamedTuple):
    """What the parser does not know of a flag; see opts.py."""

    fixed_by: frozenset[str]
    changes_result: bool
    once: bool


class Parser(argparse.ArgumentParser):
    """Raises InputError for a wrong command; add_flag also keeps the Rule of a flag."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allow_abbrev=False, **options)
        self.rules: dict[str, Rule] = {}
        self.actions: dict[str, argparse.Action] = {}

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

    def add_flag(self, group, name: str, fixed_by: str = '', changes_result: bool = True,
                 once: bool = False, **options):
        action = group.add_argument(name, **options)
        self.rules[action.dest] = Rule(frozenset(fixed_by.split()), changes_result, once)
        self.actions[action.dest] = action

    def not_default(self, flags: argparse.Namespace, *names: str) -> list[str]:
        """Those of these flags, as a command spells them, with another value than by default."""
        values = {name: getattr(flags, name) for name in names}
        return [self.actions[name].option_strings[-1 if value is False else 0]
                for name, value in values.items() if value != self.get_default(name)]

    def spelled(self, name: str, value: object) -> str:
        """How a command gives a flag this value: 'with --inpsize=97', 'without --signLayers', …"""
        if name not in self.actions:    # a flag of another version
            return f'with --{name}={value}'
        if value is None:
            value = self.get_default(name)
        flag, *negated = self.actions[name].option_strings
        if value is None or value is False:
            return f'with {negated[0]}' if negated and value is False else f'without {flag}'
        return f'with {flag}' if value is True else f'with {flag}={shlex.quote(str(value))}'

    def fixed_by(self, what: str) -> list[str]:
        """The names of the flags that `what` fixes; see opts.py."""
        return [name for name, rule in self.rules.items() if what in rule.fixed_by]


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """The type of a flag that takes one of the names."""
    def choose(name):
        if name in names:
            return name
        near = ' or '.join(difflib.get_close_matches(name, names, 3))
        raise argparse.ArgumentTypeError(f'unknown name {name!r}: ' + (
            f'did you mean {near}?' if near else f'the names are {", ".join(names)}'))
    return choose


def some_of(names: Sequence[str]) -> Callable[[str], str]:
    """The type of a flag that takes some of the names, or none, separated by commas.

    Its value has them once each, in the order of `names`.
    """
    choose_one = one_of(names)

    def choose(text):
        chosen = {choose_one(name) for name in text.split(',') if text}
        return ','.join(name for name in names if name in chosen)
    return choose


def at_least(smallest: float, kind: type = int, above: bool = False, most: float | None = None,
             why: str = '', below: float | None = None) -> Callable[[str], float]:
    """The type of a flag that takes a finite number from `smallest` on (above: more than it).

    most: the largest, by default that of MOST; why: the reason for it, which the refusal gives;
    below: what the number must be less than.
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
    """The type of --name: a folder inside --logdir, of one name or several, like group/run."""
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
    """The type of a flag that takes convolutions like '2-5,7', in their shortest spelling."""
    try:
        return layer_string(layer_set(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def dataset(text: str) -> str:
    """The type of --dataset: a name of datasets.names(), or 'folder' or 'folder:NAME'."""
    kind, colon, name = text.partition(':')
    if kind == datasets.OWN:
        return kind + colon + (run_name(name) if colon else '')
    try:
        return one_of([*datasets.names(), datasets.OWN])(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f'{error} ({datasets.OWN} is for your own images in train/<class>/ and val/<class>/)'
        ) from None


def device(text: str) -> str:
    """The type of --device: auto, cpu or a kind of devices.GPUS, like cuda, with its number."""
    if re.fullmatch(rf'auto|cpu|mps|({"|".join(NUMBERED)})(:\d{{1,3}})?', text):
        return text
    raise argparse.ArgumentTypeError(f'{text!r} is not one of auto, cpu, {", ".join(GPUS)}, cuda:1')


def per_channel(smallest: float) -> Callable[[str], str]:
    """The type of a flag that takes a number from `smallest` to 1 for each channel: '0.5,0.4,0.5'.

    Its value is the text that numbers() reads, each number in its shortest spelling.
    """
    number = at_least(smallest, float, most=1, why='pixels lie in 0..1')

    def texts(text):
        return ','.join(str(number(part) + 0.0) for part in text.split(','))     # no -0.0
    return texts


def numbers(text: str | None) -> list[float] | None:
    """The numbers of a flag of type per_channel. Raises ValueError."""
    return None if text is None else [float(part) for part in text.split(',')]


def check_not_empty(flags: argparse.Namespace, *names: str):
    """Raise InputError for the first of these flags that was given without a text."""
    for name in names:
        if getattr(flags, name) == '':
            raise InputError(f'--{name} must not be empty')


def is_valid(action: argparse.Action, value: object) -> bool:
    """Whether a flag can have this value after complete()."""
    if value is None:
        return action.dest == 'amp' or (action.default is None
                                        and action.dest not in ('inpsize', 'binarizer', 'binEnd'))
    if action.nargs == 0:
        return type(value) is bool
    kind = getattr(action.type, 'kind', str)
    if type(value) is not kind or (action.choices and value not in action.choices):
        return False
    if kind is str and '\0' in value:       # which no command line can have
        return False
    if not action.type or action.dest in ('model_def', 'name'):     # of experiment.load; not used
        return True
    try:
        return action.type(str(value)) == value
    except argparse.ArgumentTypeError:
        return False
