"""The program as its user runs it: training, resuming, evaluating, and every kind of bad input."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from PIL import ExifTags, Image

import main
from utils import experiment
from utils.training.checkpoint import read_checkpoint

SMALL = ['--dataset=tuberlin', '--nClasses=3', '--workers=0', '--batch-size=12',
         '--model_def=smallwbin',
         '--inpsize=32', '--binaryWeight', '--optimType=adam', '--maxlr=0.001', '--minlr=0.0001',
         '--decayinterval=1']


@pytest.fixture
def train(sketch_folder, tmp_path):
    """Runs main with SMALL and more flags; the runs are in tmp_path/logs."""
    def run(*flags):
        main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}/logs', *flags])
    return run


@pytest.fixture
def refused(train, capsys):
    """Runs main, expects exit code `code` and one sentence; returns the sentence."""
    def run(*flags, code=2, by=train):
        with pytest.raises(SystemExit) as exit_:
            by(*flags)
        error = capsys.readouterr().err
        assert exit_.value.code == code
        assert error.startswith('main.py: error: ')
        assert error.count('\n') == 1
        assert 'Traceback' not in error
        return error
    return run


@pytest.fixture(scope='module')
def trained(sketch_folder, tmp_path_factory):
    """The folder of a run of two epochs."""
    logs = tmp_path_factory.mktemp('trained')
    main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run',
               '--epochs=2', '--tenCrop'])
    return logs / 'run'


@pytest.fixture(scope='module')
def trained_once(sketch_folder, tmp_path_factory):
    """The folder of a run of one epoch; copy it before you change it."""
    logs = tmp_path_factory.mktemp('trained once')
    main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run',
               '--epochs=1'])
    return logs / 'run'


@pytest.fixture
def one_epoch(trained_once, tmp_path):
    """A run of one epoch, as train('--name=run', '--epochs=1') leaves it."""
    return shutil.copytree(trained_once, tmp_path / 'logs/run')


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_published_command(sketch_folder, tmp_path):
    command = (
        f"bash clean.sh; CUDA_VISIBLE_DEVICES=0 {sys.executable} main.py --dataset='tuberlin' "
               f"--data_dir='{sketch_folder}' --nClasses=3 --workers=8 --epochs=1 --batch-size=12 "
               "--testbatchsize=6 --learningratescheduler='decayschedular' --decayinterval=50 --decaylevel=2 "
               "--optimType='adam' --nesterov --tenCrop --maxlr=0.001 --minlr=0.00001 --weightDecay=0 "
               "--binaryWeight --binStart=2 --binEnd=7 --model_def='sketchanetwbin' --inpsize=81 "
               f"--name='published' --logdir={tmp_path}")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Train:' in done.stdout and 'Val:' in done.stdout and 'is ignored' not in done.stdout
    assert 'epoch 1/1' not in done.stderr   # no progress bar where there is no terminal
    assert (tmp_path / 'published' / 'best.pth.tar').exists()


def test_what_a_run_leaves(trained):
    metrics = rows(trained / 'metrics.jsonl')
    assert [(row['epoch'], row['split']) for row in metrics] == [(0, 'train'), (0, 'val'),
                                                                 (1, 'train'), (1, 'val')]
    assert {'epoch', 'split', 'loss', 'top1', 'top5', 'lr', 'time',
            'data_time'} <= metrics[0].keys()
    assert [row['lr'] for row in metrics] == [0.001, 0.001, 0.0005, 0.0005]
    layers = rows(trained / 'weights.jsonl')
    assert len(layers) == 2 * 2
    assert all(0 < row['K_over_n'] < 1 > row['relative_error'] > 0 for row in layers)
    assert all(0 <= row['flip_ratio'] < 1 for row in layers)
    assert any(row['flip_ratio'] for row in layers)
    flags = json.loads((trained / 'flags.json').read_text())
    assert (flags['model_def'], flags['binEnd'], flags['binarizer']) == ('smallwbin', 3, 'dab')
    log = (trained / 'log.txt').read_text()
    for part in ('device: CPU', 'conv2', '12×8×3×3', 'parameters:', 'times smaller', 'Train:',
                 'top-5'):
        assert part in log


def test_resuming_is_exact(train, trained, tmp_path):
    train('--name=halves', '--epochs=1', '--tenCrop')
    torch.manual_seed(99)
    train('--epochs=2', f'--resume={tmp_path}/logs/halves/last.pth.tar')
    whole, halves = trained, tmp_path / 'logs/halves'
    a, b = (read_checkpoint(folder / 'last.pth.tar') for folder in (whole, halves))
    assert a['epoch'] == b['epoch'] == 2 and a['best'] == b['best']
    assert all(torch.equal(a['model'][name], b['model'][name]) for name in a['model'])
    for state_a, state_b in zip(a['optimizer']['state'].values(), b['optimizer']['state'].values()):
        assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)
    assert torch.equal(a['rng']['cpu'], b['rng']['cpu'])
    for name in ('metrics.jsonl', 'weights.jsonl'):
        untimed = ([{key: value for key, value in row.items() if 'time' not in key}
                    for row in rows(folder / name)]
                   for folder in (whole, halves))
        assert next(untimed) == next(untimed)


def test_a_seed_decides_the_result(train, trained_once, tmp_path):
    """That the workers do not is tested in test_processes.py and test_resident.py."""
    for name, seed in ('same', 0), ('other', 1):
        train(f'--name={name}', '--epochs=1', f'--manualSeed={seed}')
    same, other, first = (read_checkpoint(folder / 'last.pth.tar')['model'] for folder in (
        tmp_path / 'logs/same', tmp_path / 'logs/other', trained_once))
    assert all(torch.equal(same[key], first[key]) for key in first)
    assert not torch.equal(other['conv1.weight'], first['conv1.weight'])


def test_evaluation_equals_what_was_logged(trained, capsys):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in trained.iterdir())
    main.main([f'--resume={trained}/last.pth.tar', '--evaluate'])
    logged = rows(trained / 'metrics.jsonl')[-1]
    said = capsys.readouterr().out
    assert f'loss {logged["loss"]:.4f}' in said and f'top-1 {logged["top1"]:.2f}' in said
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in trained.iterdir())


def test_classifying_agrees_with_validation_and_needs_no_data(trained, sketch_folder, capsys,
                                                              monkeypatch):
    monkeypatch.setattr(experiment.datasets, 'load', None)
    main.main([f'--resume={trained}/last.pth.tar', '--classify', str(sketch_folder / 'val')])
    lines = capsys.readouterr().out.splitlines()
    folders, guesses = zip(*((os.path.basename(os.path.dirname(path)), guess.split(', '))
                             for path, guess in (line.split(': ') for line in lines)))
    hits = sum(guess[0].split()[0] == folder for guess, folder in zip(guesses, folders))
    assert len(lines) == 12
    assert 100 * hits / 12 == pytest.approx(rows(trained / 'metrics.jsonl')[-1]['top1'])
    for guess in guesses:
        names, percents = zip(*(part.split()[:2] for part in guess))
        assert set(names) == {'bar', 'box', 'ring'}
        assert sum(map(float, percents)) == pytest.approx(100, abs=0.2)


def test_what_cannot_be_classified(refused, trained, tmp_path):
    resume = f'--resume={trained}/last.pth.tar'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.png').write_text('no image')
    assert '--resume' in refused('--classify', 'drawing.png')
    assert 'drawing.png' in refused(resume, '--classify', 'drawing.png')
    assert 'empty' in refused(resume, '--classify', f'{tmp_path}/empty')
    assert 'text.png' in refused(resume, '--classify', f'{tmp_path}/text.png', code=1)


def test_sign_layers_of_ones_own(train, refused, tmp_path, capsys):
    train('--name=run', '--epochs=1', '--signLayers=3,2')
    said = capsys.readouterr().out.splitlines()
    table = [line.split()[-1] for line in said if line[:1].isdigit()]
    assert [number for number, inputs in enumerate(table, 1) if inputs == 'binarized'] == [2, 3]
    resume = f'--resume={tmp_path}/logs/run/last.pth.tar'
    train(resume, '--epochs=2')
    assert 'with --signLayers=2-3, not with --signLayers=2' in refused(resume, '--epochs=3',
                                                                       '--signLayers=2')


@pytest.mark.parametrize('optimizer', ['sgd', 'adam', 'adagrad', 'adamax', 'adadelta'])
def test_every_optimizer_changes_the_latent_weights(train, tmp_path, optimizer):
    train('--name=run', '--epochs=1', f'--optimType={optimizer}', '--nesterov', '--momentum=0.8')
    checkpoint = read_checkpoint(tmp_path / 'logs/run/last.pth.tar')
    assert len(
        checkpoint['optimizer']['state']) == len(
            checkpoint['optimizer']['param_groups'][0]['params'])


@pytest.mark.parametrize('flags, method', [(['--binarizer=xnor'], 'xnor'), (['--bnnModel'], 'bnn')])
def test_binarizers(train, tmp_path, flags, method):
    train('--name=run', '--epochs=0', *flags)
    assert json.loads((tmp_path / 'logs/run/flags.json').read_text())['binarizer'] == method


def test_centring_is_that_of_the_checkpoint(train, tmp_path, refused):
    train('--name=run', '--epochs=1', '--no-centring')
    last = tmp_path / 'logs/run/last.pth.tar'
    name, latent = next(item
                        for item in read_checkpoint(last)['model'].items()
                        if item[0].endswith('original'))
    assert latent.mean(1).abs().max() > 1e-2
    assert 'was trained with --no-centring' in refused(f'--resume={last}', '--centring',
                                                       '--epochs=2')
    train(f'--resume={last}', '--epochs=2')
    assert read_checkpoint(last)['model'][name].mean(1).abs().max() > 1e-2


def check_latent_weights(folder):
    latents = [tensor
               for name,
               tensor in read_checkpoint(folder / 'last.pth.tar')['model'].items()
               if 'original' in name]
    assert latents
    for latent in latents:
        assert latent.dtype == torch.float32 and latent.is_contiguous() and latent.isfinite().all()


TINY = '--model_def=densenet', '--inpsize=16', '--binEnd=7'     # low precision is slow on a CPU


@pytest.mark.parametrize('method, flags', [
    *((method, [*TINY, '--amp=bfloat16', '--channelsLast']) for method in ('dab', 'xnor', 'bnn')),
    pytest.param('dab', ['--compile'], marks=pytest.mark.soak)])
def test_faster_arithmetic(train, tmp_path, flags, method):
    train('--name=run', '--epochs=1', f'--binarizer={method}', *flags)
    check_latent_weights(tmp_path / 'logs/run')


@pytest.mark.parametrize('channels', [1, 3])
def test_channels_last_is_the_order_of_memory_of_training(channels, sketch_folder):
    command = [*SMALL, '--channelsLast', f'--data_dir={sketch_folder}']
    model = replace(experiment.from_command(command), channels=channels).make_network()
    seen = {'conv2': [], 'bn2': [], 'relu2': []}
    for name, inputs_of in seen.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs,
            inputs_of=inputs_of: inputs_of.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)))
    images = torch.randn(2, channels, 32, 32)
    model.train()(images)
    model.eval()(images)
    # BatchNorm on the CPU adds up contiguous inputs, which it does with less error
    assert seen == {'conv2': [True, False], 'bn2': [False, False], 'relu2': [True, False]}


def test_a_real_network_and_starting_from_pretrained_weights(train, tmp_path, capsys):
    train('--name=real', '--epochs=1', '--no-binaryWeight')
    assert 'binarized weights: none' in capsys.readouterr().out
    train('--name=binary', '--epochs=0', f'--pretrained_file={tmp_path}/logs/real/best.pth.tar')
    assert 'starts from' in capsys.readouterr().out


def test_binarization_losses(train, tmp_path, capsys, refused):
    train('--name=run', '--epochs=1', '--model_def=smallfbin')
    capsys.readouterr()
    train('--evaluate', f'--resume={tmp_path}/logs/run/last.pth.tar', '--model_def=smallfbin',
          '--calculateBinarizationLosses')
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[0] for row in table] == ['sign2', 'sign3']
    assert all(float(cell) > 0 for row in table for cell in row.split()[1:])
    assert 'no sign layers' in refused('--calculateBinarizationLosses')


# Bad input: one sentence that names the flag, file or value.

@pytest.mark.parametrize('flag, part', [
    ('--dataset=tuberlinn', 'did you mean tuberlin'),
    ('--model_def=sketchanetwbinn', 'did you mean sketchanetwbin'),
    ('--optimType=adams', 'did you mean adam'),
    ('--learningratescheduler=steps', 'decayschedular'),
    ('--binarizer=naive', 'dab'),
    ('--data_dir=/nowhere', '/nowhere'),
    ('--data_dir=', '--data_dir'),
    ('--nClasses=4', '3 classes'),
    ('--binEnd=1', '--binStart=2'),
    ('--binStart=50', 'holds no convolution'),
    ('--binStart=0', 'at least 1'),
    ('--decayinterval=0', 'at least 1'),
    ('--decayinterval=-1', 'at least 1'),
    ('--decaylevel=0', 'more than 1'),
    ('--decaylevel=1', 'more than 1'),
    ('--batch-size=0', 'at least 1'),
    ('--testbatchsize=-3', 'at least 1'),
    ('--epochs=x', "'x'"),
    ('--maxlr=nan', '--maxlr'),
    ('--minlr=0.1', '--maxlr'),
    ('--inpsize=15', 'at least 16'),
    ('--evaluate', '--resume'),
    ('--signLayers=2-x', "'2-x'"),
    ('--signLayers=2-8', '2-3'),
    ('--resume=/nowhere.pth.tar', '/nowhere.pth.tar'),
    ('--pretrained_file=/nowhere.pth.tar', '/nowhere.pth.tar'),
    ('--tenCrops', '--tenCrops'),
    ('--name=', '--name'),
    ('--resume=', '--resume must not be empty'),
    ('--manualSeed=99999999999999999999', '--manualSeed'),
    ('--epochs=' + 400 * '9', '--epochs'),
    ('--signLayers=2-99999999999', '2-99999999999'),
    ('--logdir=/dev/null', '/dev/null'),
])
def test_a_wrong_flag(refused, flag, part):
    assert part in refused('--epochs=1', flag)


def test_batchnorm_needs_more_than_one_value(refused):
    assert 'more than 1 value per channel' in refused(
        '--model_def=sketchanetwbin', '--inpsize=81', '--batch-size=1', '--epochs=1')


def test_flags_that_exclude_each_other(refused, trained):
    resume = f'--resume={trained}/last.pth.tar'
    assert '--evaluate' in refused(resume, '--evaluate', '--export=x.dab')
    assert '--pretrained_file' in refused(resume, f'--pretrained_file={trained}/best.pth.tar')
    assert '--calculateBinarizationLosses' in refused(resume, '--calculateBinarizationLosses',
                                                      '--classify', 'x.png')


def test_bnnmodel_against_another_binarizer(refused):
    assert '--bnnModel' in refused('--bnnModel', '--binarizer=xnor')
    assert '--momentum' in refused('--optimType=sgd', '--nesterov', '--momentum=0')


@pytest.fixture
def broken_folder(sketch_folder, tmp_path):
    return shutil.copytree(sketch_folder, tmp_path / 'broken')


def test_a_class_without_images(refused, broken_folder):
    for path in (broken_folder / 'train' / 'box').iterdir():
        path.unlink()
    assert 'box' in refused(f'--data_dir={broken_folder}')


def test_other_classes_in_validation(refused, broken_folder):
    (broken_folder / 'val' / 'box').rename(broken_folder / 'val' / 'boxes')
    assert 'box' in refused(f'--data_dir={broken_folder}')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_truncated_image(refused, broken_folder, workers):
    path = broken_folder / 'train' / 'box' / '3.png'
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in refused(f'--data_dir={broken_folder}', f'--workers={workers}', code=1)


def test_a_checkpoint_of_another_model(refused, trained, sketch_folder, tmp_path):
    resume = f'--resume={trained}/last.pth.tar'
    assert '--model_def=smallwbin' in refused(resume, '--model_def=smallfbin')
    assert '--binarizer=dab' in refused(resume, '--binarizer=xnor')
    assert 'optimType' in refused(resume, '--optimType=sgd')
    assert 'without --signLayers, not with --signLayers=2' in refused(resume, '--signLayers=2')
    assert 'with --binaryWeight, not with --no-binaryWeight' in refused(resume, '--no-binaryWeight')
    checkpoint = read_checkpoint(trained / 'last.pth.tar')
    checkpoint['flags']['nClasses'] = 12        # nobody has given this flag
    torch.save(checkpoint, tmp_path / 'odd.pth.tar')
    sentence = 'odd.pth.tar was trained with --nClasses=12, but the data has 3 classes'
    assert sentence in refused([f'--resume={tmp_path}/odd.pth.tar'], by=main.main)


def test_weights_that_do_not_fit(refused, trained, tmp_path):
    checkpoint = read_checkpoint(trained / 'last.pth.tar')
    checkpoint['model']['conv1.weight'] = torch.zeros(3)
    torch.save(checkpoint, tmp_path / 'odd.pth.tar')
    assert 'do not fit' in refused(f'--resume={tmp_path}/odd.pth.tar')


def test_other_classes_than_the_checkpoint(refused, trained, broken_folder):
    for split in ('train', 'val'):
        (broken_folder / split / 'box').rename(broken_folder / split / 'cube')
    assert 'other classes' in refused(f'--resume={trained}/last.pth.tar',
                                      f'--data_dir={broken_folder}')


def test_a_damaged_checkpoint(refused, trained, tmp_path):
    path = tmp_path / 'cut.pth.tar'
    path.write_bytes((trained / 'last.pth.tar').read_bytes()[:-1000])
    assert 'cut.pth.tar' in refused(f'--resume={path}')
    torch.save({'weights': 1}, path)
    assert 'cut.pth.tar' in refused(f'--resume={path}')
    torch.save(os.system, path)     # a pickle that could run code
    assert 'cut.pth.tar' in refused(f'--resume={path}')


def test_a_second_run_of_the_same_name(train, refused, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'logs/run')
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    assert '--resume' in refused('--name=run', '--epochs=1')
    assert '--resume' in refused('--name=run', f'--resume={trained}/last.pth.tar', '--epochs=3')
    assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    (folder / 'thesis.pth.tar').write_text('not of this run')
    (folder / 'events.md').write_text('nor this')
    train('--name=run', '--epochs=1', '--overwrite')
    assert len(rows(folder / 'metrics.jsonl')) == 2
    assert (folder / 'thesis.pth.tar').exists() and (folder / 'events.md').exists()


def test_resuming_an_earlier_epoch_does_not_lose_the_later_ones(train, refused, one_epoch):
    folder = one_epoch
    shutil.copy(folder / 'last.pth.tar', folder / 'first.pth.tar')
    train('--epochs=2', f'--resume={folder}/last.pth.tar')
    assert 'later epochs' in refused('--epochs=2', f'--resume={folder}/first.pth.tar')
    train('--epochs=2', f'--resume={folder}/first.pth.tar', '--overwrite')
    assert [row['epoch'] for row in rows(folder / 'metrics.jsonl')] == [0, 0, 1, 1]


def test_a_resumed_run_that_replaces_another_one(train, trained, one_epoch):
    folder = one_epoch
    (folder / 'best.pth.tar').write_text('of the other run')
    train('--name=run', '--epochs=3', f'--resume={trained}/last.pth.tar', '--overwrite')
    assert {row['epoch'] for row in rows(folder / 'metrics.jsonl')} == {2}
    best = read_checkpoint(folder / 'best.pth.tar')     # there is one, of the epoch that lies here
    assert best['epoch'] == 3 and best['best'] == best['metrics']['top1']


def test_a_run_killed_between_last_and_best_ends_as_if_it_was_not(train, trained, tmp_path,
                                                                  monkeypatch):
    whole = trained
    improved = [epoch
                for epoch, line in enumerate((whole / 'log.txt').read_text().split('Val:')[1:], 1)
                if read_checkpoint(whole / 'best.pth.tar')['epoch'] >= epoch]
    for epoch in improved:      # killed in each of them
        name, copies = f'killed{epoch}', []

        def killed(source, target, copyfile=shutil.copyfile):
            copies.append(read_checkpoint(source)['epoch'])
            if copies[-1] == epoch:
                raise KeyboardInterrupt
            return copyfile(source, target)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, 'copyfile', killed)
            try:
                train(f'--name={name}', '--epochs=2', '--tenCrop')
            except SystemExit as stop:
                assert stop.code == 130
        train('--epochs=2', f'--resume={tmp_path}/logs/{name}/last.pth.tar')
        for file in 'last.pth.tar', 'best.pth.tar':
            a, b = (read_checkpoint(folder / file) for folder in (whole, tmp_path / 'logs' / name))
            assert (a['epoch'], a['best']) == (b['epoch'], b['best'])
            assert all(torch.equal(a['model'][key], b['model'][key]) for key in a['model'])
    assert read_checkpoint(whole / 'best.pth.tar')['epoch'] in improved


def test_flags_of_a_resumed_command_reach_its_optimizer(train, tmp_path):
    train('--name=run', '--epochs=1', '--optimType=sgd', '--momentum=0.5')
    last = tmp_path / 'logs/run/last.pth.tar'
    train('--epochs=2', f'--resume={last}', '--optimType=sgd', '--weightDecay=0.01')
    group, = read_checkpoint(last)['optimizer']['param_groups']
    assert (group['momentum'], group['weight_decay']) == (0.5, 0.01)


def test_amp_can_be_switched_on_and_off_again(train, tmp_path, capsys):
    train('--name=run', '--epochs=1', *TINY)
    last = tmp_path / 'logs/run/last.pth.tar'
    train('--epochs=2', f'--resume={last}', '--amp=float16', *TINY)
    check_latent_weights(last.parent)
    assert read_checkpoint(last)['flags']['amp'] == 'float16' and read_checkpoint(last)['scaler']
    capsys.readouterr()
    for flag in '--amp=off', '--amp=bfloat16':
        train(f'--resume={last}', '--evaluate', flag, *TINY)
    off, on = (line for line in capsys.readouterr().out.splitlines() if line.startswith('Val:'))
    assert off.split('loss')[1] != on.split('loss')[1]


def test_an_epoch_that_was_logged_but_not_saved_is_trained_again(train, one_epoch):
    folder = one_epoch
    with open(folder / 'metrics.jsonl', 'a') as file:
        # when the disk was full
        file.write(json.dumps({'epoch': 1, 'split': 'train'}) + '\n{"epoch": 1, "sp')
    train('--epochs=2', f'--resume={folder}/last.pth.tar')
    assert [(row['epoch'], row['split']) for row in rows(folder / 'metrics.jsonl')] == [
        (0, 'train'), (0, 'val'), (1, 'train'), (1, 'val')]


def test_a_loss_that_becomes_nan(refused, one_epoch):
    last = one_epoch / 'last.pth.tar'
    before = last.read_bytes()
    error = refused('--epochs=2', f'--resume={last}', '--maxlr=1e37', code=1)
    assert 'NaN' in error and last.read_bytes() == before


def test_a_full_disk_before_the_first_epoch(refused, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage',
                        lambda path: shutil._ntuple_diskusage(10 ** 9, 10 ** 9, 1000))
    assert 'free disk' in refused('--epochs=1')


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(refused, one_epoch, monkeypatch):
    folder = one_epoch
    before = (folder / 'last.pth.tar').read_bytes()

    def full(checkpoint, file):
        file.write(b'half')
        raise RuntimeError('PytorchStreamWriter failed writing file')
    monkeypatch.setattr(torch, 'save', full)
    assert 'last.pth.tar' in refused('--epochs=2', f'--resume={folder}/last.pth.tar', code=1)
    assert (folder / 'last.pth.tar').read_bytes() == before and not list(folder.glob('*.tmp'))


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(['--help'])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    for flag in (
        'dataset data_dir nClasses workers epochs batch-size testbatchsize learningratescheduler '
                 'decayinterval decaylevel optimType nesterov momentum tenCrop maxlr minlr weightDecay binaryWeight '
                 'binStart binEnd model_def inpsize name logdir printfreq verbose manualSeed resume evaluate '
                 'pretrained_file calculateBinarizationLosses bnnModel binarizer').split():
        assert f'--{flag}' in out, flag


# Data

def test_a_run_says_how_many_images_it_has_and_uses(train, tmp_path, capsys):
    train('--name=run', '--epochs=0')
    assert 'data: 36 training images, 12 validation images, 3 classes\n' in capsys.readouterr().out
    assert 'data: 36 training images, 12 val' in (tmp_path / 'logs/run/log.txt').read_text()
    train('--name=lone', '--epochs=0', '--batch-size=5')
    assert 'data: 36 training images (1 of them left out of every epoch: ' in capsys.readouterr(
        ).out


@pytest.mark.parametrize('dataset', ['tuberlin', 'imagenet12'])
def test_broken_images_are_left_out_of_a_run(train, refused, broken_folder, tmp_path, dataset,
                                             capsys):
    for path in 'train/box/3.png', 'val/bar/0.png':
        (broken_folder / path).write_bytes(b'broken')
    data = [f'--data_dir={broken_folder}', f'--dataset={dataset}', '--name=run', '--epochs=1']
    sentence = refused(*data, code=1)
    assert f'{broken_folder}/train/box/3.png' in sentence and '--skipBroken' in sentence
    with pytest.warns(UserWarning) as caught:
        train(*data, '--skipBroken', '--overwrite')
    assert 'data: 35 training images, 11 validation images, 3 classes' in capsys.readouterr().out
    assert [str(warning.message).split('/broken/')[1] for warning in caught] == [
        'train: 1 file is left out (cannot be read): box/3.png',
        'val: 1 file is left out (cannot be read): bar/0.png']
    with pytest.warns(UserWarning, match='box/3.png'):
        # takes the flag over
        main.main([f'--resume={tmp_path}/logs/run/last.pth.tar', '--evaluate'])
    assert '/11  ' in capsys.readouterr().out


def test_skipbroken_without_files_is_ignored_aloud(tmp_path, capsys):
    main.main(['--skipBroken', '--epochs=0', '--workers=0', f'--logdir={tmp_path}', '--name=run'])
    assert '--skipBroken is ignored: doodles has no image files' in capsys.readouterr().out


def test_a_picture_is_classified_upright(trained, sketch_folder, tmp_path, capsys):
    with Image.open(sketch_folder / 'val/bar/0.png') as image:
        turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / 'turned.png', exif=exif)
    main.main([f'--resume={trained}/last.pth.tar', '--classify', f'{tmp_path}/turned.png',
               str(sketch_folder / 'val/bar/0.png')])
    first, second = (line.split(': ')[1] for line in capsys.readouterr().out.splitlines())
    assert first == second
