"""Export and use of a packed model as its user runs it."""
import pytest
from conftest import ROOT

import main
from utils.training.checkpoint import read_checkpoint

ANY = ['--dataset=tuberlin', '--nClasses=3', '--workers=0', '--batch-size=12', '--binaryWeight',
       '--epochs=1']
FBIN = ['--inpsize=81', '--model_def=sketchanetfbin', '--signLayers=2-6']
SMALL = [*ANY, *FBIN, '--tenCrop']


@pytest.fixture(scope='module')
def trained(sketch_folder, tmp_path_factory):
    logs = tmp_path_factory.mktemp('trained')
    main.main([*SMALL, f'--data_dir={sketch_folder}', f'--logdir={logs}', '--name=run'])
    return logs / 'run' / 'last.pth.tar'


@pytest.fixture(scope='module')
def packed(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp('packed') / 'model.dab'
    main.main([f'--resume={trained}', f'--export={path}'])
    return path


@pytest.fixture
def said(capsys):
    """Runs main and returns what it printed."""
    def run(*flags):
        capsys.readouterr()
        main.main(list(flags))
        return capsys.readouterr().out
    return run


@pytest.fixture
def refused(capsys):
    """Runs main, expects exit code 2 and one sentence, and returns it."""
    def run(*flags):
        with pytest.raises(SystemExit) as exit_:
            main.main(list(flags))
        error = capsys.readouterr().err
        assert exit_.value.code == 2
        assert error.startswith('main.py: error: ')
        assert error.count('\n') == 1
        return error
    return run


def test_the_table_of_an_export(trained, tmp_path, said):
    table = said(f'--resume={trained}', f'--export={tmp_path}/model.dab')
    whole = tmp_path / 'model.dab'
    assert 'binarized convolutions' in table
    assert f'{whole.stat().st_size:,}' in table.splitlines()[-1]
    said(f'--resume={trained}', f'--export={tmp_path}/half.dab', '--exportHalf')
    assert (
        tmp_path / 'half.dab').stat().st_size < whole.stat().st_size < trained.stat().st_size / 20


def test_evaluation_and_classification_are_those_of_the_checkpoint(trained, packed, sketch_folder,
                                                                   said):
    def figures(line):
        return line.split('loss')[1]

    assert figures(said('--evaluate', f'--resume={trained}')) == figures(
        said('--evaluate', f'--packed={packed}', f'--data_dir={sketch_folder}'))
    lines = said('--classify', f'{sketch_folder}/val', f'--packed={packed}')
    assert lines == said('--classify', f'{sketch_folder}/val', f'--resume={trained}')
    assert lines.count('\n') == 12


def test_other_binarizers(sketch_folder, tmp_path, said):
    for method in 'xnor', 'bnn':
        said(*SMALL, f'--data_dir={sketch_folder}', f'--logdir={tmp_path}', f'--name={method}',
             f'--binarizer={method}')
        checkpoint = f'--resume={tmp_path}/{method}/last.pth.tar'
        said(checkpoint, f'--export={tmp_path}/{method}.dab')
        lines = [said('--classify', f'{sketch_folder}/val', source) for source in (
            checkpoint, f'--packed={tmp_path}/{method}.dab')]
        assert lines[0] == lines[1] != ''


@pytest.fixture(scope='module')
def in_bfloat16(sketch_folder, tmp_path_factory):
    """Checkpoints of networks with binarized inputs (fbin) and real ones (wbin), trained under
    --amp=bfloat16."""
    logs = tmp_path_factory.mktemp('bfloat16')
    for name, *network in ('fbin', *FBIN), ('wbin', '--model_def=densenet', '--inpsize=16',
                                            '--binEnd=7'):
        main.main([*ANY, *network, '--amp=bfloat16', f'--data_dir={sketch_folder}',
                   f'--logdir={logs}', f'--name={name}'])
    return {name: logs / name / 'last.pth.tar' for name in ('fbin', 'wbin')}


def test_under_amp_the_validated_network_is_the_exported_one(in_bfloat16, sketch_folder, tmp_path,
                                                             said):
    """Image by image, in the validation of training, in --evaluate with and without --amp, and from
    the packed model."""
    checkpoint, found = in_bfloat16['fbin'], {}
    assert 'The accuracy' not in said(f'--resume={checkpoint}', f'--export={tmp_path}/model.dab')
    for name, *source in ('amp', f'--resume={checkpoint}'), ('float32', f'--resume={checkpoint}',
                                                             '--amp=off'), (
            'packed', f'--packed={tmp_path}/model.dab', f'--data_dir={sketch_folder}'):
        out = said('--evaluate', *source, f'--predictions={tmp_path}/{name}.csv')
        found[name] = out.split('loss')[1], (tmp_path / f'{name}.csv').read_text()
        assert 'autocast' not in out
    assert found['amp'] == found['float32'] == found['packed']
    metrics = read_checkpoint(checkpoint)['metrics']
    assert found['packed'][0].startswith(
        f' {metrics["loss"]:.4f}  accuracy {round(metrics["top1"] * 0.12)}/12  top-1 {metrics["top1"]:.2f}')
    assert 'bfloat16 under autocast, weights in float32, validation in float32' in (
        checkpoint.parent / 'log.txt').read_text()
    lines = said('--classify', f'{sketch_folder}/val', f'--packed={tmp_path}/model.dab')
    assert said('--classify', f'{sketch_folder}/val', f'--resume={checkpoint}') == lines


def test_where_validation_is_under_amp_log_evaluation_and_export_say_so(in_bfloat16, tmp_path,
                                                                        said):
    checkpoint = in_bfloat16['wbin']
    assert 'weights in float32, validation in bfloat16' in (
        checkpoint.parent / 'log.txt').read_text()
    assert 'bfloat16 under autocast' in said('--evaluate', f'--resume={checkpoint}')
    *_, sentence = said(f'--resume={checkpoint}', f'--export={tmp_path}/model.pt').splitlines()
    assert sentence == (
        f'The accuracy of {checkpoint} was measured in bfloat16 (--amp), and {tmp_path}/model.pt computes in float32: '
                        'to measure that, --evaluate with --amp=off')


def test_an_existing_file_is_kept_unless_told(trained, packed, refused, said):
    before = packed.read_bytes()
    assert '--overwrite' in refused(f'--resume={trained}', f'--export={packed}')
    assert packed.read_bytes() == before
    said(f'--resume={trained}', f'--export={packed}', '--overwrite')
    assert packed.read_bytes() == before
    assert 'must end in .dab' in refused(f'--resume={trained}', f'--export={trained}',
                                         '--overwrite')


@pytest.mark.parametrize('flags, part', [
    (['--export=x.dab'], '--resume'), (['--export=', '--resume=CHECKPOINT'], '--export'),
    (['--exportHalf'], '--export'),
    (['--export=/nowhere/x.dab', '--resume=CHECKPOINT'], '/nowhere'),
    (['--export=x.dab', '--resume=CHECKPOINT', '--dataset=cifar10'], 'channels'),
    (['--packed=PACKED'], '--evaluate'),
    (['--packed=PACKED', '--resume=CHECKPOINT', '--evaluate'], 'one of them'),
    (['--packed=/nowhere.dab', '--evaluate'], '/nowhere.dab'),
    (['--packed=CHECKPOINT', '--evaluate'], '--resume takes'),
    (['--packed=/', '--evaluate'], '--packed: / is a folder'),
    (['--packed=' + 'x' * 300, '--evaluate'], '--packed: '),
    (['--packed=PACKED', '--evaluate', '--model_def=sketchanet'], '--model_def=sketchanetfbin'),
    (['--packed=PACKED', '--evaluate', '--inpsize=97'], '--inpsize=81'),
    (['--packed=PACKED', '--evaluate', '--data_dir=/nowhere'], '/nowhere'),
    (['--packed=PACKED', '--evaluate', '--calculateBinarizationLosses'], 'sign layers'),
    (['--packed=PACKED', '--evaluate', '--amp=bfloat16'], '--amp'),
    (['--packed=DAMAGED', '--evaluate'], 'damaged'),
    (['--packed=PACKED', '--evaluate', '--dataset=doodles', '--data_dir='], '13 classes'),
    (['--packed=PACKED', '--classify', '/nowhere.png'], '/nowhere.png')])
def test_wrong_commands(trained, packed, tmp_path, refused, flags, part):
    (tmp_path / 'damaged.dab').write_bytes(packed.read_bytes()[:-100])
    places = {'CHECKPOINT': trained, 'PACKED': packed, 'DAMAGED': tmp_path / 'damaged.dab'}
    for word, path in places.items():
        flags = [flag.replace(word, str(path)) for flag in flags]
    assert part in refused(*flags)
    assert not (ROOT / 'x.dab').exists()


def test_a_packed_model_of_other_images(packed, tmp_path, refused, monkeypatch):
    monkeypatch.setattr('datasets.normalization', lambda name: ([0.5], [0.5]))
    assert 'normalizes' in refused(f'--packed={packed}', '--evaluate')
    monkeypatch.setattr('datasets.names', lambda: ['doodles'])
    assert 'tuberlin' in refused(f'--packed={packed}', '--evaluate')


