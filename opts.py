"""Every flag once: default, unit, check, and what else decides its value.

Beside the options of argparse a flag has

    fixed_by            'checkpoint', 'packed' (a packed model), 'compare' (utils.compare): what
                        refuses another value than its own
    changes_result      False if its value cannot change what is trained
    once                True if it belongs to one command, so that a resumed run does not inherit it
    follows             flags that its recorded value depends on: if one of them is typed, the value
                        in the flags.json of --config is ignored

To follow a flag: parse here; utils/flags/resolve.py merges typed flags, --config, checkpoint and
defaults; Experiment.make_network passes what concerns the network to models.build and
binarize.wrap; utils/training/loop.py uses the rest.
"""
import argparse
import os
from collections.abc import Mapping, Sequence
from functools import partial

import datasets
import models
from utils.binarize import METHODS
from utils.flags.parser import (SWITCH, Parser, at_least, dataset, device, layers, one_of,
                                per_channel, run_name, some_of)
from utils.system.errors import InputError
from utils.training.optim import NO_DECAY, OPTIMIZERS, SCHEDULES

MAX_WORKERS = 256


def parser() -> Parser:
    """Return the parser of main.py."""
    parser = Parser(
        prog='main.py',
        description='Train a convolutional network with distribution-aware binarized weights.',
        epilog='Without flags: a small Sketch-A-Net on doodles that the program draws; '
               '--binaryWeight binarizes it.')
    for title, add_flags in (
            ('data', data_flags), ('model', model_flags), ('binarization', binarization_flags),
            ('training', training_flags), ('learning rate', learning_rate_flags),
            ('arithmetic', arithmetic_flags), ('run', run_flags)):
        group = parser.add_argument_group(title)
        add_flags(partial(parser.add_flag, group))
        if title == 'binarization':
            group.add_argument('--bnnModel', action='store_true', default=argparse.SUPPRESS,
                               help='the same as --binarizer=bnn')
    return parser


def data_flags(flag):
    flag('--dataset', default='doodles', type=dataset, metavar='NAME',
         help=f'one of {", ".join(datasets.names())} (default: doodles, drawn by the program), or '
              'folder: your own images; runs are named after --data_dir, or NAME with '
              'folder:NAME')
    flag('--data_dir', changes_result=False, default='', metavar='DIR',
         help='folder of the images, with train/ and val/ in it (doodles need none)')
    flag('--channels', fixed_by='checkpoint packed', follows='dataset', type=at_least(1),
         choices=(1, 3),
         help='with --dataset=folder: 1 for sketches, dark on light, 3 for photographs')
    flag('--mean', fixed_by='checkpoint packed', follows='dataset data_dir channels ink',
         type=per_channel(0), metavar='X[,X,X]',
         help='with --dataset=folder: mean of each channel, of pixels in 0..1, in sketches ink '
              'is 1 and paper 0 (default: measured once on the training images)')
    flag('--std', fixed_by='checkpoint packed', follows='dataset data_dir channels ink',
         type=per_channel(0.001), metavar='X[,X,X]',
         help='standard deviation of each channel, which goes with --mean')
    flag('--nClasses', fixed_by='checkpoint packed', follows='dataset data_dir',
         type=at_least(1), metavar='N',
         help='classes; must agree with the data (default: as many as the data has)')
    flag('--workers', changes_result=False, type=at_least(0, most=MAX_WORKERS),
         default=min(4, os.cpu_count() or 1), metavar='N',
         help='processes that load and transform images (default: %(default)s)')
    flag('--dataOn', changes_result=False, choices=('auto', 'device', 'workers'), default='auto',
         help='device: all images lie as uint8 on the device that trains, which augments them in '
              'batches, without loading processes (not photographs); auto: so where they take at '
              'most half of its free memory (default: %(default)s)')
    flag('--tenCrop', changes_result=False, action=SWITCH, default=False,
         help='validate on ten crops of each image, their log-probabilities averaged')
    flag('--skipBroken', action=SWITCH, default=False,
         help='leave out and name the images in folders that cannot be read, not end at the first')
    flag('--ink', choices=datasets.INK, default='dark',
         help='sketches in files are dark on a light or transparent ground, or light and are '
              'inverted; auto: each as its strokes or, without transparent parts, its ground are '
              '(default: %(default)s)')
    flag('--minCrop', type=at_least(0, float, above=True, most=1), default=datasets.MIN_CROP,
         metavar='SHARE',
         help='smallest share of its area that a training crop keeps (default: %(default)s)')


def model_flags(flag):
    flag('--model_def', fixed_by='checkpoint packed', default='sketchanetwbin',
         type=one_of(lambda: models.names()), metavar='NAME',
         help=f'one of {", ".join(models.names())} (default: %(default)s)')
    flag('--signLayers', fixed_by='checkpoint packed', type=layers, metavar='LAYERS',
         help="convolutions with binarized inputs, like 2-5,7 (default: the model's own; only "
              'families with an fbin variant take it)')
    flag('--inpsize', fixed_by='checkpoint packed', follows='model_def dataset',
         type=at_least(1, most=models.MAX_INPSIZE), metavar='PIXELS',
         help="side of the network's square input (default: the model's own, 97 for doodles)")
    flag('--pretrained_file', metavar='FILE',
         help='start from the weights in this checkpoint or state_dict, of this program or of '
              'another whose layers have the same names or the same order and shapes')


def binarization_flags(flag):
    flag('--binaryWeight', fixed_by='checkpoint compare', action=SWITCH, default=False,
         help='binarize the weights of the convolutions binStart to binEnd')
    flag('--binStart', fixed_by='checkpoint', type=at_least(1), default=2, metavar='NUMBER',
         help='first binarized convolution, counted from 1 (default: %(default)s)')
    flag('--binEnd', fixed_by='checkpoint', follows='model_def binStart signLayers',
         type=at_least(1), metavar='NUMBER',
         help='last one; beyond the last means to the end (default: the last but one)')
    flag('--binarizer', fixed_by='checkpoint compare', choices=METHODS, default='dab',
         help='; '.join(f'{name}: {method.title}' for name, method in METHODS.items())
              + ' (default: %(default)s)')
    flag('--binSearch', choices=('fast', 'exact'), default='fast',
         help='search used by dab: fast finds the same optimum without sorting, on the CPU '
              '(default: %(default)s)')
    flag('--centring', fixed_by='checkpoint compare', action=SWITCH, default=True,
         help='before each step, subtract from the latent weights their mean over the input '
              'channels, as published; --no-centring only clamps them')
    flag('--calculateBinarizationLosses', fixed_by='compare', once=True, changes_result=False,
         action='store_true', help='at the end, print what each sign layer loses of its input')


def training_flags(flag):
    flag('--epochs', changes_result=False, type=at_least(0), default=15, metavar='N',
         help='passes over the training set, resumed ones included (default: %(default)s)')
    flag('--batch-size', type=at_least(1), default=32, metavar='IMAGES',
         help='images in a training step of one process (default: %(default)s)')
    flag('--testbatchsize', changes_result=False, type=at_least(1), default=32, metavar='IMAGES',
         help='images in a validation step, ten crops each with --tenCrop (default: %(default)s)')
    flag('--optimType', fixed_by='checkpoint', type=one_of(lambda: list(OPTIMIZERS)),
         default='adam', metavar='NAME', help=f'{", ".join(OPTIMIZERS)} (default: %(default)s)')
    flag('--momentum', default=0.9, metavar='X',
         type=at_least(0, float, most=1, why='past gradients would grow with every step'),
         help='momentum of sgd (default: %(default)s)')
    flag('--nesterov', action=SWITCH, default=False, help='Nesterov momentum of sgd')
    flag('--weightDecay', type=at_least(0, float), default=0.0, metavar='X',
         help='L2 penalty on all parameters; of adamw, decoupled decay (default: %(default)s)')
    flag('--noDecay', type=some_of(NO_DECAY), default='', metavar='KINDS',
         help='what --weightDecay spares, like norm,bias: norm (scales and biases of BatchNorm), '
              'bias (all others), latent (latent weights) (default: nothing)')
    flag('--clipGrad', type=at_least(0, float), default=0.0, metavar='NORM',
         help='scale the gradient of all parameters down to this norm where it is longer '
              '(default: 0, never)')
    flag('--accumulate', type=at_least(1), default=1, metavar='BATCHES',
         help='batches in a step of the optimizer, on the mean of their gradients; BatchNorm sees '
              'one batch (default: %(default)s)')
    flag('--labelSmoothing', type=at_least(0, float, below=1), default=0.0, metavar='X',
         help='share of the target spread over all classes, in the loss of training, also as '
              'printed (default: 0)')
    flag('--manualSeed', fixed_by='compare', type=at_least(0), default=0, metavar='N',
         help='seed of initialization, data order and augmentation (default: %(default)s)')


def learning_rate_flags(flag):
    flag('--learningratescheduler', type=one_of(lambda: list(SCHEDULES)), default='decayschedular',
         metavar='NAME',
         help='decayschedular: max(minlr, maxlr / decaylevel^floor(epoch / decayinterval)); cosine '
              'and linear: from maxlr to minlr in the last of --epochs; constant: maxlr')
    flag('--warmup', type=at_least(0), default=0, metavar='EPOCHS',
         help='first epochs, in which the learning rate rises linearly to maxlr; the schedule '
              'follows (default: %(default)s)')
    flag('--maxlr', type=at_least(0, float, above=True), default=0.001, metavar='RATE',
         help='highest learning rate (default: %(default)s)')
    flag('--minlr', type=at_least(0, float), default=0.00001, metavar='RATE',
         help='lowest learning rate after the warm-up (default: %(default)s)')
    flag('--decayinterval', type=at_least(1), default=50, metavar='EPOCHS',
         help='epochs between two decays of the learning rate (default: %(default)s)')
    flag('--decaylevel', type=at_least(1, float, above=True), default=2.0, metavar='X',
         help='what a decay divides the learning rate by (default: %(default)s)')


def arithmetic_flags(flag):
    flag('--device', once=True, changes_result=False, default='auto', type=device, metavar='NAME',
         help='cpu, cuda (NVIDIA and AMD), xpu (Intel), mps (Apple), or one of several, like '
              'cuda:1 (default: auto, cuda where it is, else cpu)')
    flag('--amp', choices=('off', 'bfloat16', 'float16'), default='off',
         help='compute under autocast in this type; latent weights stay float32, as does the '
              'validation of networks with binarized inputs (default: off)')
    flag('--channelsLast', follows='amp', action=SWITCH,
         help='train on channels-last activations (default: on an NVIDIA or AMD GPU, on other GPUs '
              'with --amp)')
    flag('--compile', action=SWITCH, default=False, help='train through torch.compile')
    flag('--syncBN', action=SWITCH, default=False,
         help='under torchrun, BatchNorm statistics over all processes (GPUs only)')
    flag('--deterministic', action=SWITCH, default=False,
         help='the same weights for a seed on a GPU too, by slower algorithms of PyTorch')


def run_flags(flag):
    flag('--name', changes_result=False, type=run_name, metavar='NAME',
         help='name of the experiment (default: data, model and binarizer)')
    flag('--logdir', changes_result=False, default='logs', metavar='DIR',
         help='the run is recorded in DIR/NAME (default: %(default)s)')
    flag('--config', once=True, changes_result=False, metavar='FILE',
         help="flags from a JSON file, such as a run's flags.json; those of the command win")
    flag('--resume', fixed_by='compare', once=True, changes_result=False, metavar='FILE',
         help='continue from this checkpoint; flags not given are taken from it. auto: from '
              'DIR/NAME/last.pth.tar if it exists, else start')
    flag('--overwrite', fixed_by='compare', once=True, changes_result=False, action='store_true',
         help='replace an earlier run of the same name')
    flag('--evaluate', fixed_by='compare', once=True, changes_result=False, action='store_true',
         help='validate the network of --resume or --packed and exit')
    flag('--split', fixed_by='compare', once=True, changes_result=False, choices=datasets.SPLITS,
         help='with --evaluate: the images to measure it on, test being a third folder beside '
              'train/ and val/, which training never looks at (default: val)')
    flag('--predictions', fixed_by='compare', once=True, changes_result=False, metavar='FILE',
         help="with --evaluate: write each image's likeliest classes and their probabilities to "
              'this CSV file')
    flag('--classify', fixed_by='compare', once=True, changes_result=False, nargs='+',
         metavar='IMAGE',
         help='print the five likeliest classes of these images, or of the images in these '
              'folders, by the network of --resume or --packed, and exit')
    flag('--export', fixed_by='compare', once=True, changes_result=False, metavar='FILE',
         help='write the network of --resume as model.dab (packed, one bit per binarized weight), '
              'model.pt (a state_dict) or model.onnx, and exit')
    flag('--exportHalf', fixed_by='compare', once=True, changes_result=False, action='store_true',
         help='with --export=model.dab: what is not binarized in float16, which can change '
              'predictions, most of all with binarized inputs')
    flag('--packed', fixed_by='compare', once=True, changes_result=False, metavar='FILE',
         help='--evaluate or --classify by this packed model, on the CPU, instead of a checkpoint')
    flag('--printfreq', changes_result=False, type=at_least(1), default=10, metavar='STEPS',
         help='steps between two updates of the progress bar (default: %(default)s)')
    flag('--verbose', changes_result=False, action=SWITCH, default=False, help='print the network')


PARSER = parser()
FLAGS = PARSER.flags        # {name: its Flag}


def default(name: str) -> object:
    """Return the default of a flag, None if it depends on other flags, the data or the device."""
    return FLAGS[name].default


def defaults() -> dict[str, object]:
    """Return {name: default} of all flags."""
    return {name: flag.default for name, flag in FLAGS.items()}


def parse(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Return {name: value} of the typed flags; arguments defaults to those of this process.

    Raises InputError for a wrong command.
    """
    return without_aliases(vars(PARSER.parse_args(arguments)))


def without_aliases(values: Mapping[str, object]) -> dict[str, object]:
    """Replace --bnnModel by --binarizer=bnn. Raises InputError for a contradiction."""
    values = dict(values)
    is_bnn = values.pop('bnnModel', None)
    if not isinstance(is_bnn, bool | None):
        raise InputError(f'--bnnModel must be true or false, not {is_bnn!r}')
    if is_bnn and values.get('binarizer') not in (None, 'bnn'):
        raise InputError(f'--bnnModel contradicts --binarizer={values["binarizer"]}')
    return values | {'binarizer': 'bnn'} if is_bnn else values


def recorded(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flags of a checkpoint; flags that are newer than it have their defaults.

    Raises InputError for a value that no command can have given.
    """
    known = defaults() | without_aliases(flags)
    if known['amp'] is None:    # what older versions recorded for off
        known['amp'] = 'off'
    for name, flag in FLAGS.items():
        if not flag.once and not flag.is_valid(known[name]):
            raise InputError(f'its --{name} is {known[name]!r}')
    return known


def fixed_by(what: str) -> list[str]:
    """Return the names of the flags that `what` fixes."""
    return [name for name, flag in FLAGS.items() if what in flag.fixed_by]


def spelled(name: str, value: object) -> str:
    """Describe the value as typed: 'with --inpsize=97', 'without --signLayers', …"""
    if name not in FLAGS:       # a flag of another version
        return f'with --{name}={value}'
    return FLAGS[name].spelled(value)


def not_default(flags: argparse.Namespace, *names: str) -> list[str]:
    """Return which of these flags differ from their defaults, as typed."""
    values = {name: getattr(flags, name) for name in names}
    return [FLAGS[name].action.option_strings[-1 if value is False else 0]
            for name, value in values.items() if value != default(name)]
