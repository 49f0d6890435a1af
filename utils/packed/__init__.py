"""Packed networks: one bit per binarized weight in the file, and arithmetic on bits where inputs
are binarized too.

    format.py       tensors and bits <-> the file, NAME.dab
    network.py      a trained network -> tensors and bits -> a network that computes with bits
    modules.py      its layers, BinaryUnit, PooledConv2d and ExpandedConv2d
    ops.py          signs in 64-bit words and their convolution, by the C++ in kernel/

    write('model.dab', description, pack(model))
    description, network = load('model.dab')
    network = on_bits(model)        # the same without a file
"""
from .format import Bits, Description, build_on_meta, is_packed, write
from .modules import BinaryUnit, ExpandedConv2d, PooledConv2d
from .network import assemble, load, on_bits, pack

__all__ = ['BinaryUnit', 'Bits', 'Description', 'ExpandedConv2d', 'PooledConv2d', 'assemble',
           'build_on_meta', 'is_packed', 'load', 'on_bits', 'pack', 'write']
