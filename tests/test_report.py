"""The report on a network: its page, its numbers against independent ones, and what it refuses."""
import re
import shutil

import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import datasets
import main
import models
from models.blocks import layer_set, layer_string
from utils import binarize
from utils.evaluate import binarization_losses
from utils.record.progress import Progress
from utils.report import __main__ as report
from utils.report import layer_errors as measuring
from utils.report import responses
from utils.source import checkpoint_source

CPU = torch.device('cpu')


def train_briefly(folder, logs, name, *flags):
    """The last checkpoint of a run of one epoch on the sketches in `folder`."""
    main.main(['--dataset=tuberlin', f'--data_dir={folder}', f'--logdir={logs}', f'--name={name}',
               '--workers=0',
               '--batch-size=12', '--inpsize=81', '--epochs=1', f'--model_def={name}', *flags])
    return logs / name / 'last.pth.tar'


@pytest.fixture(scope='module')
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp('logs')


@pytest.fixture(scope='module')
def wbin(sketch_folder, logs):
    return train_briefly(sketch_folder, logs, 'sketchanetwbin', '--binaryWeight', '--binEnd=3',
                         '--epochs=2',
                         '--maxlr=0.01')


@pytest.fixture(scope='module')
def fbin(sketch_folder, logs):
    return train_briefly(sketch_folder, logs, 'sketchanetfbin', '--binaryWeight')


@pytest.fixture(scope='module')
def fbin_page(fbin, tmp_path_factory):
    out = tmp_path_factory.mktemp('report') / 'new' / 'folder'
    report.main([str(fbin), f'--out={out}', '--activations', '--images=10'])
    return out


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Only the pictures of fbin_page are drawn, which is made before: they take seconds."""
    monkeypatch.setattr(Figure, 'savefig', lambda self, file, **_: file.write(b'a picture'))


@pytest.fixture
def refused(capsys):
    """Runs report, expects one sentence and an exit code; returns the sentence."""
    def run(*arguments, code=2):
        with pytest.raises(SystemExit) as exit_:
            report.main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert exit_.value.code == code
        assert error.startswith('utils.report: error: ')
        assert error.count('\n') == 1
        assert 'Traceback' not in error
        return error
    return run


def cells(html, first):
    """The cells of every row of a table whose first cell is `first`."""
    rows = [re.findall(r'<td.*?>(.*?)</td>', row)
            for row in re.findall(r'<tr>.*?</tr>', html, re.DOTALL)]
    return [row[1:] for row in rows if row and row[0] == first]


def test_the_page_shows_what_lies_beside_it_and_nothing_else(fbin_page):
    html = (fbin_page / 'index.html').read_text()
    figures = re.findall(r'<figure>(.*?)</figure>', html, re.DOTALL)
    pictures = [re.search(r'<img src="([^"]+)"', figure)[1] for figure in figures]
    assert len(pictures) == html.count('<img') == len(set(pictures))
    assert {path.name for path in fbin_page.iterdir()} == {'index.html', *pictures}
    assert all(len(re.search(r'<figcaption>(.+)</figcaption>', figure)[1]) > 40
               for figure in figures)
    assert all((fbin_page / name).read_bytes().startswith(b'<?xml') for name in pictures)
    assert {f'weights-{number}.svg' for number in range(2, 8)} | {
        'spread.svg', 'errors.svg', 'filters.svg', 'input.svg', 'responses-2.svg',
        'responses-3.svg',
        'activations.svg'} <= set(pictures)
    assert 'The run has one epoch' in html
    assert not [name for name in pictures if name.startswith(('accuracy', 'training'))]
    assert not re.search(r'https?://|<script', html)


def best_errors(rows):
    """‖W − W~‖² of the best of all splits of each sorted row into two groups, in float64, by
    definition."""
    errors = []
    for row in rows.double().sort(1).values:
        errors.append(min((part_a.var(correction=0) * len(part_a) + part_b.var(correction=0)
                           * len(part_b)).item()
                          for part_a, part_b in ((row[:k], row[k:]) for k in range(1, len(row)))))
    return torch.tensor(errors, dtype=torch.float64)


def test_dab_never_loses_more_than_xnor_on_trained_filters(wbin, fbin):
    for path, numbers in ((wbin, [2, 3]), (fbin, [2, 3, 4, 5, 6, 7])):
        layers = measuring.measure_layers(report.binarized_network(checkpoint_source(path)))
        assert [layer.number for layer in layers] == numbers
        for layer in layers:
            assert layer.errors['dab'].dtype == torch.float64
            assert (layer.errors['dab'] <= layer.errors['xnor'] + 1e-12 * layer.norms).all()
            assert layer.worse_filters() == 0
            rows = layer.projected.flatten(1).double()
            naive = rows.abs().mean(1, keepdim=True)
            assert torch.allclose(layer.errors['xnor'], (rows.abs() - naive).square().sum(1),
                                  rtol=1e-9)
            assert torch.allclose(layer.errors['dab'][:4], best_errors(rows[:4]), rtol=1e-9)


def test_a_filter_on_which_dab_were_worse_would_be_counted():
    weight = torch.randn(3, 4, 3, 3)
    layer = measuring.Layer(2, 'conv2', 'dab', weight, weight, *binarize.split(weight),
                            weight.double().square().sum((1, 2, 3)),
                            {'dab': torch.tensor([1., 2, 3]).double(),
                             'xnor': torch.tensor([1., 1.5, 4]).double()})
    assert layer.worse_filters() == 1


def test_the_table_of_errors(fbin, fbin_page):
    html = (fbin_page / 'index.html').read_text()
    latent = checkpoint_source(
        fbin).checkpoint['model']['features.conv3.parametrizations.weight.original'].double()
    projected = (latent - latent.mean(1, keepdim=True)).clamp(-1, 1)
    (name, filters, n, _, dab, xnor, bnn, adabin, ratio, worse), = [row
                                                                    for row in cells(html, '3')
                                                                    if len(row) == 10]
    assert (name, filters, n, worse) == ('features.conv3', '256', '1152', '0')
    total = projected.square().sum().item()
    assert float(bnn.replace(',',
                             '')) == pytest.approx((projected
                                                    - projected.sign(
                                                        )).square().sum().item() / total, rel=1e-3)
    assert 0 < float(dab) <= float(xnor) <= float(adabin)
    assert float(ratio) == pytest.approx(float(dab) / float(xnor), abs=2e-3)
    assert '0 of 1920 filters' in html


def test_the_measures_of_sign_layers(fbin, fbin_page, sketch_folder):
    html = (fbin_page / 'index.html').read_text()
    model = report.binarized_network(checkpoint_source(fbin))
    images = datasets.load('tuberlin', str(sketch_folder), 81).val
    chosen = torch.utils.data.Subset(images, [0, 1, 2, 3, 4, 6, 7, 8, 9, 11])
    losses = binarization_losses(model, loader := DataLoader(chosen, 32), CPU,
                                 Progress('', len(loader)))
    assert len(losses) == 6
    for name, values in losses.items():
        shown, = cells(html, f'convolution {name[-1]}')
        assert [float(value) for value in shown[:3]] == pytest.approx(values, abs=6e-5)
    order = sorted(losses, key=lambda name: losses[name][1], reverse=True)
    places = [re.search(rf'<td>convolution {name[-1]}</td>\s*<td class="number">0', html).start()
              for name in order]
    assert places == sorted(places)
    kept = {int(name[-1]) for name in order[:2]}
    by_error = [cells(html, f'convolution {name[-1]}')[0][-1] for name in order]
    assert by_error == ['✓'] * 2 + [''] * 4
    assert f'--signLayers={layer_string({2, 3, 4, 5, 6, 7} - kept)} ' in html
    assert cells(html, 'sketchanethybrid')[0][:2] == ['6-7', '2-5']
    assert cells(html, 'sketchanethybridv2')


def test_the_responses_are_those_of_the_convolution(wbin):
    model = report.binarized_network(checkpoint_source(wbin))
    image = torch.randn(1, 81, 81)
    conv = model.get_submodule('features.conv2')
    x = responses.layer_inputs(model, ['features.conv2'], image)['features.conv2']
    expected = {}
    conv.register_forward_hook(lambda _, inputs, output: expected.update(x=inputs[0], y=output))
    with torch.no_grad():
        model(image[None])
    assert torch.equal(x, expected['x']) and not conv._forward_pre_hooks
    layer = measuring.measure_layers(model)[0]
    y = responses.respond(conv, x, measuring.two_valued(layer.projected, 'dab'))
    assert torch.allclose(y, expected['y'][0], rtol=1e-4, atol=1e-5)


class Halves(binarize.Method):
    """A method of one's own: nothing but its class says what the report shows of it."""

    title = 'binarization to half of the largest weight'
    formula = 'α = max |W|/2 of the filter, β = −α'
    style = dict(color='#aa3377', linestyle='-.', marker='*')

    @staticmethod
    def split(rows):
        alpha = rows.abs().amax(1, keepdim=True) / 2
        return alpha, -alpha, rows >= 0

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


@pytest.mark.parametrize('binarizer, flag, suffix',
                         [('xnor', '--centring', ''), ('halves', '--no-centring', ', not centred')])
def test_a_page_describes_the_method_of_its_network_and_all_others(sketch_folder, tmp_path,
                                                                   monkeypatch, binarizer, flag,
                                                                   suffix):
    monkeypatch.setitem(binarize.METHODS, 'halves', Halves)
    checkpoint = train_briefly(sketch_folder, tmp_path, 'sketchanetwbin', '--binaryWeight',
                               '--binEnd=2',
                               f'--binarizer={binarizer}', flag)
    report.main([str(checkpoint), f'--out={tmp_path}/report'])
    html = (tmp_path / 'report/index.html').read_text()
    about_the_network, rest = html.split('>The weights and their two values</h2>')
    method = binarize.METHODS[binarizer]
    assert f'trained with {method.title}: {method.formula}.' in about_the_network
    assert cells(about_the_network, 'binarizer') == [[f'{binarizer}{suffix}, convolutions 2 to 2']]
    assert ('centred over the input channels' in about_the_network) == (flag == '--centring')
    for name, other in binarize.METHODS.items():
        assert cells(rest, name) == [[other.title, other.formula]]
    # its row among the methods
    assert html.lower().count('distribution-aware') == html.count('DAB') == 1


def test_a_method_of_ones_own_has_its_own_style_in_plots(monkeypatch):
    monkeypatch.setitem(binarize.METHODS, 'halves', Halves)
    plot = measuring.errors_figure([2, 3], {method: [0.2, 0.3] for method in binarize.METHODS})
    lines = {line.get_label(): line for line in plot.axes[0].lines}
    assert (lines['halves'].get_color(), lines['halves'].get_marker()) == ('#aa3377', '*')
    assert len({line.get_color() for line in lines.values()}) == len(binarize.METHODS) == 5


def test_a_moved_checkpoint_without_data_gets_a_page_that_says_what_is_missing(sketch_folder, logs,
                                                                               tmp_path, refused):
    hybrid = train_briefly(sketch_folder, logs, 'sketchanethybrid', '--binaryWeight', '--binEnd=2')
    stored = checkpoint_source(hybrid).checkpoint
    stored['flags']['data_dir'] = '/nowhere'
    stored['flags'].pop('signLayers', None)     # as in checkpoints older than this flag
    torch.save(stored, tmp_path / 'moved.pth.tar')
    report.main([f'{tmp_path}/moved.pth.tar'])
    html = (tmp_path / 'report/index.html').read_text()
    for sentence in ('no metrics.jsonl beside', 'no weights.jsonl of this network',
                     'A doodle that the program drew',
                     'the validation images are missing (--data_dir: there is no folder /nowhere)'):
        assert sentence in html
    assert not (tmp_path / 'report/activations.svg').exists()
    assert not (tmp_path / 'report/accuracy.svg').exists()
    assert '/nowhere' in refused(tmp_path / 'moved.pth.tar', f'--out={tmp_path}/other',
                                 '--activations')
    assert '/elsewhere' in refused(tmp_path / 'moved.pth.tar', f'--out={tmp_path}/other',
                                   '--data_dir=/elsewhere')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['moved.pth.tar', 'report']


def test_nothing_is_overwritten_silently(wbin, sketch_folder, tmp_path, refused):
    out = tmp_path / 'mine'
    out.mkdir()
    (out / 'thesis.txt').write_text('months of work')
    for flags in ([], ['--overwrite']):
        assert 'other files' in refused(wbin, f'--out={out}', *flags)
    assert 'is a file' in refused(wbin, f'--out={out}/thesis.txt')
    out = tmp_path / 'report'
    report.main([str(wbin), f'--out={out}', f'--image={sketch_folder}/val/ring/0.png'])
    html = (out / 'index.html').read_text()
    assert 'The image ' in html and 'val/ring/0.png' in html and 'activations.svg' not in html
    (out / 'notes.txt').write_text('seen')
    (out / 'weights-2.svg').write_bytes(b'old')
    assert '--overwrite' in refused(wbin, f'--out={out}')
    assert (out / 'weights-2.svg').read_bytes() == b'old'
    report.main([str(wbin), f'--out={out}', '--overwrite'])
    assert (out / 'weights-2.svg').read_bytes() != b'old'
    assert (out / 'notes.txt').read_text() == 'seen'
    assert 'The first validation image of tuberlin (bar)' in (out / 'index.html').read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['mine', 'report']


def test_bad_input(wbin, sketch_folder, logs, tmp_path, refused):
    assert '/nowhere' in refused('/nowhere')
    (tmp_path / 'text').write_text('no checkpoint')
    assert 'text' in refused(tmp_path / 'text')
    real = train_briefly(sketch_folder, logs, 'sketchanet')
    assert 'real weights' in refused(real)
    assert 'sketchanetwbin has no sign layers' in refused(wbin, '--activations')
    assert '--images' in refused(wbin, '--images=0')
    assert 'text' in refused(wbin, f'--image={tmp_path}/text')
    assert '--imagees' in refused(wbin, '--imagees=3')
    shutil.copy(wbin, tmp_path / 'copy.pth.tar')
    (tmp_path / 'weights.jsonl').write_text('{"epoch": 0}\n')
    assert 'weights.jsonl is damaged' in refused(tmp_path / 'copy.pth.tar', code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['copy.pth.tar', 'text',
                                                                'weights.jsonl']


def test_sign_layers_and_the_notation_of_layers():
    assert {name: layer_string(models.sign_layers(name))
            for name in models.family('sketchanetwbin')} == {
        'sketchanet': '', 'sketchanetwbin': '', 'sketchanetfbin': '2-7', 'sketchanethybrid': '2-5',
        'sketchanethybridv2': '2-6'}
    assert models.sign_layers('densenet') == frozenset()
    for text in ('', '4', '2-5,7', '2,4-8,11-13'):
        assert layer_string(layer_set(text)) == text
