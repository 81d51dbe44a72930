"""Which heatmap points best, Grad-CAM or HiResCAM, and at which stage: the pointing game on phantoms.

    python benchmarks/heatmaps.py --checkpoint runs/…/global.safetensors --data runs/demo-data

Every lesion of the test images is one try. It is where the picture without noise changes when that lesion alone is left
out, by at least a quarter of the largest change; a heatmap hits where its strongest point lies in the smallest box
around that. The eight findings of ``BBox_List_2017.csv`` are tried. Results: ``results/heatmaps.md``.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor

from aecnn.config import PhantomConfig
from aecnn.data.augmentation import to_input
from aecnn.data.phantom.population import PRESETS, Exposure, Patient, draw_population, generator
from aecnn.data.phantom.render import expose_body, exposure_generator
from aecnn.data.phantom.style import display_of, scanner_style
from aecnn.data.phantom.write import REPORT_NAME, image_name
from aecnn.evaluation.explain import STAGES
from aecnn.evaluation.pointing_game import Box, Target, Try, hit_rate, point
from aecnn.findings import FINDINGS, finding_index
from aecnn.model.checkpoint import load_checkpoint
from aecnn.model.joint import JointAECNN

CHANGED = 0.25  # of the largest change, from which on a pixel belongs to a lesion


def main() -> None:
    """Prints a table, a row a stage and method, and below it how sure the difference of the methods is."""
    options = _options()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(options.checkpoint)
    model, images = checkpoint.build().eval(), checkpoint.metadata.images
    targets = list(lesions_of(PhantomConfig(**json.loads((options.data / REPORT_NAME).read_text())["config"])))
    print("| stage | cells | method | hits | of | rate | 95 % interval | by chance | at the centre |")
    print("|---|---|---|---|---|---|---|---|---|")
    last = next(name for name in STAGES if hasattr(model.classifier, name))
    compared: list[str] = []
    for stage, _ in STAGES[last]:
        tries: dict[str, list[Try]] = {"Grad-CAM": [], "HiResCAM": []}
        side = 0
        for target in targets:
            with Image.open(options.data / "images" / target.image) as picture:
                image = to_input(torch.from_numpy(np.array(picture))[None, None], images)
            maps, gradient = maps_and_gradient(model, stage, image, target.finding)
            side = maps.shape[-1]
            for method, weights in (("Grad-CAM", gradient.mean(dim=(2, 3), keepdim=True)), ("HiResCAM", gradient)):
                cells = (weights * maps).sum(dim=1, keepdim=True).relu()
                heatmap = F.interpolate(cells, size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
                tries[method].append(point((heatmap / heatmap.max().clamp(min=1e-30)).numpy(), target, images))
        for method, of_method in tries.items():
            rate = hit_rate(of_method)
            low, high = rate.interval
            figures = f"{rate.hit_rate:.3f} | {low:.3f} – {high:.3f} | {rate.chance:.3f} | {rate.centre_hit_rate:.3f}"
            print(f"| {stage} | {side} × {side} | {method} | {rate.num_hits} | {rate.num_images} | {figures} |")
        only = [
            sum(mine.is_hit and not other.is_hit for mine, other in zip(*pair, strict=True))
            for pair in (tries.values(), reversed(tries.values()))
        ]
        p_value = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0  # McNemar's exact test
        compared.append(f"{stage}: hit by Grad-CAM alone {only[0]}, by HiResCAM alone {only[1]}, p = {p_value:.2g}")
    print("\n" + "\n".join(compared))


def lesions_of(config: PhantomConfig) -> Iterator[Target]:
    """Gives every lesion of the test images with the box it lies in."""
    for patient in draw_population(config):
        for exposure in patient.exposures if patient.split == "test" else ():
            for finding in exposure.findings:
                if finding in FINDINGS[:8]:
                    box = _box(patient, exposure, finding, config)
                    yield Target(image_name(patient.number, exposure.index), finding, (box,))


def maps_and_gradient(model: JointAECNN, stage: str, image: Tensor, finding: str) -> tuple[Tensor, Tensor]:
    """Gives a stage's maps [1, C, h, h] of an image and the gradient of the finding's logit in them."""
    kept: list[Tensor] = []

    def keep(_layer: object, _inputs: object, maps: Tensor) -> Tensor:
        kept.append(maps)
        return maps.clone()  # what comes next may change its input in place

    hook = model.classifier.get_submodule(stage).register_forward_hook(keep)
    logits = model.classify(model.encode(image))[0]
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, finding_index(finding)], kept)
    return kept[0].detach(), gradient


def _box(patient: Patient, exposure: Exposure, finding: str, config: PhantomConfig) -> Box:
    style = scanner_style(patient.hospital, generator(config, patient.hospital, "scanner"))
    kept = tuple(lesion for lesion in exposure.lesions if lesion.finding != finding)
    pictures = [
        display_of(
            expose_body(
                patient,
                exposure,
                exposure_generator(patient, exposure, config),
                lesions=lesions,
                look=PRESETS[config.preset].look,
                size_px=config.image_size_px,
            ),
            style,
        )
        for lesions in (exposure.lesions, kept)
    ]
    change = np.abs(pictures[0] - pictures[1])
    rows, columns = np.nonzero(change >= CHANGED * change.max())
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return Box(*(float(corner) / config.image_size_px for corner in corners))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder drawn by `aecnn phantom`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
