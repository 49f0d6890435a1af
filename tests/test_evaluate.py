"""The output of --evaluate against counts made image by image."""
import csv

import pytest
import torch

import datasets
import main
from utils import evaluate, experiment
from utils.evaluate import class_table, pair_table
from utils.training.checkpoint import read_checkpoint
from utils.evaluate import confusion
from utils.training.predictions import Predictions, interleaved


@pytest.fixture(scope='module')
def run(sketch_folder, tmp_path_factory):
    logs = tmp_path_factory.mktemp('logs')
    main.main(['--dataset=tuberlin', f'--data_dir={sketch_folder}', '--model_def=sketchanetwbin',
               '--inpsize=81', '--epochs=1',
               '--binaryWeight', '--binEnd=2', '--batch-size=18', '--workers=0', f'--logdir={logs}',
               '--name=run'])
    return logs / 'run'


def evaluated(run, capsys, *flags):
    capsys.readouterr()
    main.main([f'--resume={run}/last.pth.tar', '--evaluate', *flags])
    return capsys.readouterr().out


@pytest.mark.parametrize('crops', [[], ['--tenCrop']])
def test_tables_and_file_against_every_image(run, sketch_folder, tmp_path, capsys, crops):
    file = tmp_path / 'predictions.csv'
    out = evaluated(run, capsys, f'--predictions={file}', *crops)
    model, flags = experiment.load(
        run / 'last.pth.tar').network, read_checkpoint(run / 'last.pth.tar')['flags']
    transform = datasets.transform('tuberlin', 81, tenCrop=bool(crops))
    paths = sorted((sketch_folder / 'val').glob('*/*.png'))
    classes = ['bar', 'box', 'ring']
    expected, right = [], dict.fromkeys(classes, 0)
    with torch.no_grad():
        for path in paths:
            images = transform(datasets.read_image(path, 1))
            log_probs = model(images if crops else images[None]).mean(0)
            order = log_probs.sort(descending=True)
            probabilities = log_probs.softmax(0)[order.indices]
            expected.append((str(path), path.parent.name,
                             [classes[label] for label in order.indices], probabilities))
            right[path.parent.name] += classes[order.indices[0]] == path.parent.name
    header, *rows = csv.reader(open(file))
    assert header == ['image', 'class', 'class1', 'probability1', 'class2', 'probability2',
                      'class3', 'probability3']
    found = {row[0]: row for row in rows}
    assert len(rows) == len(found) == 12
    for path, label, order, probabilities in expected:
        assert found[path][1] == label and found[path][2::2] == order
        torch.testing.assert_close(torch.tensor([float(share) for share in found[path][3::2]]),
                                   probabilities, rtol=0, atol=1e-5)
    lines = out.splitlines()
    assert lines[0] == f'network: sketchanetwbin, {run}/last.pth.tar, after epoch 1'
    assert lines[1] == f'data: tuberlin, 12 images of val{", ten crops each" if crops else ""}, 3 classes'
    assert 'device: CPU' in lines[2]
    for name in classes:
        line, = (line.split() for line in lines if line.startswith(f'{name} '))
        assert line[1:3] == ['4', f'{25 * right[name]:.2f}']
    assert f'accuracy {sum(right.values())}/12' in out
    assert flags['predictions'] is None


def test_a_file_that_exists_is_kept(run, tmp_path, capsys):
    file = tmp_path / 'predictions.csv'
    file.write_text('mine')
    with pytest.raises(SystemExit):
        evaluated(run, capsys, f'--predictions={file}')
    error = capsys.readouterr().err
    assert error.startswith('main.py: error: --predictions: ')
    assert 'exists already' in error
    assert file.read_text() == 'mine'
    evaluated(run, capsys, f'--predictions={file}', '--overwrite', '--split=train')
    assert len(file.read_text().splitlines()) == 37
    for flags, part in (['--predictions='], 'empty'), ([f'--predictions={tmp_path}/no/x.csv'],
                                                       'no/x.csv'):
        with pytest.raises(SystemExit):
            evaluated(run, capsys, *flags)
        assert part in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(['--predictions=x.csv'])
    assert '--predictions goes with --evaluate' in capsys.readouterr().err


def test_doodles_are_numbered(tmp_path):
    data = datasets.load('doodles', '', 81)
    assert datasets.image_names(data.val)[:3] == ['0', '1', '2']
    assert len(datasets.image_names(data.val)) == len(data.val)


def test_broken_images_have_no_row(run, sketch_folder, tmp_path, capsys):
    import shutil
    shutil.copytree(sketch_folder, tmp_path / 'data')
    (tmp_path / 'data/val/box/0.png').write_bytes(b'broken')
    file = tmp_path / 'predictions.csv'
    evaluated(run, capsys, f'--data_dir={tmp_path}/data', '--skipBroken', f'--predictions={file}')
    rows = list(csv.DictReader(open(file)))
    assert len(rows) == 11 and all(row['image'].split('/')[-2] == row['class'] for row in rows)
    assert 'box/0.png' not in file.read_text()


def test_tables():
    names = [f'class{number}' for number in range(30)]
    target = torch.arange(30).repeat(4)
    predicted = target.clone()
    predicted[[3, 33]] = 5      # two of class3 taken for class5
    predicted[[35]] = 3
    predicted[7] = 8
    counts = confusion(target, predicted, 30)
    assert counts.sum() == 120 and counts[3, 5] == 2 and counts[5, 3] == 1 and counts[3, 3] == 2
    lines = class_table(counts, names, every=False).splitlines()
    assert len(lines) == 1 + evaluate.SHOWN + 1 and '20 more' in lines[-1]
    assert lines[1].split() == ['class3', '4', '50.00', 'class5', '(2)']
    assert lines[2].split() == ['class5', '4', '75.00', 'class3', '(1)']
    assert len(class_table(counts, names, every=True).splitlines()) == 31
    pairs = pair_table(counts, names, every=False).splitlines()
    assert pairs[1:] == ['     3  class3 and class5: 2 class3 taken for class5, 1 the other way',
                         '     1  class7 and class8: 1 class7 taken for class8, 0 the other way']
    assert pair_table(torch.eye(3).long(), names[:3], False) == 'no two classes are confused'
    assert '–' in class_table(torch.diag(torch.tensor([1, 0])), ['seen', 'absent'], False)


def test_a_process_without_an_image(monkeypatch):
    found = Predictions()
    found.observe(torch.tensor([[0., 1], [2, 0]]).log_softmax(1), torch.tensor([1, 1]))
    monkeypatch.setattr(evaluate.parallel, 'gather',
                        lambda own: [tuple(part[:1] for part in own),
                                     tuple(part[1:] for part in own), ()])
    target, likeliest, _ = found.gather()
    assert target.tolist() == [1, 1] and likeliest[:, 0].tolist() == [1, 0]


def test_shares_of_processes_are_put_in_order():
    whole = torch.arange(14).view(7, 2)
    assert torch.equal(interleaved([whole[rank::3] for rank in range(3)]), whole)
