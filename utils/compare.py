"""Compare binarization methods: train a family's networks under each, and draw and test the differences.

    python3 -m utils.compare --model_def=sketchanet --methods=real,dab,xnor,bnn --inputs=real,sign --seeds=3 …

Further flags are those of main.py, but for what the comparison itself decides. A cell is one run of main.py
under <logdir>/<name>/: the family's real network, its wbin variant (inputs=real) and its fbin variant
(inputs=sign) under each method, for the seeds 0, 1, …; cells of one seed share the data order and the
initialization. Stopped, the same command goes on; a finished cell is never trained again, and one that fails
does not stop the others. After every cell it writes, of all finished ones,

    compare.md, compare.csv    accuracies of the last epoch; McNemar's test of every pair of methods (md only)
    curves.png, accuracy.png   accuracy per epoch; final accuracies

Accuracies are counted image by image with the checkpoint of the last epoch. --tenCrop counts with ten
crops; as it does not change what is trained, cells trained without it may be counted with it.
"""
import argparse
import csv
import io
import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import parametrize

import main
import models
import opts
from models.blocks import has_signs
from utils import results, train
from utils.binarize import METHODS, default_end, weight_bits
from utils.checkpoint import read_checkpoint, write_whole
from utils.record import Progress

# What the comparison decides for every cell.
DECIDED = ('--binarizer', '--binaryWeight', '--no-binaryWeight', '--bnnModel', '--manualSeed', '--resume',
           '--evaluate', '--classify', '--export', '--packed', '--overwrite', '--calculateBinarizationLosses')
# Flags in which a cell may differ from the command that continues it: they do not change its result.
NEUTRAL = {'workers', 'testbatchsize', 'tenCrop', 'printfreq', 'verbose', 'name', 'logdir', 'data_dir', 'epochs',
           *opts.ONCE} - {'pretrained_file'}


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""
    method: str
    inputs: str
    model_def: str
    seed: int
    folder: Path    # of the whole comparison

    @property
    def name(self):
        return '-'.join([self.model_def, *([self.method] if self.method != 'real' else []), f'seed{self.seed}'])

    @property
    def last(self):
        return self.folder / self.name / 'last.pth.tar'

    def arguments(self, flags):
        """The command of main.py that trains this cell from the start."""
        binary = ['--no-binaryWeight'] if self.method == 'real' else ['--binaryWeight', f'--binarizer={self.method}']
        return [*flags, f'--model_def={self.model_def}', *binary, f'--manualSeed={self.seed}', f'--name={self.name}',
                f'--logdir={self.folder}']


def cells(options, flags, folder):
    """The cells, all of one seed before the next. Raises ValueError for what the family or the flags do not allow."""
    family = models.family(options.model_def)

    def variant(kind, otherwise=None):
        name = next((name for name in family if kind in name), otherwise)
        if name is None:
            raise ValueError(f'--inputs=sign: the family of {options.model_def} has no fbin variant')
        return name

    kinds = []
    for inputs in options.inputs:
        for method in options.methods:
            if inputs == 'sign' and method != 'real':
                kinds.append((method, inputs, variant('fbin')))
            elif inputs == 'real':
                kinds.append((method, inputs, family[0] if method == 'real' else variant('wbin', family[0])))
    if not kinds:
        raise ValueError('there is nothing to compare: --methods=real has real inputs only')
    for name in {name for _, inputs, name in kinds if inputs == 'real'}:
        if has_signs(on_meta(name)):
            raise ValueError(f'--inputs=real: {name} has binarized inputs, and its family no network without')
    if any(flag.startswith('--signLayers') for flag in flags) and any(inputs == 'real' for _, inputs, _ in kinds):
        raise ValueError('--signLayers would binarize the inputs of the networks with real inputs: add --inputs=sign')
    return [Cell(*kind, seed, folder) for seed in range(options.seeds) for kind in kinds]


def on_meta(name, **options):
    """The network `name` without memory for its weights."""
    with torch.device('meta'):
        return models.build(name, nClasses=2, **options)


def check(cell, flags):
    """How many epochs the cell has. Raises ValueError where it was trained with other flags than these."""
    if not cell.last.exists():
        return 0
    stored, asked = read_checkpoint(cell.last), vars(flags).copy()
    if flags.nClasses is None:      # as main.py fills these two in
        asked['nClasses'] = len(stored['classes'])
    if flags.binEnd is None:
        network = on_meta(flags.model_def, channels=stored['channels'], inpsize=flags.inpsize)
        asked['binEnd'] = default_end(network, flags.binStart)
    for flag, value in stored['flags'].items():
        if flag not in NEUTRAL and asked.get(flag) != value:
            raise ValueError(f'{cell.last.parent} was trained with --{flag}={value}, not {asked.get(flag)}: '
                             'give this comparison another --name')
    if stored['epoch'] > flags.epochs:
        raise ValueError(f'{cell.last.parent} has {stored["epoch"]} epochs, more than --epochs={flags.epochs}')
    return stored['epoch']


@torch.no_grad()
def judge(cell, asked):
    """The result (see utils/results.py) of a finished cell, from its result.json where that is up to date.

    asked: the flags of the comparison.
    """
    flags, stored = opts.parse([f'--resume={cell.last}', '--tenCrop' if asked.tenCrop else '--no-tenCrop',
                                f'--data_dir={asked.data_dir}', f'--workers={asked.workers}'])
    path = cell.last.with_name('result.json')
    made_of = {'epoch': stored['epoch'], 'tenCrop': flags.tenCrop, 'metrics': stored['metrics'],
               'data_dir': flags.data_dir}
    if path.exists():
        result = json.loads(path.read_text())
        if made_of.items() <= result.items():
            return result
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    data = main.load_data(flags, stored)
    model = main.build(flags, stored, data.channels).to(device).eval()
    _, loader = main.loaders(data, flags, device)
    ranks = []
    with parametrize.cached():
        for images, target in Progress(f'counting {cell.name}', len(loader))(loader):
            log_probs = train.predict(model, images.to(device)).float().cpu()
            no_likelier = log_probs <= log_probs.gather(1, target[:, None])     # False for NaN
            ranks += (~no_likelier).sum(1).tolist()
    weights, bits = weight_bits(model)
    state = sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    rows = [json.loads(line) for line in cell.last.with_name('metrics.jsonl').read_text().splitlines()]
    result = made_of | {
        'ranks': ranks, 'curve': [row['top1'] for row in rows if row['split'] == 'val'],
        'seconds': sum(row['time'] for row in rows if row['split'] == 'train'),
        'bits_per_weight': bits / weights if weights else 32, 'bytes': 4 * (state - weights) + bits / 8}
    write_whole(path, lambda new: new.write_text(json.dumps(result)))
    return result


def write(folder, command, finished, asked):
    """The tables and pictures of the finished cells, which it also prints. asked: the flags of the comparison."""
    by_kind = {}
    for cell in finished:
        by_kind.setdefault((cell.method, cell.inputs), {})[cell.seed] = judge(cell, asked)
    rows = [results.summarize(*kind, of_seeds) for kind, of_seeds in by_kind.items()]
    pairs = [results.paired(a, b, by_kind) for a, b in itertools.combinations(by_kind, 2) if a[1] == b[1]]
    text = results.markdown(command, rows, list(filter(None, pairs)), asked.tenCrop)
    comma_separated = io.StringIO()
    writer = csv.DictWriter(comma_separated, rows[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    for name, content in (('compare.md', text), ('compare.csv', comma_separated.getvalue())):
        write_whole(folder / name, lambda path: path.write_text(content, encoding='utf-8'))
    for name, figure in (('curves.png', results.draw_curves(by_kind)), ('accuracy.png', results.draw_accuracy(rows))):
        write_whole(folder / name, lambda path: figure.savefig(path, dpi=150, format='png'))
    print(f'{text}\n{folder}: compare.md, compare.csv, curves.png, accuracy.png', flush=True)


def names_of(*known):
    """The type of a flag that takes some of the known names, with commas between."""
    def choose(text):
        chosen = list(dict.fromkeys(text.split(',')))
        return [opts.one_of(known)(name) for name in chosen]
    return choose


def parse(arguments):
    parser = opts.Parser('python3 -m utils.compare', description=__doc__, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model_def', default='sketchanet', type=opts.one_of(models.names()), metavar='NAME',
                        help='a network of the family to compare (default: %(default)s)')
    parser.add_argument('--methods', default=','.join(['real', *METHODS]), type=names_of('real', *METHODS),
                        metavar='A,B,…', help='of %(default)s (default: all)')
    parser.add_argument('--inputs', default='real,sign', type=names_of('real', 'sign'), metavar='A,B',
                        help='of real, sign (default: both)')
    parser.add_argument('--seeds', default=3, type=opts.at_least(1), metavar='N', help='runs per method (default: 3)')
    parser.add_argument('--name', help='name of the comparison (default: compare-DATA-FAMILY)')
    parser.add_argument('--logdir', default='logs', metavar='DIR', help='(default: %(default)s)')
    parser.add_argument('--collect', action='store_true', help='train nothing; write what the finished cells give')
    options, flags = parser.parse_known_args(arguments)
    for flag in flags:
        if flag.split('=')[0] in DECIDED:
            parser.error(f'{flag.split("=")[0]} is what the comparison decides for each of its runs')
    return parser, options, flags


def compare(arguments=None):
    parser, options, flags = parse(arguments)
    common = opts.parse(flags)[0]
    folder = Path(options.logdir) / (options.name or f'compare-{common.dataset}-{models.family(options.model_def)[0]}')
    command = shlex.join(['python3', '-m', 'utils.compare', *(sys.argv[1:] if arguments is None else arguments)])
    try:
        plan = cells(options, flags, folder)
        done = {cell: check(cell, opts.parse(cell.arguments(flags))[0]) for cell in plan}
        finished = {cell for cell in plan if done[cell] == common.epochs}
        if options.collect and not finished:
            raise ValueError(f'--collect: {folder} has no finished cells with these flags')
        if common.epochs == 0:
            raise ValueError('--epochs=0: there is nothing to compare without training')
        if finished:
            write(folder, command, [cell for cell in plan if cell in finished], common)
        failed = []
        for number, cell in enumerate(plan, 1):
            if cell not in finished and not options.collect:
                print(f'cell {number} of {len(plan)}: {cell.name}', flush=True)
                try:        # what has no finished epoch yet loses nothing
                    main.main(cell.arguments(flags) + [f'--resume={cell.last}' if done[cell] else '--overwrite'])
                except SystemExit as stop:
                    if stop.code != 1:
                        raise
                    failed.append(cell.name)        # such as a loss that became NaN: the other cells go on
                    continue
                finished.add(cell)
                write(folder, command, [cell for cell in plan if cell in finished], common)
        if failed:
            parser.exit(1, f'{parser.prog}: error: {", ".join(failed)} failed, as said above\n')
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        parser.exit(130, 'utils.compare: stopped by Ctrl-C; the same command goes on\n')


if __name__ == '__main__':
    compare()
