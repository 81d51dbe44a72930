"""A run folder as a finished federation leaves it, and the page that a report makes of it, read as a browser would."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aecnn.config import (
    DataConfig,
    FederationConfig,
    ImagesConfig,
    ModelConfig,
    PartitionConfig,
    PhantomConfig,
    SimulationConfig,
    TrainingConfig,
    dump_config,
)
from aecnn.evaluation.metrics import score
from aecnn.evaluation.predictions import write_predictions, write_targets
from aecnn.evaluation.report import write_report
from aecnn.findings import FINDINGS

HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")
NUM_ROUNDS = 6
PREVALENCE = np.array([0.13, 0.04, 0.18, 0.2, 0.07, 0.07, 0.03, 0.1, 0.07, 0.04, 0.04, 0.03, 0.05, 0.0])
SEPARATION = np.array([1.1, 1.9, 1.4, 0.8, 1.2, 1.0, 0.9, 1.5, 1.0, 1.6, 1.8, 1.2, 1.1, 1.0])  # of the score's means


def write_run(folder: Path, *, num_images: int = 600) -> Path:
    """Writes a complete run; no test image has a Hernia, so that one finding is undefined."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    targets = (rng.random((num_images, len(FINDINGS))) < PREVALENCE).astype(np.float32)
    scores = rng.normal(targets * SEPARATION, 1.0)
    images = [f"{row // 2:08d}_{row % 2:03d}.png" for row in range(num_images)]
    patients = [str(row // 2) for row in range(num_images)]
    write_predictions(folder / "predictions.csv", images, 1.0 / (1.0 + np.exp(2.5 - scores)))
    write_targets(folder / "targets.csv", images, patients, targets)
    metrics = judged_metrics(score(scores, targets, patients).to_json())
    reconstruction = {"psnr_db": 33.81, "ssim": 0.934}
    write_json(
        folder / "metrics.json",
        metrics | {"checkpoint": "global.safetensors", "split": "test", "reconstruction": reconstruction},
    )
    alone = {}
    for name, factor in zip(HOSPITALS, (0.75, 0.55, 0.62), strict=True):
        alone[name] = score(rng.normal(targets * SEPARATION * factor, 1.0), targets, patients).to_json()
    mean = float(np.mean([model["macro_auroc"] for model in alone.values()]))
    write_json(folder / "alone.json", {"hospitals": alone, "mean_macro_auroc": mean, "num_steps": 360})
    write_history(folder / "history.jsonl", events(rng))
    (folder / "config.yaml").write_text(dump_config(configuration()), encoding="utf-8")
    write_examples(folder, rng)
    (folder / "global.safetensors").write_bytes(bytes(2048))
    write_json(folder / "global.json", {"backbone": "densenet121"})
    return folder


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def write_history(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def events(rng: np.random.Generator, *, hospitals: tuple[str, ...] = HOSPITALS) -> list[dict[str, Any]]:
    """Gives the events of a completed run: losses fall, AUROC rises, one hospital is refused once, one missing once."""
    counts = {}
    for name in hospitals:
        num_images = int(rng.integers(300, 900))
        positives = {finding: int(num_images * share) for finding, share in zip(FINDINGS, PREVALENCE, strict=True)}
        counts[name] = {
            "num_train_images": num_images,
            "num_train_patients": num_images // 3,
            "num_validation_images": num_images // 9,
            "num_validation_patients": num_images // 27,
            "positives": positives | {"Hernia": 3},
        }
    lines: list[dict[str, Any]] = [
        {"event": "start", "run": "demo", "started_at": "2025-11-23T10:40:12+00:00", "hospitals": counts},
        _validation(0, rng, counts),
    ]
    for number in range(1, NUM_ROUNDS + 1):
        trained = {
            name: {
                "num_images": count["num_train_images"],
                "num_steps": 60,
                "bce": 0.16 + 0.4 * 0.6**number + 0.02 * rng.random(),
                "mse": 0.0009 + 0.002 * 0.5**number + 0.0002 * rng.random(),
                "latent_alive_fraction": 0.97 + 0.02 * rng.random(),
                "seconds": 9 + 3 * rng.random(),
            }
            for name, count in counts.items()
        }
        line: dict[str, Any] = {
            "event": "round",
            "round": number,
            "seconds": 31.4,
            "hospitals": trained,
            "refused": {},
            "missing": [],
        }
        if number == 3:
            del trained[hospitals[-1]]
            line["refused"] = {hospitals[-1]: "weights are not finite"}
        if number == 4:
            del trained[hospitals[1]]
            line["missing"] = [hospitals[1]]
        lines += [line, _validation(number, rng, counts)]
    end = {
        "event": "end",
        "status": "completed",
        "released_round": 5,
        "finished_at": "2025-11-23T10:44:31+00:00",
        "seconds": 259.0,
        "reason": None,
    }
    return [*lines, judged_event(5, hospitals=hospitals), end]


def _validation(number: int, rng: np.random.Generator, counts: dict[str, Any]) -> dict[str, Any]:
    def score_at(noise: float) -> float:
        return 0.5 + 0.33 * (1 - 0.55**number) + noise * rng.normal()

    hospitals = {
        name: {"macro_auroc": score_at(0.02), "bce": 0.2, "mse": 0.001, "num_images": count["num_validation_images"]}
        for name, count in counts.items()
    }
    return {
        "event": "validation",
        "round": number,
        "macro_auroc": score_at(0.006),
        "findings": {finding: (None if finding == "Hernia" else score_at(0.03)) for finding in FINDINGS},
        "bce": 0.19 + 0.45 * 0.55**number,
        "mse": 0.001 + 0.0021 * 0.5**number,
        "num_images": 200,
        "hospitals": hospitals,
    }


def configuration() -> SimulationConfig:
    return SimulationConfig(
        name="demo",
        data=DataConfig(root=Path("/data/phantom"), phantom=PhantomConfig()),
        partition=PartitionConfig(by="manifest"),
        federation=FederationConfig(num_rounds=NUM_ROUNDS),
        images=ImagesConfig(size_px=128),
        model=ModelConfig(normalisation="group"),
        training=TrainingConfig(local_steps=60),
        train_alone=True,
    )


def write_examples(folder: Path, rng: np.random.Generator, *, num_examples: int = 4) -> None:
    """Writes triptychs of smooth noise, reconstructed as an interpolating decoder would."""
    coarse = rng.integers(0, 256, (num_examples, 8, 8), dtype=np.uint8)
    originals = np.stack([_resized(pixels, 128) for pixels in coarse])
    count, side, _ = originals.shape
    latents = originals.reshape(count, side // 4, 4, side // 4, 4).mean(axis=(2, 4)).astype(np.uint8)
    reconstructions = np.stack([_resized(latent, side) for latent in latents])
    heatmaps = np.stack([_resized(pixels, 128) for pixels in coarse[:, ::-1]])
    pictures = {"original": originals, "latent": latents, "reconstruction": reconstructions, "heatmap": heatmaps}
    np.savez(folder / "examples.npz", allow_pickle=False, **pictures)
    texts = []
    for row in range(count):
        present = [] if row == 1 else [str(name) for name in rng.choice(FINDINGS[:13], size=1 + row % 2, replace=False)]
        chances = {name: float(0.05 + 0.25 * rng.random() + (0.5 if name in present else 0)) for name in FINDINGS}
        explained = max(present or FINDINGS, key=chances.__getitem__)
        texts.append(
            {"image": f"{row:08d}_000.png", "findings": present, "probabilities": chances, "explained": explained}
        )
    write_json(folder / "examples.json", texts)


def _resized(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BILINEAR))


def judged_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Adds intervals, calibration, groups and a baseline to figures, as an evaluation gives them."""
    for name, figures in metrics["findings"].items():
        if figures["auroc"] is None:
            continue
        figures["auroc_ci"] = [figures["auroc"] - 0.05, min(1.0, figures["auroc"] + 0.04)]
        figures["sensitivity_at_specificity"] = {"specificity": 0.9, "sensitivity": 0.417, "threshold": 0.2}
        figures["ece"] = 0.017 if name == "Mass" else 0.031
        figures["calibration"] = [
            {"mean_predicted": 0.04 * k, "observed": 0.05 * k, "num_images": 60} for k in range(4)
        ]
    resampling = {"method": "patient bootstrap", "num_resamples": 1000, "level": 0.95, "seed": 0}
    views = {name: 0.617 if name == "Effusion" else 0.52 for name in FINDINGS if name != "Hernia"}
    return metrics | {
        "macro_auroc_ci": [0.781, 0.842],
        "interval": resampling,
        "ece": 0.029,
        "subgroups": [
            group("sex", "F", 0.812),
            group("sex", "M", 0.795),
            group("age", "0-19", None),
            group("view", "AP", 0.741),
        ],
        "baselines": {"view_position": {"macro_auroc": 0.534, "macro_auroc_ci": [0.51, 0.55], "findings": views}},
    }


def group(attribute: str, name: str, auroc: float | None) -> dict[str, Any]:
    """Gives the figures of a group; a suppressed one where there is no AUROC."""
    told = {"num_images": 211, "num_patients": 97, "macro_auroc_ci": [0.7, 0.85], "ece": 0.044}
    figures = dict.fromkeys(told) if auroc is None else told
    return {"attribute": attribute, "group": name, "is_suppressed": auroc is None, "macro_auroc": auroc, **figures}


def judged_event(round_number: int, *, hospitals: tuple[str, ...] = HOSPITALS) -> dict[str, Any]:
    """Gives how all hospitals judged the released model; nobody has a Hernia, and the first keeps Edema to itself."""
    findings: dict[str, Any] = {}
    for index, name in enumerate(FINDINGS):
        if name == "Hernia":
            lacking = ("auroc", "auroc_ci", "auprc", "ece", "calibration", "roc", "pr", "num_positive", "num_negative")
            findings[name] = dict.fromkeys(lacking)
            continue
        auroc = 0.72 + 0.01 * index
        power = (1 - auroc) / auroc  # TPR = FPR^power has this area
        findings[name] = {
            "auroc": auroc,
            "error_bound": 0.0004,
            "standard_error": 0.03,
            "auroc_ci": [auroc - 0.06, auroc + 0.06],
            "auprc": 0.25,
            "ece": 0.02,
            "sensitivity_at_specificity": {"specificity": 0.9, "sensitivity": 0.5},
            "num_positive": 31,
            "num_negative": 169,
            "calibration": [{"mean_predicted": 0.1 * k, "observed": 0.1 * k, "num_images": 20} for k in range(4)],
            "roc": [[x / 16, (x / 16) ** power] for x in range(17)],
            "pr": [[x / 16, 1 - 0.8 * x / 16] for x in range(17)],
        }
    aurocs = {name: None if name in ("Hernia", "Edema") else 0.45 + 0.03 * k for k, name in enumerate(FINDINGS)}
    known = {
        "counts": {name: None if auroc is None else [10 + k, 50 + k] for k, (name, auroc) in enumerate(aurocs.items())},
        "auroc_ci": {name: None if auroc is None else [auroc - 0.1, auroc + 0.1] for name, auroc in aurocs.items()},
    }
    return {
        "event": "judged",
        "round": round_number,
        "mode": "mixed",
        "hospitals": list(hospitals),
        "macro_auroc": 0.779,
        "macro_auroc_error_bound": 0.0024,
        "macro_auroc_ci": [0.741, 0.817],
        "interval": "by patient",
        "findings": findings,
        "by_hospital": {
            name: {"macro_auroc": 0.64, "num_findings": 12, "findings": aurocs, **known} for name in hospitals
        },
        "withheld": {hospitals[0]: ["Edema: fewer patients with it, or without it, than the hospital's floor"]},
    }


class Page(HTMLParser):
    """The page's elements and visible text; faults are tags closed in the wrong order."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element that opens."""
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element without content."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Closes the innermost element, or notes the fault."""
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        """Keeps visible text."""
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def sections_of(page: Page) -> set[str]:
    return {str(attributes["id"]) for tag, attributes in page.tags if tag == "section"}
