"""The command `plan-privacy`: what differential privacy costs, before a hospital and a centre agree on it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.console import JsonOption, print_json, progress_bar, say

ADJACENCY = "one patient, with all their images, is added or removed"


def plan_privacy(
    patients: Annotated[int, typer.Option(help="Training patients of the hospital, as it declares them.")],
    sample_rate: Annotated[
        float, typer.Option(help="Probability with which each patient is in a step; expected batch / patients.")
    ],
    steps: Annotated[int, typer.Option(help="All local steps of the plan: local_steps × rounds.")],
    epsilon: Annotated[
        float | None, typer.Option(help="Target of the whole plan: the noise is solved for it.", show_default=False)
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option(help="Or the noise, in units of max_grad_norm: its ε is told.", show_default=False),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="δ; default min(1e-5, 1/(10·patients)).", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds that the steps are spread over.")] = 1,
    evaluation_epsilon: Annotated[
        float | None,
        typer.Option(help="ε of all noised validation histograms together.", show_default=False),
    ] = None,
    validation_patients: Annotated[
        int | None, typer.Option(help="Patients whose scores they count.", show_default=False)
    ] = None,
    prevalence: Annotated[
        float, typer.Option(help="Share of them with the finding that the error is told for.")
    ] = 0.05,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the trade-off into this file (.png, .svg, .pdf).", show_default=False)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Tell what patient-level differential privacy costs: the noise for a target ε, or the ε of some noise.

    ε bounds how much better anyone who sees all that left can tell whether a patient took part: by a factor of exp(ε),
    but for a probability of δ. Small is private: 1 is strong, 8 is usual in practice, above 10 means little. It is of
    the whole plan; rounds do not each get their own.

    ε falls with more noise, more patients, smaller batches and fewer steps. PRV is what the ledger counts by; RDP is a
    looser bound, for comparison. Nothing is read from data, and nothing is spent.

    A target:  aecnn plan-privacy --patients 5000 --sample-rate 0.05 --steps 400 --rounds 10 --epsilon 8

    A noise:   aecnn plan-privacy --patients 5000 --sample-rate 0.05 --steps 400 --noise-multiplier 1

    Exit codes: 0 answered, 2 the question cannot be answered.
    """
    from aecnn.commands.privacy_outlook import Question, outlook
    from aecnn.commands.privacy_screen import draw_outlook, show_outlook

    question = Question(
        patients=patients,
        sample_rate=sample_rate,
        steps=steps,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        delta=delta,
        rounds=rounds,
        evaluation_epsilon=evaluation_epsilon,
        validation_patients=validation_patients,
        prevalence=prevalence,
        plot=plot,
    )
    question.refuse_faults()
    with progress_bar("composing") as (progress, task):
        found = outlook(question, on_progress=lambda done, total: progress.update(task, completed=done, total=total))
    if plot is not None:
        draw_outlook(found, plot)
    if json_:
        print_json({"adjacency": ADJACENCY, **asdict(found), "plot": None if plot is None else str(plot)})
        return
    show_outlook(found, question, Console())
    if plot is not None:
        say(Console(), f"plot: {escape(str(plot))}")
