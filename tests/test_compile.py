"""torch.compile, torch.export and the ONNX exporters on networks with binarized weights."""
import warnings

import pytest
import torch
from test_methods import Learned
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from models.blocks import Sign, SignConv2d
from utils import binarize
from utils.native import cpu  # noqa: F401


def network(method='dab', centring=True):
    """Real and sign inputs, a depthwise layer, in all which binarization treats differently."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), Sign(),
                          SignConv2d(8, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LogSoftmax(1))
    return binarize.wrap(model, 2, 4, method, centring=centring)


IMAGES = torch.randn(4, 2, 12, 12, generator=torch.Generator().manual_seed(1))


def trained(model, forward, steps=3):
    """The losses of some steps, the weights after them, and the outputs in evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.nll_loss(forward(IMAGES), torch.arange(4))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    with torch.no_grad():
        return torch.stack(losses), [*model.state_dict().values()], forward(IMAGES)


@pytest.mark.parametrize('method, centring', [
    # by our operators; in PyTorch; with learned values
    ('dab', True), ('dab', False), ('xnor', True), ('learned', True)])
def test_compiled_training_has_no_graph_break_and_the_same_results(method, centring, monkeypatch):
    """aot_eager traces like the default, inductor, and runs the kernels of the eager network."""
    monkeypatch.setitem(binarize.METHODS, 'learned', Learned)
    torch._dynamo.reset()
    model, twin = network(method, centring), network(method, centring)
    compiled = torch.compile(twin, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(trained(twin, compiled), trained(model, model), rtol=0, atol=0)


@pytest.mark.soak
def test_inductor_trains_to_the_same_weights():
    model, twin = network(), network()
    compiled = torch.compile(twin, fullgraph=True)
    torch.testing.assert_close(trained(twin, compiled), trained(model, model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', binarize.native.METHODS['cpu'])
def test_the_operators_keep_what_they_declare(method):
    if not binarize.native.cpu.supports(()):
        pytest.skip('no C++ compiler')
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(binarize._fused_forward_, (weight.clone(), method))
    _, values = binarize._fused_forward_(projected := weight.clone(), method)
    torch.library.opcheck(binarize._fused_backward, (weight, projected, values, method))


@pytest.mark.parametrize('method', binarize.native.METHODS['cuda'])
@pytest.mark.parametrize('channels', [5, 1])
def test_the_operators_without_compiled_code(method, channels, monkeypatch):
    """They have to give what the exact search of PyTorch does, also for a constant filter."""
    class Failing:
        def __getattr__(self, name):
            raise binarize.native.Unsupported
    monkeypatch.setattr(binarize.Binarization, '_is_fused', lambda layer, *_,
                        **__: layer.search == 'fast')
    monkeypatch.setattr(binarize.native, 'compiled', lambda _: Failing())
    results = []
    for search in 'fast', 'exact':
        torch.manual_seed(0)
        conv = nn.Conv2d(2 * channels, 6, 3, groups=2, bias=False)
        nn.init.normal_(conv.weight, std=0.7)
        with torch.no_grad():
            conv.weight[3] = 0.25
        binarize.wrap(conv, 1, 1, method, search)
        gradient = torch.randn(conv.parametrizations.weight.original.shape)
        weight = conv.weight
        weight.backward(gradient)
        latent = conv.parametrizations.weight.original
        *values, mask = binarize.layer_weights(conv)
        rows = [0, 1, 2, 4, 5]      # which weight of a constant filter is marked does not matter
        results.append([latent.detach(), weight.detach(), latent.grad[rows], mask[rows], *values])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
    assert all(value.isfinite().all() for value in results[0])


@pytest.mark.parametrize('method', binarize.native.METHODS['cuda'])
def test_a_step_is_traced_for_a_gpu_without_one(method):
    with FakeTensorMode(), torch.device('cuda'):
        assert network(method)(torch.empty(4, 2, 12, 12)).device.type == 'cuda'
        weight = torch.empty(6, 8, 3, 3)
        gradient = binarize._fused_backward(weight, weight, torch.empty(4, 6), method)
    assert gradient.device.type == 'cuda' and gradient.shape == weight.shape


def test_export_gives_ordinary_operators():
    model = network().eval()
    with torch.no_grad():
        program = torch.export.export(model, (IMAGES,))
        torch.testing.assert_close(program.module()(IMAGES), model(IMAGES))
    assert not [node for node in program.graph.nodes if 'dab' in str(node.target)]


@pytest.mark.parametrize('dynamo', [True, False])
def test_onnx(dynamo, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model, path = network().eval(), tmp_path / 'network.onnx'
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')     # of the exporters about themselves
        torch.onnx.export(model, (IMAGES,), path, dynamo=dynamo, verbose=False)
        expected = model(IMAGES)
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    outputs, = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), expected)
