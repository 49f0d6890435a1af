"""A device of its own kind, 'apple', that computes on the CPU but has no float64, like Apple's
GPUs.

Tensors of other devices mixed with its own are an error, but for numbers. To be used in a process
of its own."""
import contextlib

import torch
import torch.utils.backend_registration
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

torch.utils.backend_registration._setup_privateuseone_for_python_backend('apple')
DEVICE = torch.device('apple:0')
torch.apple.mem_get_info = lambda device: (2 ** 34, 2 ** 34)
torch.apple.get_amp_supported_dtype = lambda: [torch.bfloat16]


class OnDevice(Tensor):
    """Lies on DEVICE; .real is its content on the CPU."""

    @staticmethod
    def __new__(cls, real):
        if real.dtype in (torch.float64, torch.complex128):
            raise TypeError('this device has no float64')
        tensor = Tensor._make_wrapper_subclass(cls, real.size(), strides=real.stride(),
                                               storage_offset=real.storage_offset(),
                                               dtype=real.dtype, layout=real.layout, device=DEVICE)
        tensor.real_ = real
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.real_.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def dispatch(func, args, kwargs):
    name, given = func.name().partition('.')[0], [leaf
                                                  for leaf in tree_leaves((args, kwargs))
                                                  if isinstance(leaf, Tensor)]
    ours = {id(tensor.real_): tensor for tensor in given if isinstance(tensor, OnDevice)}
    if ours and name not in ('aten::copy_', 'aten::_to_copy') and any(tensor.dim()
                                                                      for tensor in given
                                                                      if not isinstance(
                                                                          tensor, OnDevice)):
        raise RuntimeError(f'{name}: tensors on two devices')
    here = isinstance(args[0], OnDevice) if name == 'aten::copy_' else bool(ours)
    if kwargs.get('device') is not None:
        here, kwargs = torch.device(
            kwargs['device']).type == DEVICE.type, kwargs | {'device': 'cpu'}
    result = func(*tree_map_only(OnDevice, lambda tensor: tensor.real_, args),
                  **tree_map_only(OnDevice, lambda tensor: tensor.real_, kwargs))

    def wrapped(tensor):
        if id(tensor) in ours or any(tensor is other for other in given):   # changed in place
            return ours.get(id(tensor), tensor)
        return OnDevice(tensor) if here else tensor
    return tree_map_only(Tensor, wrapped, result)


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def main_there(*commands):
    """main.main of each command, on this device under --device=mps."""
    import main
    from utils.system import devices
    devices.choose = lambda name='auto': DEVICE if name == 'mps' else torch.device('cpu')
    devices.has_float64 = lambda device: False      # nor the CPU, whose results are the same then
    for command in commands:
        device = Dispatch() if '--device=mps' in command else contextlib.nullcontext()
        with device:
            # for torch.tensor(…, device=)
            torch._C._set_only_lift_cpu_tensors(isinstance(device, Dispatch))
            main.main(command)
