"""One step of the optimiser, in as many passes as the GPU's memory asks for.

Where a batch does not fit, it goes through in equal parts whose gradients add up to the gradient of the whole batch's
mean loss: the same step, since every image's loss counts by itself (`aecnn.model.loss`). Only batch normalisation sees
a difference: its means and variances are those of a part, and its running statistics move once a part.
Shapes: B images in a batch, S = input side in pixels.
"""

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from aecnn.config import TrainingConfig
from aecnn.errors import ModelError
from aecnn.model.autoencoder import count_alive
from aecnn.model.joint import JointAECNN
from aecnn.model.loss import joint_loss

log = logging.getLogger(__name__)

# Most images of one pass, where a batch did not fit; it holds for as long as the model is kept in this process.
_fitting: WeakKeyDictionary[JointAECNN, int] = WeakKeyDictionary()


class TrainingStep:
    """The steps of one training.

    Args:
        model: On its device, in training mode.
        optimizer: Over its parameters.
        training: Loss and precision.
        min_batch_size: Fewest images of one pass.
    """

    def __init__(
        self, model: JointAECNN, optimizer: torch.optim.Optimizer, training: TrainingConfig, *, min_batch_size: int
    ) -> None:
        self._model, self._optimizer, self._training = model, optimizer, training
        self._min_batch_size = min_batch_size
        self._buffers = list(model.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]

    def take(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step on images [B, 1, S, S] with targets [B, 14].

        Returns:
            [4] sums over the batch, on its device: BCE, MSE, alive and lit latent pixels.

        Raises:
            ModelError: The GPU's memory is too small for the smallest pass, or for the optimiser.
        """
        sums = self._gradient(images, targets)
        try:
            self._optimizer.step()
        except torch.OutOfMemoryError as error:
            # Some parameters may have moved: this step cannot be repeated.
            raise ModelError(f"the GPU's memory is too small for the optimiser's state: {_REMEDY}") from error
        return sums

    def _gradient(self, images: Tensor, targets: Tensor) -> Tensor:
        """Leaves the batch's gradient in the parameters; passes that do not fit are repeated with smaller ones."""
        while True:
            sizes = part_sizes(len(images), _fitting.get(self._model, len(images)), min_batch_size=self._min_batch_size)
            random = self._keep(images.device)
            try:
                return self._accumulate(images, targets, sizes)
            except torch.OutOfMemoryError:
                # Repeated outside of this block: the exception's traceback holds the memory of the failed pass.
                self._optimizer.zero_grad(set_to_none=True)
            self._restore(images.device, random)
            _fitting[self._model] = self._smaller(len(images), max(sizes))
            torch.cuda.empty_cache()

    def _accumulate(self, images: Tensor, targets: Tensor, sizes: list[int]) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        parts = zip(torch.split(images, sizes), torch.split(targets, sizes), strict=True)
        return torch.stack([self._pass(*part, len(images)) for part in parts]).sum(dim=0)

    def _pass(self, images: Tensor, targets: Tensor, num_in_batch: int) -> Tensor:
        """Adds the share of some of a batch's images to the gradient."""
        precision, weight = self._training.precision, self._training.bce_weight
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = self._model(images)
        loss = joint_loss(output, images, targets, bce_weight=weight)
        torch.autograd.backward(loss.total * (len(images) / num_in_batch))
        alive, lit = count_alive(output.latent.detach(), images)
        return torch.stack([loss.bce.detach() * len(images), loss.mse.detach() * len(images), alive, lit])

    def _smaller(self, num_images: int, largest: int) -> int:
        size = largest // 2
        if size < 1 or max(part_sizes(num_images, size, min_batch_size=self._min_batch_size)) >= largest:
            raise ModelError(f"the GPU's memory is too small for {largest} image(s) at a time: {_REMEDY}")
        log.warning(
            "The GPU's memory is too small for %d images at a time: each batch now goes through in parts of %d at "
            "most, with the same gradient (batch normalisation, where the model has it, sees the parts one by one)",
            largest,
            size,
        )
        return size

    def _keep(self, device: torch.device) -> list[Tensor]:
        """Keeps what a pass changes besides gradients: running statistics, and the state of dropout's draws."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])

    def _restore(self, device: torch.device, random: list[Tensor]) -> None:
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        torch.set_rng_state(random[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(random[1], device)


_REMEDY = "end other programs on it, use a larger GPU or device: cpu, or ask the centre for smaller images or model"


def part_sizes(num_images: int, most: int, *, min_batch_size: int) -> list[int]:
    """Gives how many images go through at a time: about equal parts of at most `most`, if the minimum allows it.

    Args:
        num_images: Of the batch.
        most: Of one pass; parts are larger where they would have fewer than the minimum.
        min_batch_size: Fewest of one pass.
    """
    wanted = -(-num_images // most)
    count = max(1, min(wanted, num_images // min_batch_size))
    return [num_images * (part + 1) // count - num_images * part // count for part in range(count)]
