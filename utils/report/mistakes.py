"""The section on what the network gets right and wrong: accuracies, confusions, mistakes."""
from collections.abc import Sequence

from torch import Tensor

import datasets
from utils import evaluate
from utils.source import Source
from utils.style import drawable
from utils.training import predictions

from . import mistake_figures as figures
from .page import Page
from .validation import Measured

TAKEN_FOR = 3       # classes that are named for each
PAIRS = 10          # of confused classes that are listed
EACH_END = 20       # classes with the lowest and with the highest accuracy, of more than MOST
SIDE_BY_SIDE = 24   # classes from which on the accuracies have two columns
MOST = 60           # classes that fit into one picture
CONFUSED = 30       # classes of the part of a larger confusion matrix that is shown
FIRST = 15          # mistakes that are shown
FURTHER = 35        # of them folded


def add_mistakes(page: Page, source: Source, measured: Measured, all_images: int):
    """all_images: how many the split has, of which those of `measured` are evenly spaced."""
    classes = source.classes
    counts = evaluate.confusion(measured.target, measured.likeliest[:, 0], len(classes))
    page.text(what_was_measured(source, measured, all_images))
    page.table([], overall(source, measured, all_images))
    drawn = drawable(classes)
    if numbered := [f'{number}: {name}' for number, name in enumerate(classes)
                    if drawn[number].startswith(f'{number}: ')]:
        page.text('No font of this machine has all characters of these classes, which pictures '
                  f'show by number: {", ".join(numbered)}.')
    add_classes(page, counts, classes, drawn)
    add_pairs(page, counts, classes)
    add_matrix(page, counts, drawn)
    add_pictures(page, source, measured, drawn)


def what_was_measured(source: Source, measured: Measured, all_images: int) -> str:
    images = len(measured.target)
    which = f'{images:,} of the {all_images:,}' if images < all_images else f'All {images:,}'
    how = ', evenly spaced (--images)' if images < all_images else ''
    how += ', ten crops of each, as in training' if source.flags['tenCrop'] else ''
    return (f'{which} validation images of {datasets.data_name(source.flags["dataset"])}{how}, '
            f'classified by the network of this checkpoint ({measured.arithmetic}). The intervals '
            "(95 %, Wilson's) say how far the accuracy on so many images may lie from that on all "
            'images of this kind.')


def overall(source: Source, measured: Measured, all_images: int) -> list[tuple[str, str]]:
    """The rows of the table of what was found on all images together."""
    images, classes = len(measured.target), len(source.classes)
    right = int((measured.likeliest[:, 0] == measured.target).sum())
    rows = [('top-1 accuracy', f'{percent(right, images)}, {right:,} of {images:,} images'),
            ('its 95 % interval', interval(right, images))]
    if classes > 5:
        rows.append(('top-5 accuracy', f'{measured.metrics["top5"]:.2f} %'))
    rows.append(('chance', f'{100 / classes:.2f} %, one in {classes}'))
    said = recorded(source.checkpoint['metrics'], right, images, all_images)
    return [*rows, ('recorded in training', said)]


def recorded(metrics: dict, right: int, images: int, all_images: int) -> str:
    """Compare the accuracy that the checkpoint recorded with the measured one."""
    said = f'top-1 {metrics["top1"]:.2f} % of {metrics["images"]:,} images'
    if metrics['images'] != all_images:
        return (f'{said}: other validation images than these {all_images:,}, or not all of them '
                'then, so the two cannot be compared')
    low, high = evaluate.wilson_interval(right, images)
    if images < all_images:
        agrees = low <= metrics['top1'] / 100 <= high
        return said + (', within the interval' if agrees else
                       ', outside the interval: the images may be others')
    difference = right - round(metrics['top1'] * images / 100)
    if difference == 0:
        return f'{said}, the same'
    moved = f'{abs(difference)} image{"s" if abs(difference) > 1 else ""}'
    why = ('rounding on another device moves a few' if abs(difference) <= max(2, images // 100)
           else 'more than rounding explains: the images may be others')
    return f'{said}, {moved} {"fewer" if difference > 0 else "more"}; {why}'


def percent(right: int, images: int) -> str:
    return f'{100 * right / images:.2f} %' if images else '–'


def interval(right: int, images: int) -> str:
    low, high = evaluate.wilson_interval(right, images)
    return f'{100 * low:.1f} to {100 * high:.1f} %' if images else '–'


def add_classes(page: Page, counts: Tensor, classes: list[str], drawn: list[str]):
    """Accuracy of each class, the lowest first: a picture, and a folded table.

    drawn: the names of the classes for pictures, as below.
    """
    images, right = counts.sum(1).tolist(), counts.diagonal().tolist()
    order = [label for label in evaluate.lowest_first(counts) if images[label]]
    shown, which = order, 'each class'
    if len(order) > MOST:
        shown = order[:EACH_END] + order[-EACH_END:]
        which = f'the {EACH_END} classes with the lowest and the {EACH_END} with the highest'
    rows = [(drawn[label], right[label] / images[label],
             *evaluate.wilson_interval(right[label], images[label])) for label in shown]
    mean = sum(right) / max(sum(images), 1)
    page.figure('classes', f'Top-1 accuracy of {which}, in percent, with its 95 % interval (thin). '
                'Dotted: all images. Of few images an interval is wide; where two overlap widely, '
                'the order of the classes is chance.',
                figures.accuracies(rows, mean, split=len(order) > SIDE_BY_SIDE),
                alt=f'Accuracy of {len(shown)} classes: lowest {classes[shown[0]]} with '
                f'{100 * rows[0][1]:.0f} %, highest {classes[shown[-1]]} with '
                f'{100 * rows[-1][1]:.0f} %.')
    table = []
    for label in evaluate.lowest_first(counts):
        taken = [f'{classes[other]} ({wrong})'
                 for other, wrong in evaluate.taken_for(counts, label)[:TAKEN_FOR]]
        table.append((classes[label], images[label], right[label],
                      percent(right[label], images[label]),
                      interval(right[label], images[label]), ', '.join(taken)))
    with page.folded(f'Accuracy of all {len(classes)} classes as a table'):
        page.table(['class', 'images', 'right', 'top-1', '95 % interval', 'most often taken for'],
                   table)


def add_pairs(page: Page, counts: Tensor, classes: list[str]):
    pairs = evaluate.confused_pairs(counts)[:PAIRS]
    if not pairs:
        page.text('No image is misclassified.')
        return
    page.text('The pairs of classes that are confused the most, of all images of either class:')
    images = counts.sum(1)
    page.table(['classes', 'confused', 'of images', 'share', 'first taken for second',
                'second for first'],
               [(f'{classes[one]} and {classes[other]}', both := int(counts[one, other]
                                                                     + counts[other, one]),
                 int(images[one] + images[other]),
                 percent(both, int(images[one] + images[other])),
                 int(counts[one, other]), int(counts[other, one])) for one, other in pairs])


def add_matrix(page: Page, counts: Tensor, classes: list[str]):
    """The confusion matrix; of many classes the part of those confused the most, rest folded."""
    how = ('Each row is a class, each column what its images were taken for: dark means a large '
           'share of the row. Classes that are confused lie side by side.')
    if len(classes) <= MOST:
        order = evaluate.confused_adjacent(counts)
        page.figure('confusion', f'The confusion matrix. {how} Numbers count images.',
                    matrix_figure(counts, order, classes),
                    alt=f'Confusion matrix of {len(classes)} classes.')
        return
    worst = evaluate.most_confused(counts, CONFUSED)
    if worst:
        order = [worst[place] for place in
                 evaluate.confused_adjacent(counts[worst][:, worst])]
        page.figure('confusion', f'The {len(worst)} of {len(classes)} classes with the most '
                    f'confused pairs. {how} Numbers count images; shares are of all images of a '
                    'class, also those taken for a class that is not shown.',
                    matrix_figure(counts, order, classes),
                    alt=f'Confusion matrix of the {len(worst)} most confused classes.')
    order = evaluate.confused_adjacent(counts)
    with page.folded(f'The confusion matrix of all {len(classes)} classes'):
        page.figure('confusion-all', f'All {len(classes)} classes. {how} Off the diagonal, '
                    'clusters of classes that look alike are blocks.',
                    matrix_figure(counts, order),
                    alt=f'Confusion matrix of all {len(classes)} classes, without their names.')


def matrix_figure(counts: Tensor, order: list[int], classes: Sequence[str] = ()):
    """The confusion matrix of these classes; shares are of all images of a class."""
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    return figures.matrix(shares[order][:, order].numpy(), counts[order][:, order].numpy(),
                          [classes[label] for label in order] if classes else ())


def add_pictures(page: Page, source: Source, measured: Measured, drawn: list[str]):
    """Misclassified images with the two likeliest classes, the most confident mistakes first."""
    wrong = predictions.mistakes(measured.target, measured.likeliest, measured.probabilities)
    if not wrong:
        return
    caption = ('Misclassified images as the network sees them, the most confident mistakes first: '
               'above each its class, below it the two classes that the network finds the '
               'likeliest, with their probabilities.')
    first, further = wrong[:FIRST], wrong[FIRST:FIRST + FURTHER]
    page.figure('mistakes', caption, figures.pictures(described(first, source, measured, drawn)),
                f'{len(first)} of {len(wrong)} misclassified images.')
    if further:
        with page.folded(f'{len(further)} more of {len(wrong)} misclassified images'):
            page.figure('mistakes-further', caption,
                        figures.pictures(described(further, source, measured, drawn)),
                        f'{len(further)} misclassified images.')


def described(numbers: list[int], source: Source, measured: Measured,
              drawn: list[str]) -> list[tuple]:
    """(pixels, class, [(likely class, its probability), …]) of these images."""
    items = []
    for number in numbers:
        seen = datasets.pixels(measured.images[number][0], source.spec)
        pixels = seen.permute(1, 2, 0).squeeze(2).numpy()
        guesses = zip(measured.likeliest[number, :2].tolist(),
                      measured.probabilities[number, :2].tolist())
        items.append((pixels, drawn[measured.target[number]],
                      [(drawn[label], share) for label, share in guesses]))
    return items
