"""The flags of a comparison; all others are those of main.py."""
import argparse
import sys
from collections.abc import Sequence

import models
import opts
from utils import console
from utils.arguments import Parser, at_least, check_not_empty, one_of, run_name
from utils.binarize import METHODS
from utils.config import config_words
from utils.errors import InputError

from . import PROGRAM
from .rates import Rates, rates
from .shared import UNCENTRED, method_names

MODEL_DEF = 'sketchanet'


def names_among(*known: str):
    """The type of a flag that takes some of the known names, separated by commas."""
    def choose(text):
        chosen = list(dict.fromkeys(text.split(',')))
        return [one_of(known)(name) for name in chosen]
    return choose


def parse(arguments: Sequence[str] | None, description: str = ''
          ) -> tuple[argparse.Namespace, list[str]]:
    """(the comparison's own flags, those of main.py that all cells share)"""
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model_def', type=one_of(models.names()),
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
    options, common = parser.parse_known_args(arguments)
    check_not_empty(options, 'logdir', 'config')
    common, from_config = shared_flags(common, options.config, opts.fixed_by('compare'), arguments)
    if options.config:
        options.model_def = options.model_def or opts.parse(from_config).model_def
    options.model_def = options.model_def or MODEL_DEF
    check_rates(options, common)
    return options, common


def shared_flags(common: list[str], config: str | None, decided: Sequence[str],
                 arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The flags of main.py that all runs share, after those of --config; and the latter alone.

    arguments: the whole command. Raises InputError for flags that the comparison has decided.
    """
    for flag in common:
        name = flag.split('=')[0]
        if name.removeprefix('--').removeprefix('no-') in decided:
            raise InputError(f'{name} is decided by the comparison for each of its runs')
    if not config:
        return common, []
    words, sentences = config_words(config, opts.parser(),
                                    sys.argv[1:] if arguments is None else arguments,
                                    {'name', 'logdir', *decided})
    for sentence in sentences:
        console.say(sentence)
    return words + common, words


def check_rates(options, common):
    trials, chosen = options.rates
    if unknown := [method for method in chosen if method not in options.methods]:
        raise InputError(f'--rates: {unknown[0]} is not among --methods')
    if (trials or chosen) and any(flag.split('=')[0] == '--maxlr' for flag in common):
        raise InputError('--maxlr and --rates both say the learning rate: leave one out')
    if trials and len(options.inputs) > 1:
        raise InputError('--rates chooses among the rates of one kind of inputs: add --inputs=real '
                         'or --inputs=sign')
