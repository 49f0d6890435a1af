"""What a network is made of, measured rather than declared."""
import torch

from .binarize import binarization, convolutions, weight_bits


@torch.no_grad()
def inputs_are_binary(model, sample):
    """{number of a convolution: whether its input is ±1 everywhere} in evaluation mode on a sample."""
    numbers = {conv: number for number, _, conv in convolutions(model)}
    binary = {}

    def look(conv, inputs):
        binary[numbers[conv]] = bool((inputs[0].abs() == 1).all())

    hooks = [conv.register_forward_pre_hook(look) for conv in numbers]
    was_training = model.training
    model.eval()(sample)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return binary


def describe(model, channels, inpsize, device, verbose=False):
    """Device, table of the convolutions, parameters, and the memory of the binarized weights."""
    binary_inputs = inputs_are_binary(model, torch.zeros(1, channels, inpsize, inpsize, device=device))
    rows = [('conv', 'name', 'shape', 'weights', 'inputs')]
    for number, name, conv in convolutions(model):
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        rows.append((str(number), name, '×'.join(map(str, shape)),
                     'binarized' if binarization(conv) else 'real',
                     'binarized' if binary_inputs[number] else 'real'))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f'device: {torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}']
    lines += [str(model)] if verbose else []
    lines += ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f'parameters: {sum(parameter.numel() for parameter in model.parameters()):,}')
    weights, bits = weight_bits(model)
    lines.append(f'binarized weights: {weights:,} in {bits:,} bits against {32 * weights:,} in float32, '
                 f'{32 * weights / bits:.1f} times smaller' if weights else
                 'binarized weights: none (--binaryWeight binarizes them)')
    return '\n'.join(lines)


def loss_table(losses):
    """The table of --calculateBinarizationLosses."""
    rows = [f'{"sign layer":32} {"RMSE":>10} {"normalized":>10} {"1-square":>10}']
    rows += [f'{name:32} ' + ' '.join(f'{value:10.4f}' for value in values) for name, values in losses.items()]
    return '\n'.join(rows)
