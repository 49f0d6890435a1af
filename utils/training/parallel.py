"""Training under torchrun: one process per device, NCCL or XCCL on GPUs, Gloo on CPUs."""
import contextlib
import os
import threading
import warnings

import torch
from torch import distributed, nn
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from utils.system import console, devices, errors
from utils.binarize import Method
from utils.system.errors import InputError, RunError, processes_of_torchrun

BACKENDS = {'cpu': 'gloo', 'cuda': 'nccl', 'xpu': 'xccl'}
WAITING = 5     # seconds after which a process says that it waits for the others


def start(name: str = 'auto') -> torch.device:
    """Join the other processes, if torchrun started any; returns this process's device.

    name: of --device. Raises InputError where that is missing and where there are fewer GPUs than
    processes, RunError where the others cannot be reached.
    """
    device = device_of_rank(devices.choose(name))
    if processes_of_torchrun() > 1 and not distributed.is_initialized():
        notice = threading.Timer(WAITING, warn_of_waiting)
        notice.daemon = True
        notice.start()
        errors.let_every_process_speak(True)
        try:
            distributed.init_process_group(BACKENDS[device.type], **fresh_store())
            errors.let_every_process_speak(False)
        except (ValueError, RuntimeError) as error:
            first_line = str(error).splitlines()[0]
            raise RunError(f'the processes of torchrun cannot be joined (without torchrun, unset '
                           f'WORLD_SIZE): {first_line}') from error
        finally:
            notice.cancel()
    return device


def warn_of_waiting():
    others = processes_of_torchrun() - 1
    place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    warnings.warn(f'waiting for {others} other process{"es" if others > 1 else ""} of torchrun at '
                  f'{place} (without torchrun, unset WORLD_SIZE)')


def device_of_rank(device: torch.device) -> torch.device:
    """Select this rank's device."""
    under_torchrun = processes_of_torchrun() > 1
    if under_torchrun and device.type not in BACKENDS:
        raise InputError(f'--device={device}: torchrun is for {", ".join(BACKENDS)}')
    if under_torchrun and device.index is not None:
        raise InputError(f'--device={device}: torchrun gives each process a GPU of its own: write '
                         f'--device={device.type}')
    if device.type in devices.NUMBERED:
        if device.index is None:
            number = int(os.environ.get('LOCAL_RANK', 0)) if under_torchrun else 0
            device = torch.device(device.type, number)
        found = devices.count(device.type)
        if device.index >= found:
            raise InputError('torchrun: this machine has fewer GPUs than processes: give '
                             f'--nproc_per_node={found}, or less')
        torch.get_device_module(device).set_device(device)
    return device


def fresh_store() -> dict:
    """The arguments of init_process_group after a restart by torchrun on one machine, else {}.

    The store of torchrun still has the addresses of the processes before the restart.
    """
    restarts = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if restarts == '0' or os.environ.get('GROUP_WORLD_SIZE') != '1':   # machines count differently
        return {}
    store, rank_, world_size = next(distributed.rendezvous('env://'))
    store = distributed.PrefixStore(f'restart {restarts}', store)
    return {'store': store, 'rank': rank_, 'world_size': world_size}


def stop():
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def say(text: str):
    """Print a text, once for all processes."""
    if rank() == 0:
        console.show(text)


def gather(value: object) -> list:
    """The values of all processes, in the order of their ranks."""
    if not distributed.is_initialized():
        return [value]
    values: list = [None] * processes()
    distributed.all_gather_object(values, value)
    return values


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def replicate(model: nn.Module, device: torch.device, syncBN: bool = False) -> nn.Module:
    """The model as training calls it; several processes average its gradients."""
    if not distributed.is_initialized():
        return model
    if syncBN:
        model = SyncBatchNorm.convert_sync_batchnorm(model)
    device_ids = None if device.index is None else [device.index]
    # A learned value that a method uses in its mask alone has no gradient.
    learned = any(isinstance(module, Method) and [*module.parameters()]
                  for module in model.modules())
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=learned)


def no_sync(replica: nn.Module) -> contextlib.AbstractContextManager:
    """The context of a forward and a backward pass whose gradients are not averaged yet."""
    return replica.no_sync() if distributed.is_initialized() else contextlib.nullcontext()


def broadcast_buffers(model: nn.Module):
    """Copy the BatchNorm statistics of the first rank to all."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
