"""The command `compare`: two models' predictions on the same images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from aecnn.commands.evaluate import (
    BootstrapOption,
    DataOption,
    SeedOption,
    SplitOption,
    TargetsOption,
    labels_to_score,
)
from aecnn.commands.judging_screen import show_comparison
from aecnn.console import JsonOption, print_json
from aecnn.errors import ConfigError, PredictionsError

if TYPE_CHECKING:  # a command imports what it needs when it runs
    from aecnn.evaluation.auroc import Float64s


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.csv", help="Predictions of model A, as `aecnn predict` writes them.")],
    b: Annotated[Path, typer.Argument(metavar="B.csv", help="Predictions of model B for the same images.")],
    data: DataOption = None,
    targets: TargetsOption = None,
    split: SplitOption = "test",
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> None:
    """Say whether model B scores better than model A on the same patients, by finding and in the macro mean.

    Differences of AUROC are B − A, with 95 % intervals from the same resamples of patients for both models.
    The p-values are of DeLong's test for paired curves, clustered by patient.
    Fourteen findings are fourteen chances to be fooled: go by p as Holm's method corrects it.

        aecnn compare before.csv after.csv --targets targets.csv

        aecnn compare before.csv after.csv --data /data/chest --split test --json
    """
    if (data is None) == (targets is None):
        raise ConfigError("aecnn compare", ["give either --data or --targets: what the images show"])
    from aecnn.evaluation.comparison import compare as compare_scores

    labels = labels_to_score(data, targets, split)
    scores_a, scores_b = _both_scores(a, b, labels.images)
    comparison = compare_scores(scores_a, scores_b, labels.targets, labels.patients, num_resamples=bootstrap, seed=seed)
    if not comparison.findings:
        told = "; ".join(f"{name}: {why}" for name, why in comparison.why_left_out.items())
        raise PredictionsError(f"{a} and {b}", [f"no finding can be compared: {told}"])
    if json_:
        print_json({"a": str(a), "b": str(b), **comparison.to_json()})
    else:
        show_comparison(comparison, Console(), name_a=str(a), name_b=str(b))


def _both_scores(a: Path, b: Path, images: list[str]) -> "tuple[Float64s, Float64s]":
    """Reads both tables; the faults of both are told at once."""
    from aecnn.evaluation.predictions import scores_of

    found, faults = [], []
    for path in (a, b):
        try:
            found.append(scores_of(path, images))
        except PredictionsError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
    if faults:
        raise PredictionsError("aecnn compare", faults)
    return found[0], found[1]
