"""Room for batches, used again and again: fresh memory for 32 images of 1024 px costs more than filling it.

Shapes: B images of a batch, S their side in pixels.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from aecnn.data.source import ImageSource


def room_for(num_images: int, size_px: int, out: torch.Tensor | None) -> torch.Tensor:
    """Gives `out` where it fits, new room where it is None.

    Raises:
        ValueError: `out` has another shape, another type, or gaps.
    """
    shape = (num_images, 1, size_px, size_px)
    if out is None:
        return torch.empty(shape, dtype=torch.uint8)
    if out.shape != shape or out.dtype != torch.uint8 or not out.is_contiguous():
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, expected contiguous uint8 {list(shape)}")
    return out


class DeviceReader:
    """Reads batches of one source onto a device through one buffer, which on the way to a GPU is pinned.

    Args:
        images: Where the batches come from.
        device: Where they go.
    """

    def __init__(self, images: "ImageSource", device: torch.device) -> None:
        self._images, self._device = images, device
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None  # reached when the device has taken what the buffer holds

    def read(self, rows: npt.NDArray[np.integer]) -> torch.Tensor:
        """Gives [B, 1, S, S] uint8 on the device; on the CPU it is the buffer itself, and true until the next read."""
        if self._copied is not None:
            self._copied.synchronize()
        batch = self._images.read(rows.astype(np.int64), out=self._room(len(rows)))
        if self._device.type != "cuda":
            return batch.to(self._device)
        on_device = batch.to(self._device, non_blocking=True)
        self._copied = torch.cuda.current_stream(self._device).record_event()
        return on_device

    def _room(self, num_images: int) -> torch.Tensor:
        if num_images > len(self._buffer):
            shape = (num_images, 1, self._images.size_px, self._images.size_px)
            self._buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return self._buffer[:num_images]
