"""What PyTorch computes on: the device of a command, and in what devices differ."""
import torch
from torch import Tensor, nn

from utils.system.errors import InputError

GPUS = {'cuda': 'NVIDIA or AMD GPU', 'xpu': 'Intel GPU', 'mps': 'Apple GPU'}
NUMBERED = 'cuda', 'xpu'    # of which a machine can have several


def choose(name: str = 'auto') -> torch.device:
    """The device of this name; auto: an NVIDIA or AMD GPU where there is one, else the CPU.

    Raises InputError where the machine does not have it.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    device = torch.device(name)
    if device.type != 'cpu' and (device.index or 0) >= (found := count(device.type)):
        numbers = f' but {", ".join(f"{device.type}:{number}" for number in range(found))}'
        raise InputError(f'--device={name}: PyTorch {torch.__version__} finds no '
                         f'{GPUS[device.type]} on this machine{numbers if found else ""}')
    return device


def count(kind: str) -> int:
    """How many devices of a kind of GPUS PyTorch finds."""
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device. The host waits for the copy, but for kind cuda.

    Elsewhere the tensor could be freed while it is copied (PyTorch's issue 189690, of mps).
    """
    return tensor.to(device, non_blocking=device.type == 'cuda')


def has_float64(device: torch.device) -> bool:
    """Whether it computes in float64: Apple's GPUs do not, nor do some of Intel's."""
    if device.type == 'xpu':
        return torch.xpu.get_device_properties(device).has_fp64
    return device.type != 'mps'


def trains_fast_in(dtype: str) -> bool:
    """Whether this processor has the instructions that training in bfloat16 or float16 needs.

    Those of AMX, AVX-512 and Arm. oneDNN computes the weight gradients of float16 with AMX only.
    """
    names = {'bfloat16': ('amx_bf16', 'avx512_bf16', 'bf16'), 'float16': ('amx_fp16',)}[dtype]
    return any(torch.cpu.get_capabilities().get(name) for name in names)


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU can still give."""
    if device.type == 'mps':
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.get_device_module(device).mem_get_info(device)[0]


def float32_in(device: torch.device) -> dict[str, str]:
    """Return the precision in which a CUDA GPU computes float32 convolutions and matrix products.

    `allow_tf32`, the older way to ask, raises an error where the newer settings differ (PyTorch's
    notes on CUDA semantics, "TensorFloat-32"). GPUs before Ampere have no TF32.
    """
    has_tf32 = torch.cuda.get_device_capability(device) >= (8, 0)
    settings = {'convolutions': torch.backends.cudnn.conv,
                'matrix products': torch.backends.cuda.matmul}
    return {what: 'TF32' if has_tf32 and backend.fp32_precision == 'tf32' else 'float32'
            for what, backend in settings.items()}


def random_states() -> dict[str, list[Tensor]]:
    """The random state of every GPU, by kind: of cuda always, of others where they are."""
    states = {'cuda': torch.cuda.get_rng_state_all()}
    if count('xpu'):
        states['xpu'] = torch.xpu.get_rng_state_all()
    if count('mps'):
        states['mps'] = [torch.mps.get_rng_state()]
    return states


def restore_random_states(states: dict[str, list[Tensor]]):
    """Continue the random numbers of random_states(), where as many GPUs of the kind are here."""
    for kind in GPUS.keys() & states.keys():
        if states[kind] and len(states[kind]) == count(kind):
            for number, state in enumerate(states[kind]):
                where = () if kind == 'mps' else (number,)
                torch.get_device_module(kind).set_rng_state(state, *where)


# Where C = 1 or H = W = 1, contiguous and channels-last are the same in memory, and PyTorch chooses
# by the strides, with which pooling can be 20 times slower and rounding differs.
def channels_first(x: Tensor) -> Tensor:
    """x (N, C, H, W) in contiguous memory, with the strides of that order for every shape."""
    return x.reshape(-1).view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    """x in channels_last memory, with the strides of that order for every shape."""
    return channels_first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def train_channels_last(model: nn.Module, device: torch.device):
    """Make the model compute on channels-last activations while it is in training mode.

    BatchNorm computes on contiguous ones on the CPU, where PyTorch (2.14) adds up channels-last
    inputs one by one in float32: the gradient of a network was wrong by up to 19 %.
    """
    model.register_forward_pre_hook(
        lambda model, inputs: channels_last(inputs[0]) if model.training else None)
    for layer in model.modules() if device.type == 'cpu' else ():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda layer, inputs: channels_first(inputs[0]) if layer.training else None)
            layer.register_forward_hook(
                lambda layer, _, y: channels_last(channels_first(y)) if layer.training else None)
