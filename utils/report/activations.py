"""The section on what sign layers lose of their inputs, and the hybrids which that suggests."""
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import models
from models.blocks import Sign, layer_string
from utils.activations import MEASURES, binarization_losses
from utils.binarize import convolutions
from utils.record.progress import Progress

from . import figures
from .hybrids import BINARY, Costs, errors_per_cost, upper_group, worst_first, worst_third
from .page import Page

DECISIVE = 'normalized RMSE'    # the measure that the first rule goes by
RULES = 'error', 'error and cost'
ALL_REAL = 'all inputs real'     # where the family has no such network


def add_activations(page: Page, model: nn.Module, flags: dict, images: Subset):
    """images: items (tensor, label), all of which are measured."""
    loader = DataLoader(images, flags['testbatchsize'])
    progress = Progress('sign layers', len(loader))
    by_name = binarization_losses(model, loader, torch.device('cpu'), progress)
    losses = {number: by_name[name] for name, number in numbered_signs(model).items()}
    costs = Costs(model, images[0][0])
    scores = errors_per_cost(losses, costs.by_number)
    kept = dict(zip(RULES, (worst_third(losses, DECISIVE), upper_group(scores))))
    add_measures(page, losses, scores, costs, kept, len(images))
    add_rules(page, losses, kept)
    add_hybrids(page, flags['model_def'], costs, frozenset(losses), kept)


def numbered_signs(model: nn.Module) -> dict[str, int]:
    """{name of a sign layer: number of the convolution that is registered next}."""
    numbers = {conv: number for number, _, conv in convolutions(model)}
    found, waiting = {}, []
    for name, module in model.named_modules():
        if isinstance(module, Sign):
            waiting.append(name)
        elif module in numbers:
            found |= dict.fromkeys(waiting, numbers[module])
            waiting = []
    return found


def add_measures(page: Page, losses: dict, scores: dict, costs: Costs, kept: dict, images: int):
    """What the layers lose: a picture, and a table."""
    of_normal = math.sqrt(2 - 2 * math.sqrt(2 / math.pi))
    page.text('A sign layer makes +1 or −1 of every number x that enters its convolution. What '
              f'that loses, averaged over {images} validation images: RMSE is the root of the mean '
              'of (sign(x) − x)², normalized RMSE the root of that mean over the mean of x², '
              'one-minus-square the mean of |1 − clamp(x, −1, 1)²|. A standard normal x would have '
              f'a normalized RMSE of {of_normal:.3f}. The error per cost is the mean of '
              '(sign(x) − x)² over the multiply-adds of the convolution for one image, and 1 for '
              'the layer where it is largest.')
    order = worst_first(losses, DECISIVE)
    by_measure = {measure: [losses[number][column] for number in order]
                  for column, measure in enumerate(MEASURES)}
    largest = max(scores.values())
    relative = {number: score / largest for number, score in scores.items()}
    page.figure('activations', 'What sign layers lose (no unit), and that per cost (relative, on a '
                f'logarithmic axis), sorted by {DECISIVE}, the largest at the top. Shaded: the '
                f'inputs that a rule suggests keeping real, left by {RULES[0]}, right by '
                f'{RULES[1]}.',
                figures.activations(order, by_measure, kept[RULES[0]],
                                    [relative[number] for number in order], kept[RULES[1]]))
    rows = [(f'convolution {number}', *(f'{value:.4f}' for value in losses[number]),
             f'{costs.by_number[number] / 1e6:,.2f}', f'{relative[number]:.4f}',
             *('✓' if number in kept[rule] else '' for rule in RULES)) for number in order]
    header = ['input of', *MEASURES, 'multiply-adds, millions', 'error per cost',
              *(f'keep real by {rule}' for rule in RULES)]
    page.long_table(f'The measures of all {len(rows)} sign layers', header, rows)


def add_rules(page: Page, losses: dict, kept: dict):
    """What the two rules are and what is known of the published one."""
    others = '; '.join(f'{measure} would name {layer_string(worst_third(losses, measure))}'
                       for measure in MEASURES if measure != DECISIVE)
    page.text(f'Two rules say which inputs a hybrid network should keep real. By {RULES[0]}: one '
              f'third of them, rounded up, those with the largest {DECISIVE}; it names '
              f'{layer_string(kept[RULES[0]])} ({others}). Normalized, because layers differ in '
              'the scale of their inputs. By error and cost, after Prabhu et al., '
              '“Hybrid Binary Networks” (WACV 2018, arXiv 1804.03867): the layers with the larger '
              'errors per cost; it names '
              f'{layer_string(kept[RULES[1]]) or "none, as all are equal"}. A rule names layers '
              'even where all lose about the same: whether a hybrid is better, only training it '
              'shows.')
    with page.folded('What is known of the published rule, and what was decided here'):
        page.text('Known, from the abstract and the published code (github.com/erilyth/'
                  'HybridBinaryNetworks-WACV18): a metric of input-binarization error and '
                  'computational cost, measured on a trained network with binarized inputs, scores '
                  'the layers, and those with high scores keep real inputs. The scores in the code '
                  'of ResNet-18 are proportional, within 9 %, to the RMSE over the square root of '
                  f'the multiply-adds. A binary multiply-add counts as 1/{BINARY} of a real one.')
        page.text('Decided here, since the text of the paper was not at hand: the formula of the '
                  'error per cost, and that the layers are partitioned by 2-means of its '
                  'logarithms, of which the upper group keeps real inputs. On the published scores '
                  'this gives the hybrid sketchanethybridv2, and resnethybridv218 but for one '
                  'layer more; the published scores of the last two layers of Sketch-A-Net are '
                  'smaller than this formula would make them.')


def add_hybrids(page: Page, model_def: str, costs: Costs, signs: frozenset[int], kept: dict):
    """The suggested hybrids as flags, beside those of the family, and what each costs.

    signs: the convolutions whose inputs are binarized; kept: {rule: those that should be real}.
    """
    family = {name: models.sign_layers(name) for name in models.family(model_def)}
    widest = max(family.values(), key=len)
    hybrids = {f'{model_def}, this one': signs}
    hybrids |= {f'by {rule}': signs.difference(kept[rule]) for rule in RULES}
    if widest:
        real = [ALL_REAL, *(name for name, layers in family.items() if not layers)][-1]
        hybrids |= {name: layers for name, layers in family.items()
                    if layers and layers != signs} | {real: frozenset()}
        page.text('The suggested hybrids, as commands, which name the inputs that stay binarized '
                  '(… stands for the other flags of the run):')
        page.block('\n'.join(f'python3 main.py --model_def={model_def} --binaryWeight '
                             f'--signLayers={layer_string(hybrids[f"by {rule}"])} …'
                             for rule in RULES))
    else:
        hybrids[ALL_REAL] = frozenset()
        page.text(f'{model_def} takes no --signLayers, so that these hybrids need a change of its '
                  'file.')
    page.text('What each would cost for one image, beside the networks of its family, in millions '
              f'of multiply-adds, of {costs.total / 1e6:,.1f} in all. Binary ones have binarized '
              f'weights and inputs. Equivalent: real + binary / {BINARY}, which the authors '
              'count with.')
    page.table(['network', 'inputs kept real', '--signLayers', 'real', 'binary', 'binary, share',
                'equivalent'],
               [hybrid_row(name, layers, widest | signs, costs)
                for name, layers in hybrids.items()])


def hybrid_row(name: str, layers: frozenset[int], all_signs: frozenset[int], costs: Costs) -> tuple:
    cost = costs.with_signs(layers)
    return (name, layer_string(all_signs - layers) or 'none', layer_string(layers) or 'none',
            *(f'{value / 1e6:,.1f}' for value in (cost.real, cost.binary)),
            f'{100 * cost.binary / costs.total:.1f} %', f'{cost.equivalent / 1e6:,.1f}')
