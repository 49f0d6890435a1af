"""What the report says a network gets right and wrong, and which hybrids it suggests, against brute
force."""
import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.utils.data import Subset

import datasets
import models
from models.blocks import Sign, layer_set
from utils import binarize, style
from utils import evaluate as confusion
from utils.record import pictures as board_pictures
from utils.record.pictures import with_text
from utils.report import mistake_figures, mistakes, validation
from utils.report.page import Page
from utils.report.signs import BINARY, Costs, add_activations, multiply_adds, numbered_signs
from utils.training import predictions

DOODLE = torch.zeros(1, 20, 20)


@pytest.fixture(autouse=True)
def without_drawing(request, monkeypatch):
    """Figures are drawn for 2 and for 65 classes, which are of all kinds: it takes seconds."""
    callspec = getattr(request.node, 'callspec', None)
    if not callspec or callspec.params.get('classes') not in (2, 65):
        monkeypatch.setattr(Figure, 'savefig', lambda self, file, **_: file.write(b'<?xml'))


# The maths of predictions

@pytest.mark.parametrize('right, images', [(0, 7), (7, 7), (3, 7), (228, 325), (1, 1)])
def test_an_interval_is_where_the_score_test_does_not_reject(right, images):
    low, high = confusion.wilson_interval(right, images)
    shares = np.linspace(0, 1, 20001)
    inside = shares[np.abs(right / images - shares) <= 1.959964
                    * np.sqrt(shares * (1 - shares) / images)]
    assert (low, high) == pytest.approx((inside.min(), inside.max()), abs=1e-4)


def test_without_an_image_an_accuracy_may_be_anything():
    assert confusion.wilson_interval(0, 0) == (0, 1)


def test_the_most_confident_mistake_comes_first():
    target, likeliest = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([[0, 1], [0, 1], [1, 2], [2, 0],
                                                                     [1, 0]])
    probabilities = torch.tensor([[.9, .1], [.6, .4], [.8, .2], [.6, .3], [.99, .01]])
    assert predictions.mistakes(target, likeliest, probabilities) == [2, 1, 3]


def confused_in_blocks(blocks, size, seed=0):
    """Counts of classes of which the `size` of a block are confused, numbered at random; {class:
    block}."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(blocks * size, generator=generator)
    counts = torch.zeros(blocks * size, blocks * size, dtype=torch.int64)
    block_of = {int(label): place // size for place, label in enumerate(order)}
    for one, other in itertools.product(range(blocks * size), repeat=2):
        if block_of[one] == block_of[other]:
            counts[one,
                   other] = 9 if one == other else 1 + int(torch.randint(3, (),
                                                                         generator=generator))
    return counts, block_of


def test_confused_classes_lie_side_by_side():
    counts, block_of = confused_in_blocks(6, 4)
    order = confusion.confused_adjacent(counts)
    assert sorted(order) == list(range(24))
    assert [len(list(group)) for _, group in itertools.groupby(order, block_of.get)] == [4] * 6


def test_clusters_are_joined_at_their_most_confused_ends():
    chain = torch.zeros(5, 5, dtype=torch.int64)        # 3 - 0 - 4 - 1 - 2
    for strength, (one, other) in zip((9, 5, 8, 7), ((3, 0), (0, 4), (4, 1), (1, 2))):
        chain[one, other] = strength
    order = confusion.confused_adjacent(chain)
    assert order in ([3, 0, 4, 1, 2], [2, 1, 4, 0, 3])


@pytest.mark.parametrize('classes', [1, 2, 3])
def test_an_order_of_classes_that_are_not_confused(classes):
    assert sorted(confusion.confused_adjacent(torch.eye(classes,
                                                          dtype=torch.int64))) == list(
                                                              range(classes))


def test_the_most_confused_classes_are_whole_pairs():
    counts = torch.zeros(6, 6, dtype=torch.int64)
    counts[4, 1], counts[1, 0], counts[2, 3] = 9, 5, 7
    assert confusion.most_confused(counts, 4) == [1, 4, 2, 3]
    assert confusion.most_confused(counts, 3) == [1, 4]
    assert confusion.most_confused(counts, 9) == [1, 4, 2, 3, 0]


def test_what_a_class_is_taken_for():
    counts = torch.tensor([[4, 0, 2, 2, 5], [0] * 5, [0] * 5, [0] * 5, [0, 0, 0, 0, 1]])
    assert confusion.taken_for(counts, 0) == [(4, 5), (2, 2), (3, 2)]
    assert confusion.taken_for(counts, 4) == []


# The section

def a_run(classes, top1=50., images=100, crops=False):
    return SimpleNamespace(classes=[f'class {number}' for number in range(classes)],
                           spec=datasets.spec('doodles'),
                           flags={'dataset': 'doodles', 'tenCrop': crops},
                           checkpoint={'metrics': {'top1': top1, 'images': images}})


def taken_for(target, predicted, classes):
    """Measured, of images of class target[i] that are taken for predicted[i]."""
    likeliest = torch.stack([torch.tensor(predicted), (torch.tensor(predicted) + 1) % classes], 1)
    shares = torch.linspace(0.6, 0.9, len(target))
    return validation.Measured([(DOODLE, label) for label in target], torch.tensor(target),
                               likeliest,
                               torch.stack([shares, 1 - shares], 1), {'top5': 90.}, 'CPU, on bits')


def section(run, measured, all_images=None):
    page = Page('a network')
    mistakes.add_mistakes(page, run, measured, all_images or len(measured.target))
    return page


def all_parts(parts):
    for part in parts:
        yield part
        yield from all_parts(getattr(part, 'parts', []))


def rows_of(page, first):
    """The rows of the table whose header or first row begins with `first`."""
    for part in all_parts(page.parts):
        if part.kind == 'table' and (part.header[:1] or part.rows[0][:1])[0] == first:
            return part.rows
    raise AssertionError(f'no table begins with {first}')


def random_predictions(classes, images, seed=1):
    generator = torch.Generator().manual_seed(seed)
    target = [number % classes for number in range(images)]
    predicted = [label if torch.rand((), generator=generator) < 0.6 else
                 int(torch.randint(classes, (), generator=generator)) for label in target]
    return target, predicted


@pytest.mark.parametrize('classes', [2, 13, 40, 65, 250])
def test_pictures_and_tables_of_few_and_many_classes(classes):
    target, predicted = random_predictions(classes, 2 * classes + 30)
    page = section(a_run(classes), taken_for(target, predicted, classes))
    expected = {'classes.svg', 'confusion.svg',
                'mistakes.svg'} | ({'confusion-all.svg'} if classes > 60 else set())
    assert expected <= page.pictures.keys()
    assert all(picture.startswith(b'<?xml') for picture in page.pictures.values())
    per_class = rows_of(page, 'class')
    assert sorted(row[0] for row in per_class) == sorted(a_run(classes).classes)
    for name, images, right, share, *_ in per_class:
        number = int(name.split()[1])
        hits = [place for place, label in enumerate(target) if label == number == predicted[place]]
        assert (int(images), int(right)) == (target.count(number), len(hits))
        assert share == f'{100 * len(hits) / target.count(number):.2f} %'
    shares = [float(row[3].split()[0]) for row in per_class]
    assert shares == sorted(shares)
    for pair, both, images, share, there, back in rows_of(page, 'classes'):
        one, other = (int(word) for word in pair.replace('class ', '').split(' and '))
        confused = [(a, b) for a, b in zip(target, predicted) if {a, b} == {one, other}]
        assert (int(both), int(there)) == (len(confused), confused.count((one, other)))
        assert int(there) + int(back) == int(both)
        assert int(images) == target.count(one) + target.count(other)
        assert share == f'{100 * int(both) / int(images):.2f} %'
    assert page.html().count('<figure>') == len(page.pictures)


NAMES = ['猫', '犬', 'ねこ', 'गाय', 'кот', 'a\033b\n', '🐱🐶', 'ant', '龍' * 40, '龍' * 40 + '猫']


@pytest.mark.parametrize('has_font', [False, True])
@pytest.mark.parametrize('classes', [2])        # see without_drawing: figures are drawn
def test_names_in_any_script_are_drawn_without_warnings(monkeypatch, classes, has_font):
    """Matplotlib's font of boxes, which has all characters, stands for one that a machine may
    have."""
    allowed = style.DEFAULT_FONT, *(['Last Resort High-Efficiency'] if has_font else [])
    found = sorted(font_manager.fontManager.ttflist, key=lambda font: font.name)
    monkeypatch.setattr(style, 'fonts', lambda: [font for font in found if font.name in allowed])
    monkeypatch.setitem(style.matplotlib.rcParams, 'font.family', ['sans-serif'])
    run = a_run(len(NAMES))
    run.classes = NAMES
    with warnings.catch_warnings(action='error'):
        page = section(run, taken_for(*random_predictions(len(NAMES), 60), len(NAMES)))
        pictures = {with_text(Image.new('L', (9, 9)), [name]).tobytes()
                    for name in board_pictures.drawable(NAMES)}
    shown = list(map(mistake_figures.shortened, style.drawable(NAMES)))
    legend = [part.text for part in page.parts if part.kind == 'text'
              and part.text.startswith('No font')]
    assert shown[4:6] == ['кот', r'a\x1bb\n'] and shown[7] == 'ant'
    if has_font:
        assert shown[:4] == NAMES[:4] and legend == [] and shown[8] == '龍' * 8 + '…'
    else:       # by their numbers they can be told apart
        assert shown[:2] == [r'0: \u732b', r'1: \u72ac']
        assert len({*shown}) == len(pictures) == len(NAMES)
        assert '0: 猫, 1: 犬, 2: ねこ, 3: गाय, ' in legend[0]
    # HTML has them as they are
    assert sorted(row[0] for row in rows_of(page, 'class')) == sorted(NAMES)


def test_a_network_without_mistakes():
    page = section(a_run(3, 100., 6), taken_for([0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2], 3))
    assert 'No image is misclassified.' in page.html()
    assert 'mistakes.svg' not in page.pictures and 'confusion.svg' in page.pictures
    assert dict(rows_of(page, 'top-1 accuracy'))['top-1 accuracy'] == '100.00 %, 6 of 6 images'
    assert dict(rows_of(page, 'top-1 accuracy'))['recorded in training'].endswith('the same')


def test_many_classes_without_mistakes_have_no_part_of_the_matrix_that_is_confused():
    page = section(a_run(61), taken_for([*range(61)], [*range(61)], 61))
    assert 'confusion.svg' not in page.pictures and 'confusion-all.svg' in page.pictures


def test_a_class_without_images_and_a_network_that_knows_one_class():
    page = section(a_run(3), taken_for([0, 0, 1, 1], [0, 0, 0, 0], 3))
    by_class = {row[0]: row[1:] for row in rows_of(page, 'class')}
    assert by_class['class 2'] == ['0', '0', '–', '–', '']
    assert by_class['class 1'][4] == 'class 0 (2)'
    assert by_class['class 0'][:3] == ['2', '2', '100.00 %']
    assert rows_of(page, 'classes') == [['class 0 and class 1', '2', '4', '50.00 %', '0', '2']]
    assert 'mistakes.svg' in page.pictures and 'mistakes-further.svg' not in page.pictures


def test_the_accuracy_of_the_checkpoint_is_compared_with_what_is_measured():
    said = mistakes.recorded({'top1': 70., 'images': 100}, 70, 100, 100)
    assert said.endswith('the same')
    assert 'rounding on another device' in mistakes.recorded({'top1': 71., 'images': 100}, 70, 100,
                                                             100)
    assert '1 image more; rounding' in mistakes.recorded({'top1': 71., 'images': 100}, 70, 100, 100)
    assert 'may be others' in mistakes.recorded({'top1': 90., 'images': 100}, 70, 100, 100)
    assert '20 images fewer; more than' in mistakes.recorded({'top1': 50., 'images': 100}, 70, 100,
                                                             100)
    assert 'cannot be compared' in mistakes.recorded({'top1': 70., 'images': 90}, 70, 100, 100)
    assert 'within the interval' in mistakes.recorded({'top1': 72., 'images': 900}, 70, 100, 900)
    assert 'outside the interval' in mistakes.recorded({'top1': 99., 'images': 900}, 70, 100, 900)


def test_a_part_of_the_images_is_said_to_be_one():
    said = mistakes.what_was_measured(a_run(2, 50., 9), taken_for([0, 1], [0, 0], 2), 9)
    assert said.startswith(
        '2 of the 9 validation images of doodles, evenly spaced (--images), classified')
    said = mistakes.what_was_measured(a_run(2, crops=True), taken_for([0, 1], [0, 0], 2), 2)
    assert said.startswith(
        'All 2 validation images of doodles, ten crops of each, as in training, classified')


def test_images_are_classified_as_in_validation_with_ten_crops(doodle_network):
    model, ten_crops, _ = doodle_network
    assert validation.evenly_spaced(ten_crops, 6).indices == [0, 64, 129, 194, 259, 324]
    images = validation.evenly_spaced(ten_crops, 3)
    measured = validation.measure(model, {'amp': None, 'testbatchsize': 2}, images)
    for number, (crops, label) in enumerate(images):
        with torch.no_grad():
            probabilities = model(crops).mean(0).softmax(0)
        assert measured.target[number] == label
        assert torch.allclose(measured.probabilities[number], probabilities.topk(5).values,
                              atol=1e-5)
    assert measured.metrics['images'] == 3 and measured.images is images


@pytest.fixture(scope='module')
def doodle_network():
    """A network on signs, and the doodles in ten crops and in one."""
    torch.manual_seed(0)
    model = binarize.wrap(models.build('sketchanetfbin', 13, 1, 81), 2, 7, 'dab').eval()
    return model, datasets.load('doodles', '', 81,
                                tenCrop=True).val, datasets.load('doodles', '', 81).val


def test_the_center_is_the_crop_of_a_run_without_ten_crops(doodle_network):
    _, ten_crops, one_crop = doodle_network
    centers = validation.Centers(ten_crops)
    assert len(centers) == len(one_crop) and torch.equal(centers[5][0], one_crop[5][0])
    assert torch.equal(datasets.center(one_crop[5][0]), one_crop[5][0])
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3),
                                                                   dtype=np.uint8))
    ten, one = (datasets.transform('cifar10', 32, tenCrop=ten)(photograph) for ten in (True, False))
    assert torch.equal(datasets.center(ten), one)


@pytest.mark.parametrize('name', ['doodles', 'cifar10'])
def test_pixels_are_those_before_normalization(name):
    spec = datasets.spec(name)
    pixels = torch.rand(spec.channels, 5, 5)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    shown = datasets.pixels((pixels - mean) / std, spec)
    expected = 1 - pixels if spec.channels == 1 else pixels
    assert torch.allclose(shown, expected, atol=1e-6)


def test_long_names_are_shortened_below_pictures():
    assert mistake_figures.shortened('a' * 18) == 'a' * 18
    assert mistake_figures.shortened('a' * 19) == 'a' * 17 + '…'


@pytest.mark.parametrize('name',
                         ['W' * 30, r'\x1b]0;title\x07' * 3, '7: ' + r'\U0001f431' * 3, '$' * 30,
                          'ant'])
def test_texts_of_pictures_side_by_side_do_not_overlap(name):
    figure = mistake_figures.pictures([(np.zeros((2, 2)), name, [(name, 0.995), (name, 0.005)])]
                                      * 6)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in [part for ax in figure.axes for part in (ax.title, ax.xaxis.label)]:
        assert text.get_window_extent(renderer).width < (mistake_figures.SIDE
                                                         + mistake_figures.GAP) * figure.dpi
        assert text.get_text().replace('\\$',
                                       '$')[:3] == name[:3] and name == 'ant' or '…' in text.get_text()


def test_names_below_a_small_matrix_do_not_overlap():
    for names, rotation in (['a', 'b', 'cc'], 0), (['hedgehogs', 'porcupines', 'b'], 90):
        figure = mistake_figures.matrix(np.eye(3), np.eye(3, dtype=int), names)
        assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {rotation}


# Hybrids

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(6, 12, 3, groups=6, dilation=2)
        self.sign = Sign()
        self.last = nn.Conv2d(12, 5, (1, 3), padding='same')
        self.linear = nn.Linear(5, 7)

    def forward(self, x):
        x = self.last(self.sign(self.depthwise(self.first(x))))
        return self.linear(x.mean((2, 3)))


def test_multiply_adds_of_a_small_network_by_hand():
    counted = multiply_adds(Small(), torch.zeros(1, 15, 21))
    assert counted == {'first': 8 * 11 * 6 * 9, 'depthwise': 4 * 7 * 12 * 9,
                       'last': 4 * 7 * 5 * 12 * 3, 'linear': 35}


# visualizations/plot_speedups.py of the authors: millions, of wbin, hybrid, hybridv2 and fbin
PUBLISHED = {
    'alexnetfbin': (3, 224, 1000, [1135, 180, 143, 127]),
    'sketchanetfbin': (1, 225, 250, [608, 89, 82, 82])}


@pytest.mark.parametrize('name', PUBLISHED)
def test_equivalent_costs_are_the_published_ones(name):
    channels, side, classes, published = PUBLISHED[name]
    with torch.device('meta'):
        model = models.build(name, classes, channels, side).eval()
    counted = multiply_adds(model, torch.zeros(channels, side, side, device='meta'))
    by_number = {number: counted[conv] for number, conv, _ in binarize.convolutions(model)}
    for signs, millions in zip(('', '2-5', '2-6', '2-7'), published):
        binary = sum(by_number[number] for number in layer_set(signs))
        assert (sum(counted.values()) - binary
                + binary / BINARY) / 1e6 == pytest.approx(millions, abs=1)


def test_only_binarized_weights_with_binarized_inputs_are_cheap(doodle_network):
    model, *_ = doodle_network
    costs = Costs(model, torch.zeros(1, 81, 81))
    real, binary = costs.with_signs({2, 3, 8})      # the weights of 8 are real
    assert binary == costs.by_number[2] + costs.by_number[3]
    assert real + binary == costs.total == sum(costs.by_number.values())
    assert costs.with_signs(()) == (costs.total, 0)


@pytest.mark.parametrize('name', ['sketchanetfbin', 'resnetfbin18', 'googlenetfbin', 'nin'])
def test_sign_layers_have_the_numbers_of_their_convolutions(name):
    with torch.device('meta'):
        numbers = numbered_signs(models.build(name, 10))
    assert numbers and all(sign.endswith(f'sign{number}') for sign, number in numbers.items())


def test_sign_layers_with_other_names_have_numbers_too():
    assert numbered_signs(Small()) == {'sign': 3}


def test_the_suggestion_stands_beside_the_hybrids_of_the_family(doodle_network):
    model, _, one_crop = doodle_network
    page = Page('a network')
    add_activations(page, model, {'testbatchsize': 8, 'model_def': 'sketchanetfbin'},
                    Subset(one_crop, [0, 30, 60]))
    costs = Costs(model, one_crop[0][0])
    rows = {row[0]: row[1:] for row in rows_of(page, 'network')}
    assert list(rows) == ['sketchanetfbin, this one', 'suggested', 'sketchanethybrid',
                          'sketchanethybridv2', 'sketchanetwbin']
    for kept, signs, *numbers in rows.values():
        binarized = layer_set(signs.replace('none', ''))
        assert binarized | layer_set(kept.replace('none', '')) == {2, 3, 4, 5, 6, 7}
        real, binary = costs.with_signs(binarized)
        assert numbers == [f'{real / 1e6:,.1f}', f'{binary / 1e6:,.1f}',
                           f'{100 * binary / costs.total:.1f} %',
                           f'{(real + binary / 58) / 1e6:,.1f}']
    assert f'--signLayers={rows["suggested"][1]} …' in page.html()
    table = rows_of(page, 'input of')
    marked = {int(row[0].split()[1]) for row in table if row[-1]}
    assert marked == set(layer_set(rows['suggested'][0])) and len(marked) == 2
    assert [float(row[2]) for row in table] == sorted((float(row[2]) for row in table),
                                                      reverse=True)
    assert {int(row[0].split()[1]): row[4] for row in table} == {
        number: f'{costs.by_number[number] / 1e6:,.2f}' for number in range(2, 8)}
