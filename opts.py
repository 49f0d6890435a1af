"""Every flag: its default, its unit, its check."""
import argparse
import difflib
import math
import os

import datasets
import models
from models.blocks import Sign, layer_set, layer_string
from utils.binarize import METHODS
from utils.checkpoint import read_checkpoint
from utils.optim import OPTIMIZERS, SCHEDULES
from utils.packed import network as packed

# What a checkpoint fixes: another value makes another network.
FIXED = ('model_def', 'signLayers', 'nClasses', 'inpsize', 'binaryWeight', 'binStart', 'binEnd', 'binarizer',
         'optimType')
# What a packed model fixes.
PACKED = ('model_def', 'signLayers', 'nClasses', 'inpsize')
# What a resumed command does not take over from the flags of its checkpoint.
ONCE = ('resume', 'packed', 'export', 'exportHalf', 'pretrained_file', 'evaluate', 'classify', 'overwrite',
        'calculateBinarizationLosses')
LARGEST = 2 ** 32   # what seeds and other whole numbers stay below


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f'{self.prog}: error: {message}\n')


def one_of(names):
    def choose(name):
        if name in names:
            return name
        near = difflib.get_close_matches(name, names, 3) or names
        raise argparse.ArgumentTypeError(f'unknown name {name!r}: did you mean {" or ".join(near)}?')
    return choose


def at_least(smallest, kind=int, above=False):
    """A number, not below `smallest` (above: not equal to it either), finite, and below LARGEST if it is an int."""
    def number(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r} is not a number') from None
        if not value < (LARGEST if kind is int else math.inf):
            raise argparse.ArgumentTypeError(f'{text} is too large, or no number')
        if value < smallest or (above and value == smallest):
            raise argparse.ArgumentTypeError(
                f'must be {"more than" if above else "at least"} {smallest}, not {text}')
        return value
    return number


def layers(text):
    """A set of convolutions like '2-5,7', in one spelling."""
    try:
        return layer_string(layer_set(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def parser():
    parser = Parser(prog='main.py', allow_abbrev=False, description=
                    'Train a convolutional network with distribution-aware binarized weights.',
                    epilog='Without flags: a small Sketch-A-Net on doodles that the program draws; '
                           '--binaryWeight binarizes it.')
    switch = argparse.BooleanOptionalAction

    data = parser.add_argument_group('data')
    data.add_argument('--dataset', default='doodles', type=one_of(datasets.names()), metavar='NAME',
                      help=f'one of {", ".join(datasets.names())} (default: doodles, drawn by the program)')
    data.add_argument('--data_dir', default='', metavar='DIR',
                      help='folder of the images, with train/ and val/ in it (doodles need none)')
    data.add_argument('--nClasses', type=at_least(1), metavar='N',
                      help='classes; must agree with the data (default: as many as the data has)')
    data.add_argument('--workers', type=at_least(0), default=min(4, os.cpu_count() or 1), metavar='N',
                      help='processes that load and transform images (default: %(default)s)')
    data.add_argument('--tenCrop', action=switch, default=False,
                      help='validate on ten crops of each image, their log-probabilities averaged')

    model = parser.add_argument_group('model')
    model.add_argument('--model_def', default='sketchanetwbin', type=one_of(models.names()), metavar='NAME',
                       help=f'one of {", ".join(models.names())} (default: %(default)s)')
    model.add_argument('--signLayers', type=layers, metavar='LAYERS',
                       help="convolutions with binarized inputs, like 2-5,7 (default: the model's own; only "
                            'families with an fbin variant take it)')
    model.add_argument('--inpsize', type=at_least(1), metavar='PIXELS',
                       help="side of the network's square input (default: the model's own, 97 for doodles)")
    model.add_argument('--pretrained_file', metavar='FILE',
                       help='start from the weights in this checkpoint, where names and shapes agree')

    binary = parser.add_argument_group('binarization')
    binary.add_argument('--binaryWeight', action=switch, default=False,
                        help='binarize the weights of the convolutions binStart to binEnd')
    binary.add_argument('--binStart', type=at_least(1), default=2, metavar='NUMBER',
                        help='first binarized convolution, counted from 1 (default: %(default)s)')
    binary.add_argument('--binEnd', type=at_least(1), metavar='NUMBER',
                        help='last one; beyond the last means to the end (default: the last but one)')
    binary.add_argument('--binarizer', choices=METHODS, default=None,
                        help='dab: two values by distribution; xnor: ±mean|W|; bnn: ±1 (default: dab)')
    binary.add_argument('--binSearch', choices=('fast', 'exact'), default='fast',
                        help='of dab: fast finds the same optimum without sorting every filter, on the CPU '
                             '(default: %(default)s)')
    binary.add_argument('--bnnModel', action='store_true', help='the same as --binarizer=bnn')
    binary.add_argument('--calculateBinarizationLosses', action='store_true',
                        help='at the end, print what each sign layer loses of its input')

    training = parser.add_argument_group('training')
    training.add_argument('--epochs', type=at_least(0), default=15, metavar='N',
                          help='passes over the training set, resumed ones included (default: %(default)s)')
    training.add_argument('--batch-size', type=at_least(1), default=32, metavar='IMAGES',
                          help='images in a training step of one process (default: %(default)s)')
    training.add_argument('--testbatchsize', type=at_least(1), default=32, metavar='IMAGES',
                          help='images in a validation step, ten crops each with --tenCrop (default: %(default)s)')
    training.add_argument('--optimType', type=one_of(list(OPTIMIZERS)), default='adam', metavar='NAME',
                          help=f'{", ".join(OPTIMIZERS)} (default: %(default)s)')
    training.add_argument('--momentum', type=at_least(0, float), default=0.9, metavar='X',
                          help='momentum of sgd (default: %(default)s)')
    training.add_argument('--nesterov', action=switch, default=False, help='Nesterov momentum of sgd')
    training.add_argument('--weightDecay', type=at_least(0, float), default=0.0, metavar='X',
                          help='L2 penalty on all parameters (default: %(default)s)')
    training.add_argument('--learningratescheduler', type=one_of(list(SCHEDULES)),
                          default='decayschedular', metavar='NAME',
                          help='decayschedular: max(minlr, maxlr / decaylevel^floor(epoch / decayinterval))')
    training.add_argument('--maxlr', type=at_least(0, float, above=True), default=0.001, metavar='RATE',
                          help='first learning rate (default: %(default)s)')
    training.add_argument('--minlr', type=at_least(0, float), default=0.00001, metavar='RATE',
                          help='lower bound of the learning rate (default: %(default)s)')
    training.add_argument('--decayinterval', type=at_least(1), default=50, metavar='EPOCHS',
                          help='epochs between two decays of the learning rate (default: %(default)s)')
    training.add_argument('--decaylevel', type=at_least(1, float, above=True), default=2.0, metavar='X',
                          help='what a decay divides the learning rate by (default: %(default)s)')
    training.add_argument('--amp', choices=('off', 'bfloat16', 'float16'), default='off',
                          help='compute under autocast in this type; latent weights stay float32 (default: off)')
    training.add_argument('--channelsLast', action=switch, default=False,
                          help='train on channels-last activations')
    training.add_argument('--compile', action=switch, default=False, help='train through torch.compile')
    training.add_argument('--syncBN', action=switch, default=False,
                          help='under torchrun, BatchNorm statistics over all processes (GPUs only)')
    training.add_argument('--manualSeed', type=at_least(0), default=0, metavar='N',
                          help='seed of initialization, data order and augmentation (default: %(default)s)')

    run = parser.add_argument_group('run')
    run.add_argument('--name', metavar='NAME', help='name of the experiment (default: data, model and binarizer)')
    run.add_argument('--logdir', default='logs', metavar='DIR',
                     help='the run is recorded in DIR/NAME (default: %(default)s)')
    run.add_argument('--resume', metavar='FILE',
                     help='continue from this checkpoint; flags not given are taken from it')
    run.add_argument('--overwrite', action='store_true', help='replace an earlier run of the same name')
    run.add_argument('--evaluate', action='store_true', help='validate the network of --resume or --packed and exit')
    run.add_argument('--classify', nargs='+', metavar='IMAGE',
                     help='print the five likeliest classes of these images, or of the images in these folders, '
                          'by the network of --resume or --packed, and exit')
    run.add_argument('--export', metavar='FILE',
                     help='write the checkpoint of --resume as a packed model, one bit per binarized weight, and exit')
    run.add_argument('--exportHalf', action='store_true', help='with --export: what is not binarized in float16')
    run.add_argument('--packed', metavar='FILE',
                     help='--evaluate or --classify by this packed model, on the CPU, instead of a checkpoint')
    run.add_argument('--printfreq', type=at_least(1), default=10, metavar='STEPS',
                     help='steps between two updates of the progress bar (default: %(default)s)')
    run.add_argument('--verbose', action=switch, default=False, help='print the network')
    return parser


def parse(arguments=None):
    """(flags, stored): stored is the checkpoint of --resume, what read_packed returns for --packed, or None.

    Exits with code 2 and a sentence for a wrong command.
    """
    command = parser()
    flags, stored = command.parse_args(arguments), None
    try:
        if flags.resume and flags.packed:
            raise ValueError('--resume and --packed both name a network: give one of them')
        if flags.resume or flags.packed:
            stored = read_checkpoint(flags.resume) if flags.resume else read_packed(flags.packed)
            command.set_defaults(**{flag: value for flag, value in stored['flags'].items() if flag not in ONCE})
            flags = command.parse_args(arguments)
        check(flags)
        complete(flags)
        for flag in FIXED if flags.resume else PACKED if flags.packed else ():
            if (fixed := stored['flags'].get(flag)) != (given := getattr(flags, flag)):
                raise ValueError(f'{source(flags)} was trained with --{flag}={fixed}, not {given}')
        if stored and flags.pretrained_file not in (None, stored['flags'].get('pretrained_file')):
            raise ValueError(f'{source(flags)} has all weights: --pretrained_file would change nothing')
    except (ValueError, OSError) as error:
        command.error(error)
    return flags, stored


def read_packed(path):
    """What evaluation needs of a checkpoint, and the 'network', from the packed model at path; ValueError if not."""
    description, network = packed.load(path, models.build, Sign)
    if description.dataset not in datasets.names():
        raise ValueError(f'{path} was made for {description.dataset}, which is no --dataset of this program')
    if datasets.normalization(description.dataset) != (description.mean, description.std):
        raise ValueError(f'{path} normalizes images otherwise than --dataset={description.dataset} does here')
    flags = {'model_def': description.model_def, 'signLayers': description.signLayers, 'inpsize': description.inpsize,
             'nClasses': len(description.classes), 'dataset': description.dataset, 'tenCrop': description.tenCrop}
    return {'flags': flags, 'classes': description.classes, 'channels': description.channels, 'network': network}


def source(flags):
    """The flag and the file that the network comes from."""
    return f'--resume: {flags.resume}' if flags.resume else f'--packed: {flags.packed}'


def check(flags):
    """What no flag can check alone."""
    if flags.minlr > flags.maxlr:
        raise ValueError(f'--minlr={flags.minlr} must not be above --maxlr={flags.maxlr}')
    if flags.binEnd is not None and flags.binStart > flags.binEnd:
        raise ValueError(f'--binStart={flags.binStart} must not be above --binEnd={flags.binEnd}')
    if flags.bnnModel and flags.binarizer not in (None, 'bnn'):
        raise ValueError(f'--bnnModel contradicts --binarizer={flags.binarizer}')
    for flag in 'name', 'resume', 'packed', 'pretrained_file', 'export':
        if getattr(flags, flag) == '':
            raise ValueError(f'--{flag} must not be empty')
    actions = [flag for flag in ('export', 'classify', 'evaluate') if getattr(flags, flag)]
    if len(actions) > 1:
        raise ValueError(f'--{actions[0]} and --{actions[1]} are two things to do: give one of them')
    if flags.calculateBinarizationLosses and (flags.export or flags.classify):
        raise ValueError(f'--calculateBinarizationLosses goes with training and --evaluate, not with --{actions[0]}')
    for flag in 'evaluate', 'classify':
        if getattr(flags, flag) and not (flags.resume or flags.packed):
            raise ValueError(f'--{flag} needs a checkpoint, --resume=FILE, or a packed model, --packed=FILE')
    if flags.packed and not (flags.evaluate or flags.classify):
        raise ValueError('--packed cannot be trained, only used: with --evaluate or --classify')
    if flags.packed and flags.calculateBinarizationLosses:
        raise ValueError('--calculateBinarizationLosses needs the checkpoint: a packed model has no sign layers')
    if flags.packed and flags.amp != 'off':
        raise ValueError(f'--amp={flags.amp}: a packed model computes in bits and float32')
    if flags.export and not flags.resume:
        raise ValueError('--export=FILE needs the checkpoint to pack: --resume=FILE')
    if flags.exportHalf and not flags.export:
        raise ValueError('--exportHalf needs --export=FILE')
    if flags.optimType == 'sgd' and flags.nesterov and flags.momentum == 0:
        raise ValueError('--nesterov needs a --momentum above 0')


def complete(flags):
    """Fill in the defaults that depend on other flags."""
    flags.binarizer = flags.binarizer or ('bnn' if flags.bnnModel else 'dab')
    flags.amp = None if flags.amp == 'off' else flags.amp
    if flags.inpsize is None:
        own = models.default_inpsize(flags.model_def)
        flags.inpsize = min(own, 97) if flags.dataset == 'doodles' else own
    if flags.name is None:
        binary = f'-{flags.binarizer}' if flags.binaryWeight else ''
        flags.name = f'{flags.dataset}-{flags.model_def}{binary}'
