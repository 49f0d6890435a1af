"""What binarization makes of one network, on one page: python3 -m utils.report CHECKPOINT

Writes a folder with index.html, which opens from disk, and its pictures: how accurate, small and
fast the network is, what it gets right and wrong, the weights of every binarized layer and their
two values, their error under each method, the responses of the first layers to an image, what sign
layers lose and which inputs that suggests keeping real, and the curves of the training.
"""
from utils.system import interrupt  # before torch

if __name__ == '__main__':
    interrupt.end_silently()

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

import datasets
from datasets.doodles import CLASSES, Doodles
from models.blocks import has_signs
from utils.flags.parser import Parser, at_least
from utils.data import load_data
from utils.source import Source, checkpoint_source, stored_network
from utils.system import console
from utils.system.errors import InputError, RunError, naming, reported
from utils.system.files import check_file

from .curves import add_curves
from .layer_errors import add_errors, measure_layers
from .mistakes import add_mistakes
from .network import add_network, add_summary
from .page import Page, check_folder
from .responses import add_responses
from .signs import add_activations
from .validation import Centers, evenly_spaced, measure
from .weights import add_weights

PROGRAM = 'utils.report'
SIGN_IMAGES = 200       # on which sign layers are measured, at most


class Subject(NamedTuple):
    """The checkpoint, network and data that a report describes."""
    source: Source
    model: nn.Module                    # in evaluation mode
    data: datasets.Data | None
    why_no_data: str
    sketch: tuple[Tensor, str] | None   # (1, side, side) and its title; None for photographs


def main(arguments: Sequence[str] | None = None):
    """Write the report that the arguments ask for and print the path of its page."""
    with reported(PROGRAM):
        options = parse(arguments)
        console.show(str(write(options, prepare(options))))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=f'python3 -m {PROGRAM}', description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='CHECKPOINT',
                        help='of a network with binarized weights')
    parser.add_argument('--out', type=Path, metavar='DIR',
                        help='folder of the report (default: report/ beside the checkpoint)')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier report there')
    parser.add_argument('--data_dir', metavar='DIR',
                        help='the data, where it is no longer where training found it')
    parser.add_argument('--image', metavar='FILE',
                        help='the sketch to respond to (default: a validation image)')
    parser.add_argument('--images', type=at_least(1), default=1000, metavar='N',
                        help='validation images to classify, evenly spaced (default: %(default)s); '
                        f'sign layers are measured on {SIGN_IMAGES} of them')
    parser.add_argument('--activations', action='store_true',
                        help='fail where sign layers cannot be measured (without: say so on the '
                        'page)')
    options = parser.parse_args(arguments)
    options.out = options.out or Path(options.checkpoint).parent / 'report'
    return options


def prepare(options: argparse.Namespace) -> Subject:
    """Read all that the report needs, and write nothing. Raises InputError."""
    source = checkpoint_source(options.checkpoint)
    model = binarized_network(source)
    with naming('--out'):
        check_folder(options.out, options.overwrite)
    is_sketch = source.channels == 1
    if options.activations and not has_signs(model):
        raise InputError(f'--activations: {source.flags["model_def"]} has no sign layers, its '
                         'activations are real; the report of an fbin or hybrid network measures '
                         'them')
    if options.image and not is_sketch:
        raise InputError('--image: responses are shown for networks of sketches (1 channel) only')
    data, why_no_data, flags = None, '', source.flags
    try:
        data = load_data(source.spec, options.data_dir or flags['data_dir'], flags['inpsize'],
                         source, flags['tenCrop'], skipBroken=flags.get('skipBroken', False))
    except InputError as error:
        if options.data_dir or options.activations:
            raise
        why_no_data = str(error)
    sketch = choose_sketch(source, data, why_no_data, options.image) if is_sketch else None
    return Subject(source, model, data, why_no_data, sketch)


def binarized_network(source: Source) -> nn.Module:
    """The network of a checkpoint in evaluation mode. Raises InputError if its weights are real."""
    if not source.flags['binaryWeight']:
        raise InputError(f'{source.path} is of a network with real weights '
                         f'({source.flags["model_def"]} without --binaryWeight): there is no '
                         'binarization to report on')
    with warnings.catch_warnings(action='ignore'):      # the page shows which layers stay real
        return stored_network(source).eval()


def choose_sketch(source: Source, data: datasets.Data | None, why_no_data: str,
                  file: str | None) -> tuple[Tensor, str]:
    """A sketch for the network, (1, side, side), and its title."""
    name = datasets.data_name(source.flags['dataset'])
    transform = datasets.transform(source.spec, source.flags['inpsize'])
    if file:
        with naming('--image'):
            check_file(file, 'image')
        try:
            image = datasets.read_image(file, 1, ink=source.spec.ink)
            return transform(image), f'The image {file}'
        except datasets.ImageError as error:
            raise InputError(f'--image: {error}') from error
    if data:
        image, label = data.val[0]
        title = f'The first validation image of {name} ({data.classes[label]})'
        return datasets.center(image), title
    doodle, label = Doodles('val')[0]
    title = (f'A doodle that the program drew ({CLASSES[label]}), as the validation images are '
             f'missing ({why_no_data})')
    return transform(doodle), title


def write(options: argparse.Namespace, subject: Subject) -> Path:
    """Write the report and return the path of its page. Raises RunError."""
    source, model, data, why_no_data, sketch = subject
    layers = measure_layers(model)
    both = 'weights and inputs' if has_signs(model) else 'weights'
    page = Page(f'{source.flags["model_def"]} with binarized {both} on '
                f'{datasets.data_name(source.flags["dataset"])}')
    missing = (f'Left out, as the validation images are missing ({why_no_data}); --data_dir says '
               'where they are.')
    add_summary(page, source, model)
    page.heading('What it gets right and wrong')
    if data:
        images = evenly_spaced(data.val, options.images)
        add_mistakes(page, source, measure(model, source.flags, images), len(data.val))
    else:
        page.text(missing)
    page.heading('The network')
    add_network(page, source, model)
    page.heading('The weights and their two values')
    add_weights(page, layers)
    page.heading('What binarization loses of the weights')
    add_errors(page, layers, source.flags['binarizer'])
    page.heading('Responses to an image')
    if sketch:
        add_responses(page, model, layers, *sketch)
    else:
        page.text('Shown for networks of sketches only.')
    page.heading('What binarization loses of the activations')
    if not has_signs(model):
        page.text('Nothing: the inputs of all convolutions are real.')
    elif data:
        few = evenly_spaced(Centers(data.val), min(options.images, SIGN_IMAGES))
        add_activations(page, model, source.flags, few)
    else:
        page.text(missing)
    page.heading('Training')
    add_curves(page, layers, Path(source.path).parent, source.checkpoint['epoch'])
    with naming('--out', RunError):
        return page.save(options.out)


if __name__ == '__main__':
    main()
