"""Benchmarks: ratios of two things measured in turn, in one interleaved run.

All but `epoch` print the medians of the rounds, their ratio and the quartiles of the ratio. The
last line under --json is a list of objects {case, baseline_s, ours_s, ratio}; of `epoch` one per
epoch, {epoch, wall, images} and the seconds of each part.
"""
from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

import models
from utils.flags.parser import Parser, at_least, device, one_of
from utils.system.errors import reported

from . import data, epoch, packed, step
from .timing import machine

PROGRAM = 'utils.bench'

FLAGS: dict[str, dict] = {
    '--against': dict(default='--no-binaryWeight', metavar='FLAGS',
                      help='what the baseline has beside the flags given, such as '
                           "--against='--amp=off' (default: %(default)s)"),
    '--networks': dict(type=one_of(models.names), metavar='NAME', nargs='+',
                       default=['sketchanetfbin', 'resnetfbin18'],
                       help='of --model_def, with binarized inputs (default: %(default)s)'),
    '--device': dict(type=device, default='auto', metavar='NAME', help='as of main.py'),
    '--data_dir': dict(metavar='DIR', default='data/tuberlin', help='folder of TU-Berlin'),
    '--inpsize': dict(type=at_least(1, most=models.MAX_INPSIZE), metavar='PIXELS', default=225,
                      help='side of an image (default: %(default)s)'),
    '--images': dict(type=at_least(1), default=200, metavar='N',
                     help='images that are read (default: %(default)s)'),
    '--threads': dict(type=at_least(1, most=256), nargs='+', default=[1, 2], metavar='N',
                      help='numbers of threads (default: 1 2)'),
    '--rounds': dict(type=at_least(2), default=15, metavar='N',
                     help='measurements of each case (default: %(default)s)'),
}


class Benchmark(NamedTuple):
    run: Callable[[argparse.Namespace], list[dict]]
    help: str
    flags: str      # those of FLAGS that it uses


BENCHMARKS = {
    'step': Benchmark(step.bench, 'a training step under the flags of main.py, against others',
                      '--against --rounds'),
    'epoch': Benchmark(epoch.bench, 'where the time of two epochs of main.py goes, by its flags',
                       ''),
    'data': Benchmark(data.bench, 'the training transform of sketches',
                      '--device --data_dir --inpsize --images --rounds'),
    'packed': Benchmark(packed.bench, 'packed networks against float32 ones',
                        '--networks --threads --rounds'),
}
TAKES_FLAGS_OF_MAIN = 'step', 'epoch'


def main(arguments: Sequence[str] | None = None):
    """Run the benchmark that the arguments name."""
    with reported(PROGRAM):
        options = parse(arguments)
        torch.backends.cudnn.benchmark = True       # as in training
        print(machine())
        rows = BENCHMARKS[options.what].run(options)
        if options.json:
            print(json.dumps(rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The benchmark `what` and the values of its flags; `main_flags` are those of main.py."""
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True, metavar='BENCHMARK',
                                     parser_class=Parser)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=benchmark.run.__doc__)
        for flag in benchmark.flags.split():
            command.add_argument(flag, **FLAGS[flag])
        command.add_argument('--json', action='store_true', help='print the results as JSON too')
        if name in TAKES_FLAGS_OF_MAIN:
            command.usage = f'{command.format_usage()[len("usage: "):].strip()} [FLAGS OF MAIN.PY]'
    options, others = parser.parse_known_args(arguments)
    if others and options.what not in TAKES_FLAGS_OF_MAIN:
        parser.error(f'{others[0]} is no flag of {options.what}: python3 -m {PROGRAM} '
                     f'{options.what} --help lists those, which follow its name')
    options.main_flags = others
    return options


if __name__ == '__main__':
    main()
