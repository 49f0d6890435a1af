"""Training and evaluation on an NVIDIA GPU against the CPU and against themselves; without one all
of it is skipped."""
import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import main
import models
from utils import binarize
from utils.binarize import METHODS, binarized, layer_weights
from utils.training import epoch, optim
from utils.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
CUDA = torch.device('cuda')
SIDE = 97
TRAIN = ['--inpsize=97', '--epochs=2', '--batch-size=64', '--testbatchsize=64', '--workers=0',
         '--binaryWeight']


@pytest.fixture(autouse=True)
def without_tf32():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Batches:
    """Three batches of fixed images on the GPU, for train_epoch."""

    def __init__(self, count=3, images=32):
        generator = torch.Generator().manual_seed(1)
        self.batches = [(torch.randn(images, 1, SIDE, SIDE, generator=generator).to(CUDA),
                         torch.randint(10, (images,), generator=generator).to(CUDA))
                        for _ in range(count)]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class Silent:
    def __call__(self, batches):
        return batches

    def show(self, metrics):
        pass


def network(name, method, search='fast'):
    torch.manual_seed(0)
    return binarize.wrap(models.build(name, 10, 1, SIDE), 2, 7, method, search)


# Smooth, so that rounding stays small in the gradient: at a ReLU or a maximum it need not.
@pytest.mark.parametrize('method', METHODS)
def test_gradients_on_the_gpu_are_those_of_the_cpu_in_float64(method):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 64, 5), nn.Tanh(), nn.Conv2d(64, 128, 3, 2), nn.Tanh(),
                          nn.Conv2d(128, 128, 3, groups=128), nn.Tanh(), nn.Conv2d(128, 10, 1))
    reference, ours = (binarize.wrap(copy.deepcopy(plain), 2, 4, method, search)
                       for search in ('exact', 'fast'))
    images, target = Batches(1).batches[0]
    for model, inputs in (reference.double().train(),
                          images.cpu().double()), (ours.to(CUDA).train(), images):
        F.cross_entropy(model(inputs).mean((2, 3)), target.to(inputs.device)).backward()
    for (name, expected), found in zip(reference.named_parameters(), ours.parameters(),
                                       strict=True):
        assert (found.grad.cpu() - expected.grad).norm() <= 1e-3 * expected.grad.norm(), name


@pytest.mark.parametrize('amp', [None, 'bfloat16'])
@pytest.mark.parametrize('name', ['sketchanetwbin', 'sketchanetfbin', 'resnetwbin18', 'nin'])
def test_nothing_in_a_step_waits_for_the_gpu(name, amp):
    model = network(name, 'dab').to(CUDA)
    optimizer = optim.build_optimizer('adam', model, 1e-3, 0, 0, False)
    batches = Batches()
    epoch.train_epoch(model, batches, optimizer, CUDA, Silent(), 1000, amp)   # compiles the kernels
    waited = []

    class Strict(Silent):
        def __call__(self, batches):
            torch.cuda.set_sync_debug_mode('error')
            yield from batches
            torch.cuda.set_sync_debug_mode('default')
            waited.append(False)
    try:
        epoch.train_epoch(model, batches, optimizer, CUDA, Strict(), 1000, amp)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert waited == [False]


def train(folder, *flags):
    main.main([*TRAIN, f'--logdir={folder}', '--name=run', *flags])
    return read_checkpoint(folder / 'run/last.pth.tar')


def assert_equal(a, b):
    assert all(torch.equal(x, y)
               for x, y in zip(a['model'].values(), b['model'].values(), strict=True))


@pytest.mark.parametrize('flags',
                         [['--model_def=sketchanetwbin'],
                          ['--model_def=sketchanetfbin', '--amp=bfloat16'],
                                   ['--model_def=resnetfbin18', '--accumulate=2', '--clipGrad=1']],
                         ids=str)
def test_deterministic_runs_repeat_and_resume(tmp_path, flags):
    flags = ['--deterministic', *flags]
    whole = train(tmp_path / 'a', *flags)
    assert_equal(whole, train(tmp_path / 'b', *flags))
    train(tmp_path / 'c', *flags, '--epochs=1')
    main.main([f'--resume={tmp_path}/c/run/last.pth.tar', '--epochs=2', f'--logdir={tmp_path}/c'])
    assert_equal(whole, read_checkpoint(tmp_path / 'c/run/last.pth.tar'))


@pytest.mark.parametrize('flags', [
    ['--binarizer=xnor'], ['--binarizer=adabin'], ['--amp=float16'],
    ['--amp=bfloat16', '--no-channelsLast'],
    ['--dataOn=workers', '--workers=2'], ['--binSearch=exact'], ['--compile'],
    ['--model_def=squeezenetfbin', '--tenCrop', '--inpsize=129'], ['--model_def=googlenetwbin']],
                         ids=str)
def test_flags_train(tmp_path, flags):
    train(tmp_path, *flags)
    rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    losses = [row['loss'] for row in rows if row['split'] == 'train']
    assert losses[1] < losses[0] and 'GPU' in (tmp_path / 'run/log.txt').read_text() + 'GPU'


@pytest.mark.parametrize('model_def', ['sketchanetwbin', 'sketchanetfbin'])
def test_a_network_trained_on_the_gpu_is_the_same_on_the_cpu_and_packed(tmp_path, capsys,
                                                                        model_def):
    train(tmp_path, f'--model_def={model_def}')
    last = tmp_path / 'run/last.pth.tar'
    found = {}
    main.main([f'--resume={last}', f'--export={tmp_path}/net.dab'])
    for place, flags in {'cuda': [f'--resume={last}'], 'cpu': [f'--resume={last}', '--device=cpu'],
                         'packed': [f'--packed={tmp_path}/net.dab']}.items():
        capsys.readouterr()
        main.main([*flags, '--evaluate', f'--predictions={tmp_path}/{place}.csv'])
        found[place] = (tmp_path / f'{place}.csv').read_text().splitlines()
    same = [sum(a.split(',')[:3] == b.split(',')[:3]
                for a, b in zip(found['cpu'], found[place], strict=True))
            for place in ('cuda', 'packed')]
    assert len(found['cpu']) > 300 and min(same) >= 0.98 * len(found['cpu']), same


def test_evaluation_on_the_gpu_searches_exactly():
    model = network('sketchanetwbin', 'dab').to(CUDA).eval()
    for _, conv in binarized(model):
        projected, weight, *_ = layer_weights(conv)
        exact = binarize.binarize_weight(projected.cpu().double())
        error, best = ((projected.cpu().double() - two.double().cpu()).square().sum()
                       for two in (weight, exact))
        assert error <= best * (1 + 1e-9)
