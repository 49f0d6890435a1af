"""The flags of a comparison; all others are those of main.py."""
import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

import models
import opts
from utils.binarize import METHODS
from utils.flags.config import config_flags
from utils.flags.parser import Parser, at_least, check_not_empty, one_of, run_name
from utils.system import console
from utils.system.errors import InputError

from . import PROGRAM
from .cells import UNCENTRED

MODEL_DEF = 'sketchanet'
NAMES = ['real', *METHODS]

learning_rate = at_least(0, float, above=True)


def some(read: Callable[[str], object]) -> Callable[[str], list]:
    """The type of a flag that takes several values, separated by commas, each once."""
    return lambda text: list(dict.fromkeys(map(read, text.split(','))))


def chosen_rates(text: str) -> dict[str, float]:
    """The type of --rates: METHOD:RATE,METHOD:RATE,…"""
    rates: dict = {}
    for part in text.split(','):
        method, colon, rate = part.partition(':')
        if not colon or method in rates:
            raise argparse.ArgumentTypeError(f'{part!r} is not METHOD:RATE of one more method '
                                             '(--tune tries several rates)')
        rates[method] = learning_rate(rate)
    return rates


def own_parser(description: str) -> Parser:
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=description,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--model_def', type=one_of(models.names), metavar='NAME',
        help=f'a network of the family to compare (default: that of --config, or {MODEL_DEF})')
    add('--methods', default=','.join(NAMES), metavar='A,B,…',
        type=some(one_of(lambda: [*NAMES, *(name + UNCENTRED for name in METHODS)])),
        help='of %(default)s (default: these), and those trained with --no-centring, called like '
             f'dab{UNCENTRED}')
    add('--inputs', default='real,sign', type=some(one_of(lambda: ['real', 'sign'])), metavar='A,B',
        help='of real, sign (default: both)')
    add('--seeds', default=3, type=at_least(1), metavar='N', help='runs per method (default: 3)')
    add('--tune', type=some(learning_rate), metavar='RATE,RATE,…',
        help='choose the --maxlr of each method among these, on a fifth of the training images, '
             'which must be a folder of sketches')
    add('--tuningSeeds', default=3, type=at_least(1), metavar='N',
        help='with --tune: runs per method and rate (default: 3)')
    add('--rates', type=chosen_rates, default={}, metavar='METHOD:RATE,…',
        help='the --maxlr of these methods')
    add('--jobs', type=at_least(1), default=1, metavar='N',
        help='cells trained at the same time; a GPU has room for several (default: 1)')
    add('--name', type=run_name, help='name of the comparison (default: compare-DATA-FAMILY)')
    add('--logdir', default='logs', metavar='DIR', help='(default: %(default)s)')
    add('--config', metavar='FILE',
        help="flags from a JSON file, like a run's flags.json, but for its name, its folder and "
             'what the comparison decides; those of the command win')
    add('--collect', action='store_true', help='train nothing; write what finished cells give')
    return parser


def parse(arguments: Sequence[str] | None, description: str = ''
          ) -> tuple[argparse.Namespace, dict[str, object]]:
    """(the comparison's own flags, {name: value} of those of main.py that all cells share)

    The first have `command` too, the whole command line. Raises InputError.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(['python3', '-m', PROGRAM, *arguments])
    options, others = own_parser(description).parse_known_args(arguments)
    check_not_empty(options, 'logdir', 'config')
    typed = opts.parse(others)
    check(options, typed)
    config = {}
    if options.config is not None:
        given = typed | ({'model_def': options.model_def} if options.model_def else {})
        without = {'name', 'logdir', *opts.fixed_by('compare')}
        config, sentences = config_flags(options.config, given, without)
        for sentence in sentences:
            console.say(sentence)
    model_def = options.model_def or config.get('model_def', MODEL_DEF)
    own = vars(options) | {'model_def': model_def, 'command': command}
    return argparse.Namespace(**own), config | typed


def check(options: argparse.Namespace, typed: dict[str, object]):
    """Raise InputError for flags that contradict the comparison or each other."""
    if wrong := [name for name in typed if name in opts.fixed_by('compare')]:
        raise InputError(f'--{wrong[0]} is decided by the comparison for each of its runs')
    if unknown := [method for method in options.rates if method not in options.methods]:
        raise InputError(f'--rates: {unknown[0]} is not among --methods')
    given = {'--maxlr': 'maxlr' in typed, '--rates': options.rates, '--tune': options.tune}
    if len(both := [name for name, value in given.items() if value]) > 1:
        raise InputError(f'{" and ".join(both)} all decide the learning rate: give one of them')
