"""Which device a hospital trains on."""

import torch

from aecnn.errors import ModelError


def resolve_device(name: str) -> torch.device:
    """Gives the device for a name: ``auto`` takes a GPU where there is one.

    Raises:
        ModelError: The device is named and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is not one: use auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} is of a kind this software was not made for: use auto, cpu or cuda")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ModelError(
            f"device {name!r} is not on this machine ({torch.cuda.device_count()} GPU(s) found): use auto or cpu"
        )
    return device
