"""--evaluate: loss and accuracies on a split, accuracy per class, and confused classes."""
import csv
import io
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import datasets
from models.blocks import Sign
from utils.record.describe import watching_inputs
from utils.experiment import Experiment
from utils.record.progress import Progress
from utils.record.describe import device_name
from utils.system import console
from utils.system.errors import InputError, RunError, naming
from utils.system.files import has_file, write_text
from utils.training import epoch, parallel
from utils.training.epoch import batches_on, predict
from utils.training.predictions import Predictions, Sums, metrics_line

SHOWN = 10          # classes and pairs, without --verbose; all classes where there are few
FEW = 20
LEVEL = 0.95        # of intervals
MEASURES = 'RMSE', 'normalized RMSE', 'one-minus-square'     # of sign layers, WACV 2018, §4


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
    seen = Predictions()
    metrics = epoch.validate(network, loader, experiment.device, Progress(split, len(loader)),
                             flags.amp, seen.observe)
    target, likeliest, probabilities = seen.gather()
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
        taken = [f'{classes[other]} ({wrong})'
                 for other, wrong in taken_for(counts, label)[:3]]
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
    header = ['image', 'class']
    for rank in range(1, likeliest.size(1) + 1):
        header += [f'class{rank}', f'probability{rank}']
    writer.writerow(header)
    for name, label, labels, shares in zip(names, target.tolist(), likeliest.tolist(),
                                           probabilities.tolist()):
        row = [name, classes[label]]
        for other, share in zip(labels, shares):
            row += [classes[other], f'{share:.6f}']
        writer.writerow(row)
    return file.getvalue()


def confusion(target: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes): how many images of class i were taken for class j."""
    return torch.bincount(target * classes + predicted, minlength=classes ** 2).view(classes, -1)


def lowest_first(counts: Tensor) -> list[int]:
    """The class numbers in the order of their accuracy in counts, a confusion()."""
    return (counts.diagonal() / counts.sum(1).clamp(min=1)).sort(stable=True).indices.tolist()


def confused_pairs(counts: Tensor) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of classes confused in either direction in counts, worst first."""
    pairs = torch.triu(counts + counts.T, diagonal=1).flatten()
    order = pairs.sort(descending=True, stable=True).indices.tolist()
    return [divmod(place, len(counts)) for place in order if pairs[place]]


def taken_for(counts: Tensor, label: int) -> list[tuple[int, int]]:
    """(other class, images) that images of class `label` are taken for in counts, most first."""
    row = counts[label].tolist()
    return sorted(((other, images) for other, images in enumerate(row)
                   if images and other != label), key=lambda pair: -pair[1])


def most_confused(counts: Tensor, number: int) -> list[int]:
    """Up to so many class numbers: those of the worst of the confused_pairs, pair by pair."""
    classes: dict[int, None] = {}
    for pair in confused_pairs(counts):
        if len(classes.keys() | pair) > number:
            break
        classes |= dict.fromkeys(pair)
    return list(classes)


def confused_adjacent(counts: Tensor) -> list[int]:
    """The class numbers in an order in which classes that are confused lie side by side.

    Clusters are merged from single classes on, always the two whose classes are confused the most
    on average (average linkage), and joined at those of their ends that are confused the most.
    """
    alike = (counts + counts.T).double()
    alike.fill_diagonal_(0)
    between = alike.clone().fill_diagonal_(-1)      # sums over the pairs of two clusters
    sizes = torch.ones(len(counts), dtype=torch.float64)
    clusters = {label: [label] for label in range(len(counts))}
    while len(clusters) > 1:
        means = between / sizes.outer(sizes)
        one, other = sorted(divmod(int(means.argmax()), len(counts)))
        clusters[one] = joined(clusters[one], clusters.pop(other), alike)
        sizes[one] += sizes[other]
        between[one] += between[other]
        between[:, one] = between[one]
        between[one, one] = -1
        between[other], between[:, other] = -1, -1
    return clusters[0] if clusters else []


def joined(one: list[int], other: list[int], alike: Tensor) -> list[int]:
    """Two orders of classes end to end, each turned so that the ends that meet are most alike."""
    ways = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
    first, second = max(ways, key=lambda way: float(alike[way[0][-1], way[1][0]]))
    return first + second


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The score interval at LEVEL of the accuracy of which `right` of so many images are a sample.

    Both ends lie in [0, 1]; without an image it is all of that. Source: Wilson, "Probable
    Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    half = z * math.sqrt(right * (images - right) / max(images, 1) + z ** 2 / 4)
    low, high = ((right + z ** 2 / 2 + side * half) / (images + z ** 2) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)    # against rounding


def sign_losses(x: Tensor) -> Tensor:
    """The three MEASURES of one input x of any shape.

    RMSE of sign(x) − x; the same over the root mean square of x; mean |1 − clamp(x, −1, 1)²|.
    """
    squared_error = torch.where(x >= 0, x - 1, x + 1).square().mean()
    return torch.stack([squared_error.sqrt(), (squared_error / x.square().mean()).sqrt(),
                        (1 - x.clamp(-1, 1).square()).abs().mean()])


@torch.no_grad()
def binarization_losses(model: nn.Module, loader, device: torch.device,
                        progress) -> dict[str, list[float]]:
    """{name of a sign layer: its MEASURES}, in evaluation mode, the mean of batches by images.

    They have roots of means over a batch, so they depend a little on its size. loader yields
    (images, labels), one image or ten crops each; progress is a Progress.
    """
    model.eval()
    signs = {name: module for name, module in model.named_modules() if isinstance(module, Sign)}
    sums = {name: Sums(len(MEASURES), device) for name in signs}

    def add(name, x):
        sums[name].add(sign_losses(x.float()) * len(images), [1] * len(MEASURES), len(images))

    with parametrize.cached(), watching_inputs(signs, add):
        for images, _ in progress(batches_on(device, loader)):
            predict(model, images)
    totals = {name: of_layer.total() for name, of_layer in sums.items()}
    return {name: [value / count for value in values] for name, (values, count) in totals.items()}


def loss_table(losses: dict[str, list[float]]) -> str:
    """The table of --calculateBinarizationLosses."""
    rows = [f'{"sign layer":32} {"RMSE":>10} {"normalized":>10} {"1-square":>10}']
    for name, values in losses.items():
        rows.append(f'{name:32} ' + ' '.join(f'{value:10.4f}' for value in values))
    return '\n'.join(rows)
