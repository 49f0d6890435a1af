"""Networks as .pt and .onnx (utils/export), and what --export refuses."""
import json
import warnings

import pytest
import torch
import torchvision
from torch import nn

import main
import models
from datasets.doodles import Doodles
from models.blocks import SignFunction, Units, network
from utils import binarize, experiment
from utils.export import to_onnx
from utils.packed import Description


def own(nClasses, channels, inpsize, signLayers=''):
    """A network of a user: real, binary, binary, and a linear classifier."""
    unit = Units(signLayers, biasLayers='3')
    return network(**unit(channels, 6, 5, stride=3), **unit(6, 8, 3, padding=1),
                   pool=nn.MaxPool2d(2), **unit(8, 8, 3, padding=1),
                   avgpool=nn.AdaptiveAvgPool2d(1),
                   classifier=nn.Sequential(nn.Flatten(), nn.Linear(8, nClasses)))


@pytest.fixture(scope='module', autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._variants, 'own',
                      models.Variant(own, 33, 9, {'signLayers': ''}, '2-3'))
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory, sketch_folder):
    """{name: checkpoint} of the user's network with real and with binarized inputs, and of a real
    one."""
    logs = tmp_path_factory.mktemp('trained')
    for name, *more in ('wbin', '--binaryWeight'), ('fbin', '--binaryWeight',
                                                    '--signLayers=2-3'), ('real',):
        main.main(['--model_def=own', '--dataset=tuberlin', f'--data_dir={sketch_folder}',
                   '--inpsize=33', '--workers=0', '--batch-size=12', '--binEnd=3',
                   '--maxlr=0.03', '--epochs=6', '--no-compile', f'--logdir={logs}',
                   f'--name={name}', *more])
    return {path.name: path / 'last.pth.tar' for path in logs.iterdir()}


@pytest.fixture(scope='module')
def doodles():
    transform = experiment.datasets.transform('tuberlin', 33)
    return torch.stack([transform(Doodles('val')[index][0]) for index in range(0, 325, 13)])


@pytest.fixture
def run(capsys):
    """Runs main, and returns what it printed and, where it exits, the code and the sentence."""
    def run(*flags):
        capsys.readouterr()
        try:
            main.main(list(flags))
        except SystemExit as exit_:
            error = capsys.readouterr().err
            assert error.startswith('main.py: error: ') and error.count('\n') == 1
            return exit_.code, error
        return capsys.readouterr()
    return run


def onnx_outputs(path, images):
    runtime = pytest.importorskip('onnxruntime')
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    outputs, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(outputs), session


@pytest.mark.parametrize('name', ['wbin', 'fbin'])
def test_onnx_computes_what_the_checkpoint_does(name, trained, doodles, tmp_path, run):
    pytest.importorskip('onnxscript')
    path = tmp_path / 'model.onnx'
    out, err = run(f'--resume={trained[name]}', f'--export={path}')
    assert 'from images (N, 1, 33, 33) to log_probs (N, 3)' in out
    assert 'ONNX Runtime gives the same' in out
    assert out.count('\n') == 2
    assert not err
    assert [file.name for file in tmp_path.iterdir()] == ['model.onnx']
    assert f'{path.stat().st_size:,} bytes' in out
    network = experiment.load(trained[name]).network
    with torch.no_grad():
        expected = network(doodles)
    for images in doodles, doodles[:1]:
        outputs, session = onnx_outputs(path, images)
        torch.testing.assert_close(outputs, expected[:len(images)], atol=2e-5, rtol=0)
        assert outputs.argmax(1).equal(expected[:len(images)].argmax(1))
    assert len(set(expected.argmax(1).tolist())) > 1
    stored = {key: json.loads(text)
              for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert stored == {'classes': ['bar', 'box', 'ring'], 'mean': [0.06], 'std': [0.93],
                      'inpsize': 33, 'dataset': 'tuberlin', 'model_def': 'own'}


def test_sign_of_zero_and_sums_of_signs_are_exact_in_onnx(tmp_path):
    """Two values that float32 sums would round, and inputs at the boundary of the sign."""
    pytest.importorskip('onnxscript')
    torch.manual_seed(0)
    unit = Units('1')
    model = binarize.wrap(network(**unit(64, 3, 3, padding=1), avgpool=nn.AdaptiveAvgPool2d(1)), 1,
                          1).eval()
    images = torch.randint(-1, 2, (5, 64, 7, 7)).float()
    images[0] = 0
    to_onnx.write(tmp_path / 'signs.onnx', model,
                  Description('x', None, ['a', 'b', 'c'], 7, [0.] * 64, [1.] * 64, 'tuberlin',
                              False))
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(onnx_outputs(tmp_path / 'signs.onnx', images)[0], expected,
                               atol=1e-6, rtol=0)


def test_a_wrapped_network_of_torchvision(tmp_path):
    """As the README shows: in ONNX, and as a plain state_dict for torchvision's own class."""
    pytest.importorskip('onnxscript')
    make = torchvision.models.resnet.ResNet
    torch.manual_seed(0)
    model = binarize.wrap(make(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7),
                          2, 8, method='dab').eval()
    images, plain = torch.randn(3, 3, 32, 32), make(torchvision.models.resnet.BasicBlock,
                                                    [1, 1, 1, 1], num_classes=7).eval()
    torch.save(binarize.bake(model).state_dict(), tmp_path / 'plain.pt')
    plain.load_state_dict(torch.load(tmp_path / 'plain.pt', weights_only=True), strict=True)
    with torch.no_grad(), warnings.catch_warnings(action='ignore'):
        torch.onnx.export(plain, (images[:2],), tmp_path / 'model.onnx', dynamo=True, verbose=False,
                          dynamic_shapes=({0: torch.export.Dim('N')},))
        expected = model(images)
        torch.testing.assert_close(plain(images), expected)
    torch.testing.assert_close(onnx_outputs(tmp_path / 'model.onnx', images)[0], expected,
                               atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['wbin', 'fbin', 'real'])
def test_a_state_dict_loads_strictly_into_the_network_without_wrap(name, trained, doodles, tmp_path,
                                                                   run):
    path = tmp_path / 'model.pt'
    out, _ = run(f'--resume={trained[name]}', f'--export={path}')
    call = out.partition('load it into ')[2].strip()
    assert call == "models.build('own', 3, 1, 33" + (", '2-3')" if name == 'fbin' else ')')
    plain = eval(call).eval()
    plain.load_state_dict(torch.load(path, weights_only=True), strict=True)
    values = [len(row.unique()) for row in plain.conv2.weight.detach().flatten(1)]
    assert set(values) == ({54} if name == 'real' else {2})
    with torch.no_grad():
        torch.testing.assert_close(plain(doodles), experiment.load(trained[name]).network(doodles),
                                   atol=1e-4, rtol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ['model.pt']
    out = run('--model_def=own', '--dataset=doodles', '--inpsize=33', '--epochs=0', '--no-compile',
              f'--logdir={tmp_path}', f'--pretrained_file={path}',
              *(['--signLayers=2-3'] if name == 'fbin' else [])).out
    assert 'tensors, by name' in out and 'initial values: classifier.1' in out


@pytest.mark.parametrize('ending', ['dab', 'pt', 'onnx'])
def test_only_files_of_the_same_kind_are_replaced(ending, trained, tmp_path, run):
    if ending == 'onnx':
        pytest.importorskip('onnxscript')
    source, path = f'--resume={trained["wbin"]}', tmp_path / f'model.{ending}'
    for content in b'mine', b'', trained['wbin'].read_bytes():
        path.write_bytes(content)
        assert run(source, f'--export={path}', '--overwrite') == (
            2, f'main.py: error: --export: {path} is not {dict(dab="a packed model", pt="a state_dict", onnx="an ONNX model")[ending]}: give another name\n')
        assert path.read_bytes() == content
    path.unlink()
    if ending == 'onnx':
        import onnx
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
                  for name in 'xy']
        onnx.save(
            onnx.helper.make_model(
                onnx.helper.make_graph([onnx.helper.make_node('Relu', ['x'], ['y'])], 'g',
                                       values[:1], values[1:])), path)
        assert to_onnx.is_onnx(path)
    else:
        run(source, f'--export={path}')
    before = path.read_bytes()
    code, error = run(source, f'--export={path}')
    assert code == 2 and 'exists already' in error and path.read_bytes() == before
    if ending != 'onnx':
        run(source, f'--export={path}', '--overwrite')
        assert path.read_bytes() == before
    path.unlink()
    path.symlink_to(trained['wbin'])
    assert 'is the checkpoint that is exported' in run(source, f'--export={path}', '--overwrite')[1]


@pytest.mark.parametrize('flags, part', [
    (['--export=model'],
     'must end in .dab (packed, one bit per binarized weight), .pt (a state_dict) or .onnx'),
    (['--export=model.pth'], 'must end in'),
    (['--export=model.pt', '--exportHalf'], '--exportHalf needs --export=FILE.dab'),
    (['--export=/nowhere/model.pt'], '--export: there is no folder /nowhere'),
    (['--export=/nowhere/model.onnx'], '--export: there is no folder /nowhere')])
def test_wrong_commands(flags, part, trained, run):
    code, error = run(f'--resume={trained["wbin"]}', *flags)
    assert code == 2 and part in error


def test_missing_packages_and_networks_too_large_for_onnx(trained, tmp_path, run, monkeypatch):
    monkeypatch.setattr(to_onnx.importlib.util, 'find_spec', lambda name,
                        find=to_onnx.importlib.util.find_spec: name != 'onnxscript' and find(name))
    assert 'pip install onnx onnxscript' in run(f'--resume={trained["wbin"]}',
                                                f'--export={tmp_path}/model.onnx')[1]
    monkeypatch.undo()
    monkeypatch.setattr(to_onnx, 'MAX_BYTES', 1000)
    assert 'at most 2 GiB' in run(f'--resume={trained["wbin"]}',
                                  f'--export={tmp_path}/model.onnx')[1]
    assert not list(tmp_path.iterdir())


def test_a_layer_that_a_packed_model_does_not_have_is_not_exported(sketch_folder, tmp_path,
                                                                   monkeypatch, capsys):
    main.main(['--model_def=own', '--signLayers=2', '--dataset=tuberlin',
               f'--data_dir={sketch_folder}', '--inpsize=33', '--workers=0',
               '--binEnd=3', '--binaryWeight', '--epochs=1', f'--logdir={tmp_path}', '--name=run'])
    monkeypatch.setattr(SignFunction, 'forward',
                        staticmethod(lambda x: torch.where(x >= 0.3, 1.0, -1.0)))
    with pytest.raises(SystemExit) as ended:
        main.main([f'--resume={tmp_path}/run/last.pth.tar', f'--export={tmp_path}/model.dab'])
    assert ended.value.code == 1
    assert 'a packed model would compute something else' in capsys.readouterr().err
    assert not (tmp_path / 'model.dab').exists()
