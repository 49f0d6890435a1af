"""The flags of a comparison; all others are those of main.py."""
import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

import opts
from utils.binarize import METHODS
from utils.flags.config import config_flags
from utils.flags.parser import Parser, at_least, check_not_empty, one_of
from utils.system import console
from utils.system.errors import InputError

from . import PROGRAM
from .cells import UNCENTRED

NAMES = ['real', *METHODS]
# The flags of main.py that a comparison uses itself, and their defaults.
OF_MAIN = {'model_def': 'sketchanet', 'name': None, 'logdir': 'logs', 'config': None}

learning_rate = at_least(0, float, above=True)


def some(read: Callable[[str], object]) -> Callable[[str], list]:
    """The type of a flag that takes several values, separated by commas, each once."""
    return lambda text: list(dict.fromkeys(map(read, text.split(','))))


def rates(text: str) -> dict[str, float]:
    """The type of --rates: METHOD:RATE,METHOD:RATE,…"""
    chosen: dict = {}
    for part in text.split(','):
        method, colon, rate = part.partition(':')
        if not colon or method in chosen:
            raise argparse.ArgumentTypeError(f'{part!r} is not METHOD:RATE of one more method '
                                             '(--tune tries several rates)')
        chosen[method] = learning_rate(rate)
    return chosen


def own_parser(description: str) -> Parser:
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=description,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--methods', default=','.join(NAMES), metavar='A,B,…',
        type=some(one_of(lambda: [*NAMES, *(name + UNCENTRED for name in METHODS)])),
        help='of %(default)s (default: these), and those trained with --no-centring, called like '
             f'dab{UNCENTRED}')
    add('--inputs', default='real,sign', type=some(one_of(lambda: ['real', 'sign'])),
        metavar='A,B', help='of real, sign (default: both)')
    add('--seeds', default=3, type=at_least(1), metavar='N', help='runs per method (default: 3)')
    add('--tune', type=some(learning_rate), metavar='RATE,RATE,…',
        help='choose the --maxlr of each method among these, on a fifth of the training images, '
             'which must be a folder of sketches')
    add('--tuningSeeds', default=3, type=at_least(1), metavar='N',
        help='with --tune: runs per method and rate (default: 3)')
    add('--rates', type=rates, default={}, metavar='METHOD:RATE,…',
        help='the --maxlr of these methods')
    add('--jobs', type=at_least(1), default=1, metavar='N',
        help='cells trained at the same time; a GPU has room for several (default: 1)')
    add('--collect', action='store_true', help='train nothing; write what finished cells give')
    return parser


def parse(arguments: Sequence[str] | None, description: str = ''
          ) -> tuple[argparse.Namespace, dict[str, object]]:
    """(the comparison's own flags, {name: value} of those of main.py that all cells share)

    The first have OF_MAIN and `command`, the whole command line, too. Raises InputError.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options, others = own_parser(description).parse_known_args(arguments)
    common = opts.parse(others)
    check(options, common)
    if 'config' in common:
        without = {'name', 'logdir', *opts.fixed_by('compare')}
        config, sentences = config_flags(common['config'], common, without)
        for sentence in sentences:
            console.say(sentence)
        common = config | common
    command = shlex.join(['python3', '-m', PROGRAM, *arguments])
    of_main = {name: common.pop(name, default) for name, default in OF_MAIN.items()}
    options = argparse.Namespace(**vars(options) | of_main, command=command)
    check_not_empty(options, 'logdir')
    return options, common


def check(options: argparse.Namespace, typed: dict[str, object]):
    """Raise InputError for flags that contradict the comparison or each other."""
    if wrong := [name for name in typed if name in opts.fixed_by('compare')]:
        raise InputError(f'--{wrong[0]} is decided by the comparison for each of its runs')
    if unknown := [method for method in options.rates if method not in options.methods]:
        raise InputError(f'--rates: {unknown[0]} is not among --methods')
    given = {'--maxlr': 'maxlr' in typed, '--rates': options.rates, '--tune': options.tune}
    if len(both := [name for name, value in given.items() if value]) > 1:
        raise InputError(f'{" and ".join(both)} each decide the learning rate: give one of them')
