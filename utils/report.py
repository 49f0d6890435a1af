"""Why binarization works in one network, on one page: python3 -m utils.report CHECKPOINT

Writes a folder with index.html, which opens from disk, and the pictures that it shows: the weights of
every binarized layer and their two values, their error under dab, xnor and bnn, what the first layers
answer to an image, what sign layers lose and which inputs that suggests keeping real, and the training.
"""
import argparse
import math
import re
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

import datasets
import models
import opts
from datasets.doodles import CLASSES, Doodles
from models.blocks import Sign, has_signs, layer_string
from utils import binarize, figures, sections, train
from utils.checkpoint import load_model, read_checkpoint
from utils.describe import describe
from utils.page import Page, install, refuse_another
from utils.record import Progress

CPU = torch.device('cpu')
MEASURES = ('RMSE', 'normalized RMSE', 'one-minus-square')      # in the order of train.sign_losses
METHOD_WORDS = {
    'dab': 'distribution-aware: α and β are the means of the two groups',
    'xnor': 'naive, with a scale: α = mean |W|, β = −α',
    'bnn': 'naive, without a scale: α = 1, β = −1',
}


def rebuild(stored, path):
    """The network of the checkpoint `stored`, read from path, in evaluation mode."""
    flags = stored['flags']
    if not flags['binaryWeight']:
        raise ValueError(f'{path} is of a network with real weights ({flags["model_def"]} without --binaryWeight): '
                         'there is no binarization to report on')
    model = models.build(flags['model_def'], len(stored['classes']), stored['channels'], flags['inpsize'],
                         flags.get('signLayers'))
    with warnings.catch_warnings(action='ignore'):      # the table of convolutions shows what stays real
        binarize.wrap(model, flags['binStart'], flags['binEnd'], flags['binarizer'], flags['binSearch'])
    load_model(model, stored, path)
    return model.eval()


def what_it_is(page, stored, model, path):
    flags, metrics = stored['flags'], stored['metrics']
    share = metrics['top1'] / 100
    deviation = 100 * math.sqrt(share * (1 - share) / metrics['images'])
    page.text('Distribution-aware binarization (DAB) gives every filter of a convolution two numbers, α and β, and '
              'replaces each of its weights by one of them, so that a weight takes 1 bit instead of 32. Which weights '
              'become α is decided by how the weights of that very filter are distributed, such that the squared '
              'error is the least possible.')
    page.table(['', ''], [
        ('run', flags['name']), ('checkpoint', f'{path}, after {stored["epoch"]} epochs'),
        ('network', f'{flags["model_def"]}, for images of {flags["inpsize"]} × {flags["inpsize"]} pixels and '
                    f'{stored["channels"]} channel{"s" * (stored["channels"] > 1)}'),
        ('data', f'{flags["dataset"]}, {len(stored["classes"])} classes'),
        ('accuracy', f'top-1 {metrics["top1"]:.2f} ± {deviation:.2f} %, top-5 {metrics["top5"]:.2f} %, of '
                     f'{metrics["images"]} validation images (± is the standard error of so many images)'
                     f'{", ten crops of each" * bool(flags["tenCrop"])}'),
        ('binarizer', f'{flags["binarizer"]} ({METHOD_WORDS.get(flags["binarizer"], "see utils/binarize.py")}), '
                      f'convolutions {flags["binStart"]} to {flags["binEnd"]}'),
        ('training', f'{flags["optimType"]}, learning rate {flags["maxlr"]:g} divided by {flags["decaylevel"]:g} every '
                     f'{flags["decayinterval"]} epochs down to {flags["minlr"]:g}, batches of {flags["batch_size"]}, '
                     f'weight decay {flags["weightDecay"]:g}, seed {flags["manualSeed"]}')])
    page.text('Its convolutions, numbered as everywhere on this page:')
    page.block(describe(model, stored['channels'], flags['inpsize'], CPU).partition('\n')[2])
    page.text('The weights on this page are the latent ones that training keeps, projected as the network does before '
              'it binarizes them: centred over the input channels, if there are several, and clamped to ±1. n is the '
              'number of weights of a filter, K how many of them become α. Weights and errors have no unit.')


def picture(stored, data, why_no_data, file):
    """A sketch for the network: its tensor (1, side, side), and what it is."""
    flags = stored['flags']
    if data and not file:
        image, label = data.val[0]
        return image, f'The first validation image of {flags["dataset"]} ({data.classes[label]})'
    transform = datasets.transform(flags['dataset'], flags['inpsize'])
    if file:
        return transform(datasets.read_image(file, 1)), f'The image {file}'
    doodle, label = Doodles('val')[0]
    return transform(doodle), (f'A doodle that the program drew ({CLASSES[label]}), as the validation images are '
                               f'missing ({why_no_data})')


def spread_over(images, count):
    """Up to `count` of the images, evenly spaced, so that every class has its share."""
    return Subset(images, torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist())


def worst_third(losses, measure):
    """The third of the sign layers, rounded up, that loses the most: a list of names, the worst first."""
    column = MEASURES.index(measure)
    return sorted(losses, key=lambda name: -losses[name][column])[:math.ceil(len(losses) / 3)]


def activations(page, model, flags, images):
    loader = DataLoader(images, flags['testbatchsize'])
    losses = train.binarization_losses(model, Sign, loader, CPU, Progress('sign layers', len(loader)))
    order = sorted(losses, key=lambda name: -losses[name][MEASURES.index('normalized RMSE')])
    kept = worst_third(losses, 'normalized RMSE')
    page.text(f'A sign layer makes +1 or −1 of every number x that enters it. What that loses, averaged over '
              f'{len(images)} validation images: RMSE is the root of the mean of (sign(x) − x)², normalized RMSE '
              'the root of that mean over the mean of x², one-minus-square the mean of |1 − clamp(x, −1, 1)²|. '
              f'A standard normal x would have a normalized RMSE of {math.sqrt(2 - 2 * math.sqrt(2 / math.pi)):.3f}.')
    page.figure('activations.png', 'The three measures of every sign layer (no unit), sorted by normalized RMSE, the '
                'largest loss at the top.', figures.activations, order,
                {measure: [losses[name][column] for name in order] for column, measure in enumerate(MEASURES)}, kept)
    page.table(['sign layer', *MEASURES, 'suggestion'],
               [(name, *(f'{value:.4f}' for value in losses[name]), 'keep real' if name in kept else '')
                for name in order])
    others = '; '.join(f'{measure} names {", ".join(worst_third(losses, measure))}'
                       for measure in MEASURES if measure != 'normalized RMSE')
    page.text('The rule: of all sign layers the third, rounded up, with the largest normalized RMSE is suggested to '
              'keep its input real. Normalized, because layers differ in the scale of their inputs. Such a rule '
              'always names layers, even where all lose about the same: whether the hybrid is better, only training '
              f'it shows. By the same rule {others}.')
    family = {name: models.sign_layers(name) for name in models.family(flags['model_def'])}
    widest = max(family.values(), key=len)
    if not widest:
        return
    number = {name: int(re.search(r'\d+$', name)[0]) for name in losses}   # models.blocks.Units names them so
    binary, worst = set(number.values()), {number[name] for name in kept}
    page.text('The suggested hybrid, as a command:')
    page.block(f'python3 main.py --model_def={flags["model_def"]} --binaryWeight '
               f'--signLayers={layer_string(binary - worst)} …')
    hybrids = {'suggested here': binary - worst,
               **{name: signs for name, signs in family.items() if signs and signs != widest}}
    page.text('Beside it the hybrid variants of its family:' if len(hybrids) > 1 else
              'Its family has no hybrid variants to compare it with.')
    page.table(['network', 'inputs binarized', 'inputs kept real', 'of the suggested ones'],
               [(name, *map(layer_string, (signs, widest - signs)), layer_string(worst - signs) or 'none')
                for name, signs in hybrids.items()])


def parse(arguments):
    parser = opts.Parser('report', description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of a network with binarized weights')
    parser.add_argument('--out', type=Path, metavar='DIR', help='where to (default: report/ beside the checkpoint)')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier report there')
    parser.add_argument('--data_dir', metavar='DIR', help='the data, where it is no longer where training found it')
    parser.add_argument('--image', metavar='FILE', help='the sketch to respond to (default: a validation image)')
    parser.add_argument('--images', type=opts.at_least(1), default=200, metavar='N',
                        help='validation images to measure sign layers on (default: %(default)s)')
    parser.add_argument('--activations', action='store_true',
                        help='fail where sign layers cannot be measured (without: say so on the page)')
    options = parser.parse_args(arguments)
    options.out = options.out or Path(options.checkpoint).parent / 'report'
    return options


def load_data(stored, options):
    """(the data of the checkpoint, '') or (None, why it cannot be had); ValueError if it was demanded."""
    flags = stored['flags']
    try:
        data = datasets.load(flags['dataset'], options.data_dir or flags['data_dir'], flags['inpsize'])
        if (data.classes, data.channels) != (stored['classes'], stored['channels']):
            raise ValueError('--data_dir: the data has other classes or channels than the checkpoint')
        return data, ''
    except (ValueError, OSError) as error:
        if options.data_dir or options.activations:
            raise
        return None, str(error)


def prepare(options):
    """What a report needs: the checkpoint, its network, and the data, or why it is None. Writes nothing."""
    stored = read_checkpoint(options.checkpoint)
    model = rebuild(stored, options.checkpoint)
    refuse_another(options.out, options.overwrite)
    model_def, sketches = stored['flags']['model_def'], stored['channels'] == 1
    if options.activations and not has_signs(model):
        raise ValueError(f'--activations: {model_def} has no sign layers, its activations are real; '
                         'the report of an fbin or hybrid network measures them')
    if options.image and not sketches:
        raise ValueError('--image: responses are shown for networks of sketches (1 channel) only')
    data, why_no_data = load_data(stored, options) if sketches or has_signs(model) else (None, '')
    sketch = picture(stored, data, why_no_data, options.image) if sketches else None
    return stored, model, data, why_no_data, sketch


def write(options, stored, model, data, why_no_data, sketch):
    """Write the report of what prepare returned; returns the path of its page."""
    flags, layers = stored['flags'], sections.measure_layers(model)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.report-', dir=options.out.parent) as folder:
        page = Page(Path(folder), f'Why it works: {flags["name"]}')
        page.heading('The network')
        what_it_is(page, stored, model, options.checkpoint)
        page.heading('The weights and their two values')
        sections.weights(page, layers)
        page.heading('What binarization loses of the weights')
        sections.errors(page, layers, flags['binarizer'])
        if sketch:
            page.heading('Responses to an image')
            sections.responses(page, model, layers, *sketch)
        if has_signs(model):
            page.heading('What binarization loses of the activations')
            if data:
                activations(page, model, flags, spread_over(data.val, options.images))
            else:
                page.text(f'Left out, as the validation images are missing ({why_no_data}); --data_dir says where '
                          'they are.')
        page.heading('Over training')
        sections.training(page, layers, Path(options.checkpoint).parent, stored['epoch'])
        page.write()
        install(page.folder, options.out)
    return options.out / 'index.html'


def main(arguments=None):
    options, code = parse(arguments), 2
    try:
        prepared = prepare(options)
        code = 1
        print(write(options, *prepared))
    except KeyboardInterrupt:
        fail('stopped by Ctrl-C', 130)
    except (ValueError, OSError) as error:
        fail(error, code)


def fail(error, code):
    sys.stderr.write(f'report: error: {error}\n')
    sys.exit(code)


if __name__ == '__main__':
    main()
