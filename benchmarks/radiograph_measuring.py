"""How often the picture checks are right: false alarms on sound report images, hits on the same images spoiled.

Shapes: B images of 256 × 256 px.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import radiograph_spoiling as spoiling
import torch

from aecnn.data.check.orientation import (
    EXPECTED_INVERTED,
    EXPECTED_ORIENTATIONS,
    calibrated,
    load_orientation_net,
    raw_outputs,
    scale_down,
)
from aecnn.data.check.radiographs import Kind, Suspicion, inspect
from aecnn.data.manifest import Manifest

BATCH_SIZE = 128
KINDS: tuple[Kind, ...] = ("inverted", "turned", "mirrored", "blank", "not_frontal", "borders")
# False alarms on report images that turned out true when looked at: what was seen.
INSPECTED: dict[tuple[str, Kind], str] = {
    ("00017625_000.png", "inverted"): "true: inverted",
    ("00001854_003.png", "borders"): "true: black on all sides",
    ("00002218_003.png", "borders"): "true: black on all sides",
}


@dataclass(frozen=True)
class Rate:
    """How many of a number of images, with Wilson's 95 % interval."""

    case: str
    count: int
    total: int
    remark: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the interval, as shares."""
        z, n, share = 1.959964, self.total, self.count / self.total
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def row(self) -> str:
        """A line of the Markdown table."""
        low, high = self.interval
        share = f"{self.count / self.total:.2%} | {low:.2%} – {high:.2%}"
        return f"| {self.case} | {self.count} of {self.total} | {share} | {self.remark} |"


def suspicions_of(pictures: npt.NDArray[np.uint8], *, ratio: float = 1.0) -> list[Suspicion]:
    """Gives the suspicions about any number of pictures."""
    found = []
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = pictures[start : start + BATCH_SIZE]
        for suspicion in inspect(batch, np.full(len(batch), ratio)):
            found.append(Suspicion(suspicion.row + start, suspicion.kind, suspicion.sureness, suspicion.sentence))
    return found


def hits(case: str, pictures: npt.NDArray[np.uint8], kind: Kind, *, says: str = "", ratio: float = 1.0) -> Rate:
    """Measures how many pictures are suspected of `kind`; remarks how many with a sentence that starts as given."""
    found = suspicions_of(pictures, ratio=ratio)
    hit = {suspicion.row for suspicion in found if suspicion.kind == kind}
    named = {item.row for item in found if item.kind == kind and item.sentence.startswith(says)}
    others = Counter(suspicion.kind for suspicion in found if suspicion.row not in hit)
    remarks = [f"rightly named: {len(named)} ({len(named) / len(pictures):.2%})"] if says else []
    remarks += [f"missed, but {name}: {count}" for name, count in sorted(others.items())]
    rate = Rate(case, len(hit), len(pictures), "; ".join(remarks))
    print(rate.row, flush=True)
    return rate


def hit_rates(sound: npt.NDArray[np.uint8]) -> list[Rate]:
    """Measures every kind on report images spoiled in that way."""
    random = np.random.default_rng(7)
    turns = {
        1: "turned by 90° anticlockwise",
        2: "turned by 180°",
        3: "turned by 90° clockwise",
        5: "flipped over the diagonal from top left",
        7: "flipped over the diagonal from top right",
        6: "flipped upside down",
    }
    rates = [hits("inverted", 255 - sound, "inverted")]
    rates += [hits(says, spoiling.laid(sound, way), "turned", says=says) for way, says in turns.items()]
    rates += [
        hits("mirrored left to right", spoiling.laid(sound, 4), "mirrored"),
        hits("inverted and turned: inversion", 255 - spoiling.laid(sound, 1), "inverted"),
        hits("inverted and turned: turn", 255 - spoiling.laid(sound, 1), "turned", says=turns[1]),
        hits("letterboxed 3 : 4, inverted", spoiling.letterboxed(255 - sound, tall=True), "inverted", ratio=0.75),
        hits(
            "letterboxed 4 : 3 after a turn",
            spoiling.letterboxed(spoiling.laid(sound, 1), tall=False),
            "turned",
            says=turns[1],
            ratio=4 / 3,
        ),
        hits("one grey value", spoiling.constant(sound, random, noise=0.0), "blank"),
        hits("one grey value and noise", spoiling.constant(sound, random, noise=20.0), "blank"),
        hits("90 to 99 % clipped to black", spoiling.saturated(sound, random, white=False), "blank"),
        hits("90 to 99 % clipped to white", spoiling.saturated(sound, random, white=True), "blank"),
        hits("frame of 2 to 15 %", spoiling.framed(sound, random, widths=(0.02, 0.15), sides="all"), "borders"),
        hits("two bars of 17 to 30 %", spoiling.framed(sound, random, widths=(0.17, 0.3), sides="two"), "borders"),
        hits("half a chest, left of the picture", spoiling.half(sound, right=False), "not_frontal"),
        hits("half a chest, right of the picture", spoiling.half(sound, right=True), "not_frontal"),
    ]
    return rates


def false_alarms(manifest: Manifest, sound: npt.NDArray[np.uint8]) -> tuple[list[Rate], list[dict[str, object]]]:
    """Measures how many report images are suspects as they are, and names them."""
    found = suspicions_of(sound)
    names = manifest.table["image"].tolist()
    alarms = [
        {
            "image": names[item.row],
            "kind": item.kind,
            "sureness": round(item.sureness, 4),
            "sentence": item.sentence,
            "inspected": INSPECTED.get((names[item.row], item.kind), "false"),
        }
        for item in found
    ]
    rates = [Rate(kind, len({item.row for item in found if item.kind == kind}), len(sound)) for kind in KINDS]
    unsound = {item.row for item in found if (names[item.row], item.kind) not in INSPECTED}
    firsts = (~manifest.table["patient"].duplicated()).to_numpy()  # [B] the first image of each patient
    rates += [
        Rate("any", len({item.row for item in found}), len(sound)),
        Rate("any, true finds on inspection taken away", len(unsound), len(sound)),
        Rate("any, one image a patient", len({item.row for item in found if firsts[item.row]}), int(firsts.sum())),
    ]
    for tall in (True, False):
        rows = suspicions_of(spoiling.letterboxed(sound, tall=tall), ratio=0.75 if tall else 4 / 3)
        shape = "3 : 4" if tall else "4 : 3"
        rates.append(Rate(f"any, letterboxed {shape}", len({item.row for item in rows}), len(sound)))
    return rates, alarms


def reliability(sound: npt.NDArray[np.uint8]) -> list[str]:
    """Compares the stated with the true share of faults, faults mixed in as often as the sureness assumes."""
    net, calibration = load_orientation_net()
    lines = []
    scores: dict[str, list[npt.NDArray[np.float64]]] = {"inverted": [], "turned": [], "mirrored": []}
    for way, share in enumerate(EXPECTED_ORIENTATIONS):
        reading = calibrated(*raw_outputs(net, scale_down(spoiling.laid(sound, way))), calibration)
        weight = np.full(len(sound), share / len(sound))
        turned = 1.0 - reading.orientations[:, 0] - reading.orientations[:, 4]
        scores["turned"].append(np.stack([turned, np.full(len(sound), float(way not in (0, 4))), weight]))
        mirrored = reading.orientations[:, 4]
        scores["mirrored"].append(np.stack([mirrored, np.full(len(sound), float(way == 4)), weight]))
    for truth, share in ((0.0, 1.0 - EXPECTED_INVERTED), (1.0, EXPECTED_INVERTED)):
        pictures = 255 - sound if truth else sound
        reading = calibrated(*raw_outputs(net, scale_down(pictures)), calibration)
        weight = np.full(len(sound), share / len(sound))
        scores["inverted"].append(np.stack([reading.inverted, np.full(len(sound), truth), weight]))
    for kind, parts in scores.items():
        said, truth, weight = np.concatenate(parts, axis=1)
        for low, high in ((0.5, 0.9), (0.9, 0.99), (0.99, 1.01)):
            inside = (said >= low) & (said < high)
            if inside.any():
                mean, actual = (np.average(values[inside], weights=weight[inside]) for values in (said, truth))
                count = f"{inside.sum()} | {weight[inside].sum():.2%}"
                lines.append(f"| {kind} | {low} – {min(high, 1.0)} | {count} | {mean:.3f} | {actual:.3f} |")
    return lines


def images_per_second(sound: npt.NDArray[np.uint8]) -> float:
    """Measures `inspect` on batches of 128 by the time of one core: the best of five."""
    torch.set_num_threads(1)
    batch, seconds = sound[:BATCH_SIZE], []
    for _ in range(5):
        start = time.process_time()
        inspect(batch, np.ones(len(batch)))
        seconds.append(time.process_time() - start)
    return len(batch) / min(seconds)
