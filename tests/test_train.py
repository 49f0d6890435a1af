"""Steps, schedule, validation and the measures of method.md §4, against values computed by hand."""
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, DistributedSampler

import models
from models.blocks import Sign
from utils import activations, binarize
from utils.describe import describe, describe_data, inputs_are_binary
from utils.training import epoch as train
from utils.training import optim
from utils.training.progress import Progress

CPU = torch.device('cpu')


def quiet(loader):
    return Progress('test', len(loader))


@pytest.mark.parametrize('epoch, lr', [(0, 0.002), (49, 0.002), (50, 0.001), (99, 0.001), (100, 0.0005), (599, 0.0001)])
def test_decayschedular(epoch, lr):
    assert optim.decay_schedular(epoch, maxlr=0.002, minlr=0.0001, decayinterval=50, decaylevel=2) == lr


def test_decayschedular_after_many_epochs():
    assert optim.decay_schedular(5000, maxlr=0.002, minlr=0.0001, decayinterval=1, decaylevel=10) == 0.0001


@pytest.mark.parametrize('name', models.names())
def test_every_model_trains_a_binarized_step(name):
    torch.manual_seed(0)
    inpsize = next(size for size in (33, 63, 81) if not too_small(name, size))
    model = binarize.wrap(models.build(name, 5, channels=1, inpsize=inpsize), 2, 100)
    latents = {layer: conv.parametrizations.weight.original for layer, conv in binarize.binarized(model)}
    images, target = torch.randn(4, 1, inpsize, inpsize), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    loss = F.nll_loss(model(images), target)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    projected = {layer: latent.detach().clone() for layer, latent in latents.items()}
    optimizer.step()
    # Behind two binarized layers a ReLU may be dead for four images, but not for most layers.
    moved = [not torch.equal(latents[layer], projected[layer]) for layer in latents]
    assert sum(moved) >= 0.9 * len(moved)
    assert all(latent.abs().max() <= 1 for latent in projected.values())


def too_small(name, inpsize):
    try:
        models.build(name, 5, channels=1, inpsize=inpsize)
    except ValueError:
        return True
    return False


class Table(nn.Module):
    """Log-probabilities looked up by the value of an image's only pixel."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows).log()

    def forward(self, x):
        return self.rows[x.flatten().long()]


def test_ten_crops_average_the_log_probabilities_before_loss_and_accuracy():
    model = Table([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    crops = torch.tensor([[0.] * 4 + [1.] * 6, [2.] * 10]).view(2, 10, 1, 1, 1)
    target = torch.tensor([0, 2])
    metrics = train.validate(model, [(crops, target)], CPU, quiet([0]))
    by_hand = torch.stack([0.4 * model.rows[0] + 0.6 * model.rows[1], model.rows[2]])
    assert metrics['loss'] == pytest.approx(-(by_hand[0, 0] + by_hand[1, 2]).item() / 2)
    assert by_hand[0].argmax() == 1 and metrics['top1'] == 50
    assert metrics['top5'] == 100 and metrics['images'] == 2


def test_metrics_are_weighted_by_images_and_top5_counts_five():
    rows = torch.eye(8) * 0.5 + 0.01 * torch.arange(1, 9)   # beside the diagonal, likelier to the right
    model = Table((rows / rows.sum(1, keepdim=True)).tolist())
    batches = [(torch.tensor([0., 1, 2]).view(3, 1, 1, 1), torch.tensor([0, 7, 0])),
               (torch.tensor([3.]).view(1, 1, 1, 1), torch.tensor([3]))]
    metrics = train.validate(model, batches, CPU, quiet(batches))
    assert metrics['top1'] == 50 and metrics['top5'] == 75
    loss = -sum(model.rows[image, label].item() for image, label in ((0, 0), (1, 7), (2, 0), (3, 3))) / 4
    assert metrics['loss'] == pytest.approx(loss, rel=1e-6)


def test_validation_binarizes_every_weight_once(monkeypatch):
    model = binarize.wrap(models.build('sketchanetwbin', 3, channels=1, inpsize=81), 2, 7)
    calls = []
    forward = binarize.Binarization.forward
    monkeypatch.setattr(binarize.Binarization, 'forward', lambda self, w: calls.append(1) or forward(self, w))
    batches = [(torch.randn(2, 1, 81, 81), torch.tensor([0, 1]))] * 3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train.validate(model, batches, CPU, quiet(batches))
    assert len(calls) == 6 and not parametrize._cache_enabled
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_epoch_that_ends_in_nan_or_an_infinite_weight_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.LogSoftmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.full((2, 1, 1, 1), math.nan), torch.tensor([0, 1]))]
    with pytest.raises(FloatingPointError, match='NaN'):
        train.train_epoch(model, batches, optimizer, CPU, quiet(batches), printfreq=10)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), Sign(), nn.Linear(2, 2), nn.LogSoftmax(1))
    with torch.no_grad():
        hidden[1].weight.fill_(math.nan)
    optimizer = torch.optim.SGD(hidden.parameters(), lr=0.1)
    with pytest.raises(FloatingPointError, match='weight'):
        train.train_epoch(hidden, [(torch.ones(2, 1, 1, 1), torch.tensor([0, 1]))], optimizer, CPU, quiet([0]), 10)


def test_sign_losses():
    x = torch.tensor([0.5, -2.0, 0.0, -0.25])
    squares = [0.25, 1.0, 1.0, 0.5625]
    rmse = math.sqrt(sum(squares) / 4)
    root_mean_square = math.sqrt((0.25 + 4 + 0.0625) / 4)
    one_minus_square = (0.75 + 0 + 1 + 0.9375) / 4
    assert activations.sign_losses(x).tolist() == pytest.approx([rmse, rmse / root_mean_square, one_minus_square])


def test_binarization_losses_are_those_of_the_inputs_of_the_signs():
    class Scale(nn.Module):
        def forward(self, x):
            return x * 0.5
    model = nn.Sequential(Scale(), Sign(), Scale(), Sign(), nn.Flatten())
    batches = [(torch.full((2, 1, 2, 2), 1.0), torch.zeros(2)), (torch.full((1, 1, 2, 2), 2.0), torch.zeros(1))]
    losses = activations.binarization_losses(model, batches, CPU, quiet(batches))
    assert losses['1'] == pytest.approx([0.5 * 2 / 3, 2 / 3, 0.75 * 2 / 3])   # x is 0.5, 0.5 and 1
    assert losses['3'] == pytest.approx([0.5, 1, 0.75])                        # x is 0.5
    assert not model[1]._forward_pre_hooks


def test_the_images_of_unequal_shares():
    dataset = list(range(17))
    sampler = DistributedSampler(dataset, 2, 0)
    loader = DataLoader(dataset, 4, sampler=sampler, drop_last=True)
    assert describe_data(loader, 9, 3, 2) == (
        'data: 17 training images (1 of them twice in every epoch, for equal shares of the processes; 2 of them left '
        'out of every epoch: too few for a last batch), 9 validation images, 3 classes')


def test_the_table_of_convolutions():
    model = binarize.wrap(models.build('sketchanethybrid', 3, channels=1, inpsize=81), 2, 7)
    assert [number for number, binary in inputs_are_binary(model, torch.randn(1, 1, 81, 81)).items() if binary] == [
        2, 3, 4, 5]
    assert model.training
    table = describe(model, 1, 81, CPU)
    assert '6     classifier.conv6  512×256×1×1  binarized  real' in table
