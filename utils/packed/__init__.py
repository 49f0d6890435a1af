"""Packed networks: one bit per binarized weight in the file, and arithmetic on bits where inputs
are binarized too.

    export.py       a trained network -> tensors and bits; the size table of an export
    format.py       tensors and bits <-> the file, NAME.dab; encoding.py has the bytes of each
    network.py      the file -> a network that computes with bits
    modules.py      its layers, BinaryUnit, PooledConv2d and ExpandedConv2d
    threshold.py    BatchNorm and sign as one comparison
    ops.py          signs in 64-bit words and their convolution; kernel/ is the same in C++

    write('model.dab', description, pack(model))
    description, network = load('model.dab')
    network = on_bits(model)        # the same without a file
"""
from .encoding import Bits
from .export import pack, size_table
from .format import Description, build_on_meta, is_packed, write
from .modules import BinaryUnit, ExpandedConv2d, PooledConv2d
from .network import assemble, load, on_bits

__all__ = ['BinaryUnit', 'Bits', 'Description', 'ExpandedConv2d', 'PooledConv2d', 'assemble',
           'build_on_meta', 'is_packed', 'load', 'on_bits', 'pack', 'size_table', 'write']
