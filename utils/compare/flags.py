"""The flags of a comparison; all others are those of main.py."""
import argparse
from collections.abc import Sequence

import models
import opts
from utils.binarize import METHODS
from utils.flags.config import config_flags
from utils.flags.parser import Parser, at_least, check_not_empty, one_of, run_name
from utils.system import console
from utils.system.errors import InputError

from . import PROGRAM
from .rates import Rates, rates
from .shared import UNCENTRED, method_names

MODEL_DEF = 'sketchanet'


def names_among(*known: str):
    """The type of a flag that takes some of the known names, separated by commas."""
    def choose(text):
        chosen = list(dict.fromkeys(text.split(',')))
        return [one_of(lambda: known)(name) for name in chosen]
    return choose


def parse(arguments: Sequence[str] | None, description: str = ''
          ) -> tuple[argparse.Namespace, dict[str, object]]:
    """(the comparison's own flags, {name: value} of those of main.py that all cells share)"""
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model_def', type=one_of(lambda: models.names()),
                        metavar='NAME', help='a network of the family to compare (default: that of '
                        f'--config, or {MODEL_DEF})')
    parser.add_argument('--methods', default=','.join(['real', *METHODS]), metavar='A,B,…',
                        type=names_among('real', *method_names()),
                        help='of %(default)s (default: these), and those trained with '
                        f'--no-centring, called like dab{UNCENTRED}')
    parser.add_argument('--inputs', default='real,sign', type=names_among('real', 'sign'),
                        metavar='A,B', help='of real, sign (default: both)')
    parser.add_argument('--seeds', default=3, type=at_least(1), metavar='N',
                        help='runs per method (default: 3)')
    parser.add_argument('--rates', type=rates, default=Rates(), metavar='RATES',
                        help='A,B,…: train every method at each --maxlr and say which is best; '
                        'METHOD:A,METHOD:B,…: the --maxlr of each method (default: one --maxlr)')
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='N',
                        help='cells trained at the same time; a GPU has room for several '
                        '(default: 1)')
    parser.add_argument('--name', type=run_name,
                        help='name of the comparison (default: compare-DATA-FAMILY)')
    parser.add_argument('--logdir', default='logs', metavar='DIR', help='(default: %(default)s)')
    parser.add_argument('--config', metavar='FILE',
                        help="flags from a JSON file, like a run's flags.json, but for its name, "
                        'its folder and what the comparison decides; those of the command win')
    parser.add_argument('--collect', action='store_true',
                        help='train nothing; write what the finished cells give')
    options, others = parser.parse_known_args(arguments)
    check_not_empty(options, 'logdir', 'config')
    return shared(options, opts.parse(others))


def shared(options: argparse.Namespace,
           typed: dict[str, object]) -> tuple[argparse.Namespace, dict[str, object]]:
    """The flags, checked, with those of --config; see parse. Raises InputError."""
    decided = opts.fixed_by('compare')
    if wrong := [name for name in typed if name in decided]:
        raise InputError(f'--{wrong[0]} is decided by the comparison for each of its runs')
    check_rates(options, typed)
    config = {}
    if options.config is not None:
        given = typed | ({'model_def': options.model_def} if options.model_def else {})
        config, sentences = config_flags(options.config, given, {'name', 'logdir', *decided})
        for sentence in sentences:
            console.say(sentence)
    options.model_def = options.model_def or config.get('model_def', MODEL_DEF)
    return options, config | typed


def check_rates(options: argparse.Namespace, typed: dict[str, object]):
    trials, chosen = options.rates
    if unknown := [method for method in chosen if method not in options.methods]:
        raise InputError(f'--rates: {unknown[0]} is not among --methods')
    if (trials or chosen) and 'maxlr' in typed:
        raise InputError('--maxlr and --rates both say the learning rate: leave one out')
    if trials and len(options.inputs) > 1:
        raise InputError('--rates chooses among the rates of one kind of inputs: add --inputs=real '
                         'or --inputs=sign')
