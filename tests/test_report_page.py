"""The page of a report: its parts and pictures, its summary against independent numbers, deep and
short runs."""
import io
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import datasets
import models
from utils import binarize, packed, style
from utils.report import curves, layer_errors, mistake_figures, network, responses, weights, words
from utils.report.layer_errors import measure_layers
from utils.report.page import Page
from utils.source import Source


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(Figure, 'savefig', lambda self, file, **_: file.write(b'a picture'))


def plot():
    figure = Figure(figsize=(5, 2))
    figure.subplots()
    return figure


def test_parts_of_a_page(tmp_path):
    page = Page('On <weights>')
    page.text('before the contents')
    page.heading('First & last')
    with page.folded('details'):
        page.table(['name', 'n', 'share', 'layers'],
                   [('a<b', 7, '50.00 %', '2,7'), ('c', '1,152', '–', '2-5')])
        with page.folded('more'):
            page.block('inside')
    page.figure('plot', 'what is plotted', plot(), alt='3 to 4')
    page.figure('other', 'the caption', plot())
    html = page.save(tmp_path).read_text()
    assert '<meta name="viewport" content="width=device-width' in html
    assert 'prefers-color-scheme: dark' in html
    assert html.index(
        'before the contents') < html.index(
            '<nav') < html.index('<h2 id="first-last">First &amp; last</h2>')
    assert '<a href="#first-last">' in html and '<weights>' not in html and 'a&lt;b' in html
    outer = re.search(r'<details><summary>details</summary>(.*)</details>\s*<figure>', html,
                      re.DOTALL)[1]
    assert re.search(r'<summary>more</summary>\s*<pre>inside</pre>\s*</details>', outer)
    assert re.findall(r'<t[hd] class="number">(.*?)<', outer) == ['n', 'share', '7', '50.00 %',
                                                                  '1,152', '–']
    assert '<img src="plot.svg" alt="3 to 4"\nwidth="480" height="192"' in html
    assert 'alt="the caption"' in html
    assert html.count('class="scroll"') == 3        # tables and pictures scroll by themselves


def test_the_same_numbers_give_the_same_file(tmp_path, monkeypatch):
    monkeypatch.undo()
    for folder in 'ab':
        page = Page('')
        page.figure('plot', 'caption', plot())
        page.save(tmp_path / folder)
    texts = [(tmp_path / folder / 'plot.svg').read_text() for folder in 'ab']
    assert texts[0] == texts[1] and '<svg' in texts[0] and 'dc:date' not in texts[0]


def test_pictures_of_earlier_reports_go_and_nothing_else(tmp_path):
    out = tmp_path / 'report'
    page = Page('')
    page.figure('plot', 'caption', plot())
    page.save(out)
    (out / 'weights-2.png').write_bytes(b'of an older version')
    (out / 'notes.png').write_bytes(b'mine')
    (tmp_path / 'thesis.png').write_bytes(b'mine too')
    index = out / 'index.html'
    index.write_text(index.read_text()
                     + '<img src="weights-2.png"><img src="../thesis.png"><img src="index.html">')
    Page('').save(out)
    assert sorted(path.name for path in out.iterdir()) == ['index.html', 'notes.png']
    assert (tmp_path / 'thesis.png').exists()


def test_a_report_that_cannot_be_finished_leaves_the_earlier_one(tmp_path, monkeypatch):
    page = Page('first')
    page.figure('curve', 'a curve', plot())
    page.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Page, 'html', lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Page('second').save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_of_classes_are_shown_as_they_are():
    names = ['$\\frac$', '$x$', 'x' * 300, '\udcff']
    counts = np.eye(4)
    figure = mistake_figures.matrix(counts, counts.astype(int), style.drawable(names))
    figure.savefig(io.BytesIO(), format='svg')
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == r'\$\frac\$' and len(labels[2]) == 18 and labels[3] == '\\udcff'
    page = Page('x\udcff')
    assert '<title>x\\udcff</title>' in page.html()


def test_what_is_not_printable_is_escaped_on_a_page():
    name, page = '\033]0;title\07a\0b\u202e', Page('x\033y')
    page.heading(name)
    page.text(f'9 % of {name}')
    page.block(f'one\n{name}')
    page.tiles([(name, name, name)])
    page.table(['class'], [[name]])
    page.figure('picture', name, Figure(), alt=name)
    with page.folded(name):
        page.text('')
    html = page.html()
    assert all(line.replace('\u00a0', '').isprintable() for line in html.split('\n'))
    assert '<title>x\\x1by</title>' in html
    assert html.count(r'\x1b]0;title\x07a\x00b\u202e') == 11
    assert '9\u00a0% of' in html
    assert '&amp;lt;' not in html


def test_numbers_in_words():
    assert [words.number(value)
            for value in (0.12345, -0.5, 123.4, 12345.6)] == ['0.123', '−0.5', '123', '12,346']
    assert words.extremes([2, 5, 9], [3., 1., 2.]) == '1 (convolution 5) to 3 (convolution 2)'
    assert words.trend([1, 2, 3], [10., 30., 20.]) == 'from 10 in epoch 1 to 20 in epoch 3'


def test_the_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(network, 'seconds_an_image', lambda *_: 0.0123)
    model = binarize.wrap(models.build('bincifar', 3, 1, 32), 2, 5).eval()
    flags = dict(name='run', model_def='bincifar', signLayers=None, inpsize=32, dataset='tuberlin',
                 tenCrop=True, binarizer='dab',
                 channels=None, mean=None, std=None, ink='dark', minCrop=0.08)
    source = Source(str(tmp_path / 'best.pth.tar'), flags, ['bar', 'box', 'ring'], 1, checkpoint={
        'epoch': 1, 'metrics': {'top1': 75., 'top5': 100., 'images': 12}})
    (tmp_path / 'history.jsonl').write_text('{"date": "2026-11-25T01:02:03+00:00"}\n{"date": "2026-11-26T01:02:03+00:00"}\n')
    page = Page('')
    network.add_summary(page, source, model)
    sentence, (accuracy, bits, size, speed) = page.parts[0].text, page.parts[1].tiles
    assert 'trained for 1 epoch on tuberlin (3 classes) with distribution-aware binarization' in sentence
    assert 'Run: run, last started on 2026-11-26; checkpoint: best.pth.tar' in sentence
    assert accuracy[0] == '75.0\xa0%'
    assert 'interval 46.8 to 91.1\xa0% (Wilson) on 12 validation images, ten crops each' in accuracy[2]
    assert 'chance: 33.3\xa0%' in accuracy[2]
    assert 'optimistic' in accuracy[2]
    assert 'top-5' not in accuracy[2]
    packed.write(tmp_path / 'model.dab', packed.Description('bincifar', None, source.classes, 32, *(
        list(values) for values in datasets.normalization('tuberlin')), 'tuberlin', True),
                 packed.pack(model))
    in_file = (tmp_path / 'model.dab').stat().st_size
    numbers = sum(value.numel()
                  for value in binarize.bake(model).state_dict().values()
                  if value.dtype == torch.float32)
    assert size[0] == f'{in_file / 1e6:.3g} MB' and f'{4 * numbers / in_file:.1f} times' in size[2]
    count, of_bits = binarize.weight_bits(model)
    assert bits[0] == f'{of_bits / count:.2f} bits' and f'{count:,} of {numbers:,}' in bits[2]
    assert speed[:2] == ('12.3 ms', 'an image, in float32')


def test_speed_is_a_median_within_its_time(monkeypatch):
    model, calls = nn.Identity(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert 0 < network.seconds_an_image(model, torch.zeros(1)) < 0.1
    assert len(calls) == 1 + network.IMAGES[1]
    monkeypatch.setattr(network, 'TIMED', 0)
    network.seconds_an_image(model, torch.zeros(1))
    assert len(calls) == 2 + sum(network.IMAGES)


class Fixed(binarize.Method):
    """A learned value that is not its initial one."""

    title, formula = 'a learned scale', 'α = −β = a learned number'
    style = dict(color='#aa3377', linestyle='-.', marker='*')

    def __init__(self, weight):
        super().__init__(weight)
        self.scale = nn.Parameter(torch.ones(1))

    def split(self, rows):
        alpha = self.scale.expand(len(rows), 1).to(rows)
        return alpha, -alpha, rows >= 0

    def gradient_factor(self, inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


def layers_of(count, method='dab', scale=0.02):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(count + 1)))
    with torch.no_grad():
        for conv in model:
            conv.weight.copy_(0.02 * torch.randn_like(conv.weight))
    binarize.wrap(model, 2, count + 1, method)
    if method == 'fixed':
        for conv in model[1:]:
            binarize.binarization(conv).method.scale.data.fill_(scale)
    return model.eval()


def test_a_method_of_ones_own_is_in_every_panel(monkeypatch):
    monkeypatch.setitem(binarize.METHODS, 'fixed', Fixed)
    model = layers_of(2, 'fixed')
    layers = measure_layers(model)
    drawn = {}
    monkeypatch.setattr(responses, 'maps_figure', lambda channels, maps,
                        alone: drawn.update(maps=maps, alone=alone) or plot())
    monkeypatch.setattr(layer_errors, 'error_pairs', lambda dab, others: drawn.update(others=others)
                        or plot())
    page = Page('')
    x = torch.randn(1, 4, 8, 8)
    responses.add_layer(page, layers[0], model[1], x)
    layer_errors.add_errors(page, layers, 'fixed')
    own = next(title for title in drawn['maps'] if title.startswith('fixed weights'))
    assert [title.split()[0] for title in drawn['maps']] == ['real', 'fixed', 'dab', 'xnor']
    assert not drawn['alone']
    # not with the initial scale of 1
    expected = responses.respond(model[1], x, model[1].weight.detach())
    assert any(torch.allclose(torch.tensor(drawn['maps'][own][0]), channel, atol=1e-6)
               for channel in expected)
    table = next(part for part in page.parts if part.kind == 'table'
                 and 'dab / xnor' in part.header)
    difference = layers[0].projected - model[1].weight.detach()
    error = (difference.square().sum() / layers[0].projected.square().sum()).item()
    assert float(table.rows[0][table.header.index('fixed')]) == pytest.approx(error, abs=1e-4)
    assert list(drawn['others']) == ['xnor', 'fixed'] and len(drawn['others']['fixed']) == 8
    monkeypatch.setattr(responses, 'maps_figure', lambda channels, maps,
                        alone: drawn.update(alone=alone) or plot())
    model = layers_of(1, 'fixed', scale=1)
    responses.add_layer(page, measure_layers(model)[0], model[1], x)
    assert len(drawn['alone']) == 1 and 'their own' in page.parts[-1].caption


def test_errors_are_drawn_on_a_scale_on_which_they_differ():
    relative = {'dab': [0.3, 0.4], 'xnor': [0.303, 0.408], 'bnn': [150., 900.],
                'adabin': [0.36, 0.5]}
    above, below = layer_errors.errors_figure([2, 3], relative).axes
    assert [line.get_label() for line in above.lines] == ['dab', 'xnor', 'adabin']
    assert [line.get_label() for line in below.lines] == ['dab', 'xnor']
    assert 0.5 < above.get_ylim()[1] < 0.7 and below.get_ylim()[1] < 3
    assert below.lines[1].get_ydata() == pytest.approx([1, 2])
    assert above.get_title('right') == 'beyond this axis: bnn (150 to 900)'


def test_a_deep_network_is_summarized(monkeypatch):
    monkeypatch.setattr(weights, 'histograms', lambda filters: plot())
    layers = measure_layers(layers_of(20))
    page = Page('')
    weights.add_weights(page, layers)
    layer_errors.add_errors(page, layers, 'dab')
    shown = [part for part in page.parts if part.kind == 'figure']
    assert [part.file for part in shown] == ['spread.svg', 'weights-2.svg', 'weights-12.svg',
                                             'weights-21.svg',
                                             'errors.svg', 'filters.svg']
    histograms, table = (part for part in page.parts if part.kind == 'folded')
    assert [part.file for part in histograms.parts] == [f'weights-{n}.svg'
                                                        for n in range(3, 21) if n != 12]
    assert [len(part.rows) for part in table.parts] == [20]
    assert shown[1].caption.startswith('Convolution 2 (1): ')
    medians = [layer.alpha.median().item() for layer in layers]
    assert f'α {min(medians):.3g} (convolution {layers[medians.index(min(medians))].number})' in shown[0].alt


@pytest.mark.parametrize('epochs', [1, 3])
def test_curves_of_several_epochs_and_a_table_of_one(tmp_path, epochs):
    layers = measure_layers(layers_of(2))
    for name, rows in {
            'metrics': [dict(split=split, top1=10. + epoch, top5=50.) for epoch in range(epochs)
                        for split in ('train', 'val')],
            'weights': [dict(layer=layer.name, alpha=0.1, beta=-0.1, K_over_n=0.5,
                             relative_error=0.3 + 0.1 * epoch, flip_ratio=0.)
                        for epoch in range(epochs) for layer in layers]}.items():
        of_epoch = len(rows) // epochs
        (tmp_path / f'{name}.jsonl').write_text(''.join(
            json.dumps({'epoch': place // of_epoch, **row}) + '\n'
            for place, row in enumerate(rows)))
    page = Page('')
    curves.add_curves(page, layers, tmp_path, epochs)
    kinds = [part.kind for part in page.parts]
    if epochs == 1:
        assert kinds == ['text', 'table', 'text', 'table']
        assert page.parts[1].rows == [['training', '10.00', '50.00'],
                                      ['validation', '10.00', '50.00']]
        assert page.parts[3].rows[0] == ['2', '1', '0.1000', '−0.1000', '0.5000', '0.3000',
                                         '0.0000']
    else:
        assert kinds == ['figure', 'figure', 'folded'] and len(page.parts[2].parts) == 4
        assert 'top-1 of validation goes from 10 in epoch 1 to 12 in epoch 3, the highest is 12 in epoch 3' in page.parts[0].alt
        assert 'Relative error: after the first epoch 0.3 (convolution 2), after the last 0.5' in page.parts[1].alt


@pytest.mark.parametrize(['side', 'inches'], [(4, 0.5), (8, 0.8), (31, 1.9)])
def test_maps_are_drawn_in_proportion_to_their_size(side, inches):
    maps = torch.randn(4, side, side).numpy()
    figure = responses.maps_figure([3, 1, 4, 2], {'real': maps, 'dab': maps}, set())
    width, height = figure.get_size_inches()
    assert len(figure.axes) == 8
    for ax in figure.axes:
        assert (ax.get_position().width * width,
                ax.get_position().height * height) == pytest.approx((inches, inches))
        assert 0 <= ax.get_position().x0 and ax.get_position().x1 <= 1 and 0 <= ax.get_position().y0
