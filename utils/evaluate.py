"""--evaluate: loss and accuracies on a split, accuracy per class, and confused classes."""
import csv
import io
from pathlib import Path

from torch import Tensor, nn

import datasets
from utils.confusion import confused_pairs, confusion, lowest_first, taken_for
from utils.experiment import Experiment
from utils.record.progress import Progress
from utils.record.provenance import device_name
from utils.system import console
from utils.system.errors import InputError, RunError, naming
from utils.system.files import has_file, write_text
from utils.training import epoch, parallel
from utils.training.predictions import Predictions, metrics_line

SHOWN = 10          # classes and pairs, without --verbose; all classes where there are few
FEW = 20


def evaluate(experiment: Experiment) -> nn.Module:
    """Measure the network on the images of --split, print the tables, write --predictions.

    Raises InputError where the file exists, without --overwrite, before anything is computed.
    """
    flags, split = experiment.flags, experiment.flags.split or 'val'
    with naming('--predictions'):
        if flags.predictions and has_file(flags.predictions) and not flags.overwrite:
            raise InputError(f'{flags.predictions} exists already: give another name, or '
                             '--overwrite it')
    network, (_, loader) = experiment.make_network(), experiment.make_loaders()
    predictions = Predictions()
    metrics = epoch.validate(network, loader, experiment.device, Progress(split, len(loader)),
                             flags.amp, predictions.observe)
    target, likeliest, probabilities = predictions.gather()
    if parallel.rank() == 0:
        parallel.say(what_is_measured(experiment, network, split, len(target)))
        parallel.say(metrics_line(split, metrics))
        counts = confusion(target, likeliest[:, 0], len(experiment.classes))
        classes = list(map(console.one_line, experiment.classes))
        parallel.say(f'\n{class_table(counts, classes, flags.verbose)}\n')
        parallel.say(pair_table(counts, classes, flags.verbose))
        if flags.predictions:
            names = datasets.image_names(experiment.data.val)
            text = as_csv(names, target, likeliest, probabilities, experiment.classes)
            with naming(f'--predictions: {flags.predictions}', RunError):
                write_text(Path(flags.predictions), text)
    return network


def what_is_measured(experiment: Experiment, network: nn.Module, split: str, images: int) -> str:
    flags, source = experiment.flags, experiment.source
    amp = epoch.validation_amp(network, flags.amp)
    crops = ', ten crops each' if flags.tenCrop else ''
    under_autocast = '' if amp == 'off' else f', {amp} under autocast'
    done = f', after epoch {source.checkpoint["epoch"]}' if source.checkpoint else ''
    return (f'network: {flags.model_def}, {source.path}{done}\n'
            f'data: {datasets.data_name(flags.dataset)}, {images} images of {split}{crops}, '
            f'{len(experiment.classes)} classes\n'
            f'device: {device_name(experiment.device)}{under_autocast}')


def class_table(counts: Tensor, classes: list[str], every: bool) -> str:
    """Top-1 accuracy per class, the lowest first; of many classes only the first, unless every."""
    images, right = counts.sum(1), counts.diagonal()
    order = lowest_first(counts)
    shown = order if every or len(classes) <= FEW else order[:SHOWN]
    width = max(len('class'), *(len(classes[label]) for label in shown))
    lines = [f'{"class":{width}}  images  top-1 %  most often taken for']
    for label in shown:
        share = f'{100 * right[label] / images[label]:.2f}' if images[label] else '–'
        taken = [f'{classes[other]} ({wrong})' for other, wrong in taken_for(counts, label)[:3]]
        lines.append(f'{classes[label]:{width}}  {images[label]:6}  {share:>7}  '
                     f'{", ".join(taken)}'.rstrip())
    if len(shown) < len(order):
        lines.append(f'… {len(order) - len(shown)} more with higher accuracy; --verbose lists all')
    return '\n'.join(lines)


def pair_table(counts: Tensor, classes: list[str], every: bool) -> str:
    """The pairs of classes that are confused most, in both directions together."""
    found = confused_pairs(counts)
    shown = found if every else found[:SHOWN]
    lines = ['most confused pairs:' if shown else 'no two classes are confused']
    for one, other in shown:
        there, back = counts[one, other], counts[other, one]
        lines.append(f'{there + back:6}  {classes[one]} and {classes[other]}: {there} '
                     f'{classes[one]} taken for {classes[other]}, {back} the other way')
    return '\n'.join(lines)


def as_csv(names: list[str], target: Tensor, likeliest: Tensor, probabilities: Tensor,
           classes: list[str]) -> str:
    """A row an image: its name, its class, and its likeliest classes with their probabilities."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    ranks = range(1, likeliest.size(1) + 1)
    writer.writerow(['image', 'class', *(f'{column}{rank}' for rank in ranks
                                         for column in ('class', 'probability'))])
    for name, label, labels, shares in zip(names, target.tolist(), likeliest.tolist(),
                                           probabilities.tolist()):
        writer.writerow([name, classes[label], *(value for other, share in zip(labels, shares)
                                                 for value in (classes[other], f'{share:.6f}'))])
    return file.getvalue()
