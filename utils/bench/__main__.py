"""Benchmarks: what binarization costs, against the real-valued network, in one interleaved run.

On a GPU where there is one, but for packed. Prints medians of the rounds, their ratio
(ours / baseline) and the quartiles of the ratio; the last line under --json is a list of objects:
{case, baseline_s, ours_s, ratio}; of `packed` {case, batch, threads, float_s, packed_s, speedup};
of `epoch` one per epoch, {epoch, wall, images} and the seconds of each part; of `kernels` {network,
computed_s, bytes_s, launches}; of `arm` {case, binary, float, ratio} in multiply-adds a cycle and
{case, binary_cycles, float_cycles}; {case, error} of what failed.
"""
from utils import interrupt     # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

import models
from utils.arguments import Parser, at_least, device, one_of
from utils.errors import RunError, reported

from . import arm, data, epoch, evaluation, gpu, kernels, packed, step
from .timing import machine, print_header

PROGRAM = 'utils.bench'

FLAGS: dict[str, dict] = {
    '--model_def': dict(type=one_of(models.names()), metavar='NAME', nargs='+',
                        help='networks (default: those of the README, in its settings)'),
    '--batch-size': dict(type=at_least(2), dest='batch', metavar='IMAGES',
                         help='images in a step; BatchNorm needs two (default: of --model_def 16, '
                              'on a GPU 128)'),
    '--channels': dict(type=at_least(1), metavar='N',
                       help='channels of an image (default: of --model_def 1)'),
    '--binStart': dict(type=at_least(1), metavar='NUMBER',
                       help='first binarized convolution (default: 2)'),
    '--binEnd': dict(type=at_least(1), metavar='NUMBER',
                     help='last one (default: of --model_def 100, all)'),
    '--inpsize': dict(type=at_least(1, most=models.MAX_INPSIZE), metavar='PIXELS',
                      help="side of an image (default: the network's own)"),
    '--binSearch': dict(choices=('fast', 'exact'), default='fast', help='(default: %(default)s)'),
    '--device': dict(type=device, default='auto', metavar='NAME', help='as of main.py'),
    '--data_dir': dict(metavar='DIR', help='folder of TU-Berlin'),
    '--images': dict(type=at_least(1), default=200, metavar='N',
                     help='images that are read (default: %(default)s)'),
    '--threads': dict(type=at_least(1, most=256), nargs='+', default=[1, 2], metavar='N',
                      help='numbers of threads (default: 1 2)'),
    '--rounds': dict(type=at_least(2), default=15, metavar='N',
                     help='measurements of each case (default: %(default)s)'),
}
NETWORK = '--model_def --channels --binStart --binEnd --inpsize'


class Benchmark(NamedTuple):
    run: Callable[[argparse.Namespace], list[dict]]
    help: str
    flags: str      # those of FLAGS that it uses
    defaults: dict = {}
    header: bool = True     # whether all it prints are lines of timing.compare
    main_flags: bool = False    # whether it takes those of main.py too


BENCHMARKS = {
    'step': Benchmark(step.bench, 'a training step, its time and memory',
                      f'--device {NETWORK} --batch-size --binSearch --rounds'),
    'flags': Benchmark(step.bench_flags, f'the same under each of {", ".join(step.FLAGS)}',
                       f'--device {NETWORK} --batch-size --binSearch --rounds'),
    'eval': Benchmark(evaluation.bench, 'a validation pass with ten crops',
                      f'--device {NETWORK} --binSearch --rounds'),
    'data': Benchmark(data.bench, 'the training transform of sketches',
                      '--device --data_dir --inpsize --images --rounds',
                      {'data_dir': 'data/tuberlin', 'inpsize': 225}),
    'packed': Benchmark(packed.bench, 'packed networks against float32 ones',
                        f'{NETWORK} --threads --rounds', header=False),
    'epoch': Benchmark(epoch.bench, 'where the time of two epochs of main.py goes, by its flags',
                       '', header=False, main_flags=True),
    'kernels': Benchmark(kernels.bench, "what the GPU's kernels cost, computed without a GPU",
                         '', header=False),
    'arm': Benchmark(arm.bench, 'what packed convolutions cost on 64-bit Arm, estimated on any',
                     '', header=False),
    'gpu': Benchmark(gpu.bench, 'in ten minutes, all that a GPU can tell: correctness and speed',
                     '--data_dir', header=False),
}


def main(arguments: Sequence[str] | None = None):
    """Run the benchmark that the arguments name."""
    with reported(PROGRAM):
        options = parse(arguments)
        torch.backends.cudnn.benchmark = True       # as in training
        print(machine())
        benchmark = BENCHMARKS[options.what]
        if benchmark.header:
            print_header()
        rows = benchmark.run(options)
        if options.json:
            print(json.dumps(rows))
        failed = [row['case'] for row in rows if 'error' in row]
        if failed:
            raise RunError(f'{"; ".join(failed)} failed, as reported above')


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The benchmark `what` and the values of its flags; `main_flags` are those of main.py."""
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True, metavar='BENCHMARK',
                                     parser_class=Parser)
    for name, benchmark in BENCHMARKS.items():
        usage = '%(prog)s [-h] [--json] [FLAGS OF MAIN.PY]' if benchmark.main_flags else None
        command = commands.add_parser(name, help=benchmark.help, usage=usage,
                                      description=benchmark.run.__doc__)
        for flag in benchmark.flags.split():
            command.add_argument(flag, **FLAGS[flag])
        command.add_argument('--json', action='store_true', help='print the results as JSON too')
        command.set_defaults(**benchmark.defaults)
    options, others = parser.parse_known_args(arguments)
    if others and not BENCHMARKS[options.what].main_flags:
        parser.error(f'{others[0]} is no flag of {options.what}: python3 -m {PROGRAM} '
                     f'{options.what} --help lists those, which follow its name')
    options.main_flags = others
    return options


if __name__ == '__main__':
    main()
