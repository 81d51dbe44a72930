"""Where the classifier looks for a finding: Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2), by Captum.

A heatmap is the ReLU of the sum of a stage's feature maps, each weighted by the gradient of the finding's logit,
averaged over the map. HiResCAM (Draelos & Carin, arXiv:2011.08891) leaves out the average. At the last stage of a
ResNet and of Inception-v3 both are the same, for these end in a mean over the map and one linear layer. At earlier ones
the average blurs: the model of the demo then points into a lesion in 18 % of the tries, without it in 25 % (chance 8 %;
benchmarks/results/heatmaps.md).

The stage is the backbone's deepest whose map has `MIN_CELLS` cells a side. On radiographs of 896 px that is the last
one (7 × 7 cells for DenseNet and ResNet); on small ones the last would be a single cell, which points nowhere.

A heatmap says which part of the picture moved a logit, not that the finding is there, nor that it is the reason.

Shapes: N images, S = ``input_size_px``, h = cells a side, H and W of a radiograph as its file has it.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from aecnn.config import DOWNSCALE, HeatmapMethod, ImagesConfig
from aecnn.data.augmentation import centre_margin
from aecnn.errors import ModelError
from aecnn.findings import finding_index
from aecnn.model.joint import JointAECNN

METHOD_NAMES: dict[HeatmapMethod, str] = {"grad-cam": "Grad-CAM", "hires-cam": "HiResCAM"}
MIN_CELLS = 7
STAGES = {  # a layer of the backbone, and how many pixels of the latent one cell of its map is; deepest first
    "features": (
        ("features", 32),
        ("features.transition3.relu", 16),
        ("features.transition2.relu", 8),
        ("features.transition1.relu", 4),
    ),
    "layer4": (("layer4", 32), ("layer3", 16), ("layer2", 8), ("layer1", 4)),
    "Mixed_7c": (("Mixed_7c", 1),),  # its picture always has 299 px, its map 8 × 8 cells
}


def can_explain() -> bool:
    """Says whether the extra that explaining needs is installed."""
    return find_spec("captum") is not None


def require_captum() -> None:
    """Refuses, before the work, to explain without the extra.

    Raises:
        ModelError: The extra ``explain`` is not installed.
    """
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ModelError(f"Grad-CAM needs an extra ({error}): pip install 'aecnn-federated[explain]'") from error


def explain_images(
    model: JointAECNN, images: Tensor, findings: Sequence[str], *, method: HeatmapMethod = "grad-cam"
) -> Tensor:
    """Gives where the model looked in each image for the finding named.

    Args:
        model: Judged in evaluation mode; its training mode is put back afterwards.
        images: [N, 1, S, S] in [0, 1], as `to_input` gives them.
        findings: [N] one finding an image.
        method: How the maps are weighted.

    Returns:
        [N, S, S] on the model's device, in [0, 1]: relative to the strongest point of each image; all 0 where nothing
        in the image speaks for the finding.

    Raises:
        ModelError: The extra ``explain`` is not installed.
    """
    require_captum()
    from captum.attr import LayerGradCam, LayerGradientXActivation

    attribution = LayerGradCam if method == "grad-cam" else LayerGradientXActivation
    was_training = model.training
    model.eval()
    layer = _explained_layer(model, input_size_px=images.shape[-1])
    with torch.no_grad():
        latent = model.encode(images.to(model.imagenet_mean.device))
    with torch.enable_grad():
        maps = attribution(lambda codes: model.classify(codes)[0], layer).attribute(
            latent, [finding_index(name) for name in findings]
        )  # [N, 1, h, h] of Grad-CAM, summed already; [N, C, h, h]
    model.train(was_training)
    cells = maps.detach().sum(dim=1, keepdim=True).relu()
    heatmaps = F.interpolate(cells, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    peaks = heatmaps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peaks > 0, heatmaps / peaks, 0.0)


def cells_a_side(model: JointAECNN, *, input_size_px: int) -> int:
    """Gives h, the cells a side of the heatmaps of such images before they are smoothed."""
    sides: list[int] = []
    layer = _explained_layer(model, input_size_px=input_size_px)
    hook = layer.register_forward_hook(lambda _layer, _inputs, maps: sides.append(int(maps.shape[-1])))
    was_training = model.training
    with torch.no_grad():
        blank = torch.zeros(1, 1, input_size_px, input_size_px, device=model.imagenet_mean.device)
        model.eval().classify(model.encode(blank))
    model.train(was_training)
    hook.remove()
    return sides[0]


def on_radiograph(
    heatmap: NDArray[np.floating], images_config: ImagesConfig, *, height_px: int, width_px: int
) -> NDArray[np.float32]:
    """Gives a heatmap as large as the radiograph, undoing the crop, the scaling and the borders that made it square.

    Args:
        heatmap: [S, S].
        images_config: How the radiograph became the model's input.
        height_px: H of the radiograph.
        width_px: W of the radiograph.

    Returns:
        [H, W], NaN where the radiograph was cropped away, so that the model did not see it.
    """
    side = max(height_px, width_px)
    margin = centre_margin(images_config.size_px, images_config.input_size_px)
    scale = side / images_config.size_px
    begin, end = round(margin * scale), round((margin + images_config.input_size_px) * scale)
    seen = torch.from_numpy(np.asarray(heatmap, dtype=np.float32))[None, None]
    square = np.full((side, side), np.nan, dtype=np.float32)
    square[begin:end, begin:end] = F.interpolate(seen, size=(end - begin,) * 2, mode="bilinear", align_corners=False)
    top, left = (side - height_px) // 2, (side - width_px) // 2
    return square[top : top + height_px, left : left + width_px]


def _explained_layer(model: JointAECNN, *, input_size_px: int) -> nn.Module:
    return model.classifier.get_submodule(_stage(model, input_size_px=input_size_px)[0])


def _stage(model: JointAECNN, *, input_size_px: int) -> tuple[str, int]:
    """The layer's name and the latent's pixels a cell; the shallowest where even that map is smaller."""
    stages = next((stages for last, stages in STAGES.items() if hasattr(model.classifier, last)), None)
    if stages is None:
        raise ModelError(
            f"{type(model.classifier).__name__} has none of the layers that Grad-CAM is known to work on here "
            f"({', '.join(STAGES)}): use a ResNet, a DenseNet or Inception-v3"
        )
    latent_px = input_size_px / DOWNSCALE
    return next((stage for stage in stages if latent_px / stage[1] >= MIN_CELLS), stages[-1])
