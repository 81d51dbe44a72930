"""``aecnn-simulate``: a federation of simulated hospitals on this machine."""

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from aecnn.cli import run_cli, say
from aecnn.config import Engine, SimulationConfig, load_config, locate_config
from aecnn.errors import FederationError
from simulations.progress import LiveProgress, figure

if TYPE_CHECKING:  # imported when a run begins: PyTorch takes seconds, and a faulty configuration is told at once
    from aecnn.evaluation.metrics import Metrics
    from simulations.runner import Prepared

EXIT_FAILED = 1

app = typer.Typer(
    help="Simulate a federation of hospitals on this machine: partition one dataset by patient, train the joint "
    "AE-CNN with FedAvg, and report AUROC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _callback() -> None:
    """Keeps `run` a named command while it is the only one."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML of the simulation, such as configs/demo.yaml.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one value: --set training.batch_size=16. Repeatable."
        ),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="inprocess: one process, one resident model. ray: Flower's simulation, several GPUs."),
    ] = "inprocess",
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make. Default: runs/NAME-DATE-TIME.", show_default=False)
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object on standard output.")
    ] = False,
) -> None:
    """Run one federation from dataset to report.

    The run folder holds the resolved configuration, a history by round, the released global model with its metadata,
    metrics.json, and report.html. Exit codes: 0 done, 1 the run failed, 2 the input is faulty.
    """
    console = Console(stderr=True)
    logging.basicConfig(handlers=[RichHandler(console=console, show_time=False, show_path=False)], force=True)
    settings = load_config(locate_config(str(config)), SimulationConfig, overrides=set_ or [])
    from aecnn.evaluation.report import write_report
    from simulations.runner import run_prepared

    path = out or Path("runs") / f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    prepared = _prepare(settings, path, console)
    begin = time.monotonic()
    folder = prepared.folder
    with LiveProgress(folder.history_file, num_rounds=settings.federation.num_rounds, console=console):
        run_prepared(prepared, engine)
    if settings.train_alone:
        _train_alone(prepared, console)
        write_report(folder.path)
    summary = _summary(prepared, seconds=time.monotonic() - begin)
    if json_:
        typer.echo(json.dumps(summary, allow_nan=False))
    else:
        _show(summary, Console())


def _prepare(settings: SimulationConfig, path: Path, console: Console) -> "Prepared":
    from simulations.runner import prepare_run

    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("drawing phantoms", total=None, visible=False)
        return prepare_run(
            settings,
            path,
            on_phantom=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )


def _train_alone(prepared: "Prepared", console: Console) -> None:
    from simulations.alone import train_each_alone

    def tell(name: str, metrics: "Metrics | None") -> None:
        if metrics is not None:
            say(
                console,
                f"{name} alone: test macro AUROC {figure(metrics.macro_auroc)}",
            )

    with console.status("training each hospital alone for as many steps, as the yardstick"):
        train_each_alone(prepared.config, prepared.folder, on_hospital=tell)


def _summary(prepared: "Prepared", *, seconds: float) -> dict[str, Any]:
    """The run's figures in one object, from the files of its folder."""
    folder = prepared.folder.path
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    last = prepared.folder.last_event() or {}
    alone_file = folder / "alone.json"
    alone = json.loads(alone_file.read_text(encoding="utf-8")) if alone_file.exists() else {}
    return {
        **metrics,
        "alone_mean_macro_auroc": alone.get("mean_macro_auroc"),
        "released_round": last.get("released_round"),
        "num_hospitals": prepared.num_hospitals,
        "seconds": seconds,
        "run_folder": str(folder),
    }


def _show(summary: dict[str, Any], console: Console) -> None:
    findings = summary["findings"]
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in ("finding", "AUROC", "AUPRC", "positives"):
        table.add_column(name, justify="left" if name == "finding" else "right")
    for name, row in findings.items():
        table.add_row(name, figure(row["auroc"]), figure(row["auprc"]), str(row["num_positive"]))
    console.print(table)
    say(
        console,
        f"\nGlobal model (round {summary['released_round']}) on {summary['num_images']} images of "
        f"{summary['num_patients']} unseen patients: macro AUROC [bold]{figure(summary['macro_auroc'])}[/]",
    )
    if summary["alone_mean_macro_auroc"] is not None:
        say(
            console,
            f"The same hospitals training alone, as many steps: mean macro AUROC "
            f"[bold]{figure(summary['alone_mean_macro_auroc'])}[/]",
        )
    if summary["num_skipped_images"]:
        say(console, f"{summary['num_skipped_images']} unreadable test image(s) skipped")
    say(
        console,
        f"{summary['seconds']:.0f} s. Report: {summary['run_folder']}/report.html",
    )


def main() -> None:
    """The console script ``aecnn-simulate``."""
    run_cli(app, exit_codes={FederationError: EXIT_FAILED})
