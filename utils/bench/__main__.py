"""Benchmarks: what binarization costs, against the real-valued network, in one interleaved run.

    python3 -m utils.bench step                     a training step of three networks
    python3 -m utils.bench step --model_def alexnetwbin mobilenet   of others, from 2 to the last
    python3 -m utils.bench flags                    the same with --amp, --compile, --channelsLast
    python3 -m utils.bench eval                     a validation pass with ten crops
    python3 -m utils.bench data --data_dir=DIR      the sketch training transform
    python3 -m utils.bench packed                   packed networks against float32 ones

Prints medians of the rounds, their ratio (ours / baseline) and the quartiles of the ratio; with
--json, a list of {case, baseline_s, ours_s, ratio} on the last line; of `packed` {case, batch,
threads, float_s, packed_s, speedup}.
"""
from utils import interrupt     # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import json
from collections.abc import Sequence

import models
from utils.arguments import Parser, at_least, one_of
from utils.errors import reported

from . import data, evaluation, packed, step
from .timing import machine, print_header

PROGRAM = 'utils.bench'
BENCHMARKS = {'step': step.bench, 'flags': step.bench_flags, 'data': data.bench,
              'eval': evaluation.bench, 'packed': packed.bench}


def main(arguments: Sequence[str] | None = None):
    """Run the benchmark that the arguments name."""
    with reported(PROGRAM):
        options = parse(arguments)
        print(machine())
        if options.what != 'packed':
            print_header()
        rows = BENCHMARKS[options.what](options)
        if options.json:
            print(json.dumps(rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    count = at_least(1)
    parser.add_argument('what', choices=BENCHMARKS)
    parser.add_argument('--model_def', type=one_of(models.names()), metavar='NAME', nargs='+')
    parser.add_argument('--batch-size', type=at_least(2), default=16,
                        help='images in a step; BatchNorm needs two (default: %(default)s)')
    parser.add_argument('--channels', type=count, default=1)
    parser.add_argument('--binStart', type=count, default=2)
    parser.add_argument('--binEnd', type=count, default=100)
    parser.add_argument('--binSearch', choices=('fast', 'exact'), default='fast')
    parser.add_argument('--data_dir', default='data/tuberlin')
    parser.add_argument('--inpsize', type=at_least(1, most=models.MAX_INPSIZE), default=225)
    parser.add_argument('--images', type=count, default=200)
    parser.add_argument('--threads', type=at_least(1, most=256), nargs='+', default=[1, 2],
                        help='of packed')
    parser.add_argument('--rounds', type=at_least(2), default=15)
    parser.add_argument('--json', action='store_true')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
