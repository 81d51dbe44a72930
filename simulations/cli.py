"""``aecnn-simulate``: simulated hospitals on this machine, and a federation of them."""

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

from aecnn.commands.judging_screen import interval_text
from aecnn.config import (
    Engine,
    PartitionConfig,
    PartitionKind,
    SimulationConfig,
    Split,
    load_config,
    load_dataset,
    locate_config,
    validate_config,
)
from aecnn.console import JsonOption, print_json, run_cli, say
from aecnn.errors import FederationError
from server.privacy import spent_in_words
from server.progress import LiveProgress
from server.rounds_table import figure

if TYPE_CHECKING:  # imported when a run begins: PyTorch takes seconds, and a faulty configuration is told at once
    from aecnn.evaluation.metrics import Metrics
    from simulations.runner import Prepared

EXIT_FAILED = 1

app = typer.Typer(
    help="Simulate a federation of hospitals on this machine: partition one dataset by patient, train the joint "
    "AE-CNN with FedAvg, and report AUROC. `partition` looks at the hospitals without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    json_: JsonOption = False,
) -> None:
    """Run one federation from dataset to report.

    The run folder holds the resolved configuration, the partition, a history by round, the released global model with
    its metadata, metrics.json, and report.html. Exit codes: 0 done, 1 the run failed, 2 the input is faulty.
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
        print_json(summary)
    else:
        _show(summary, Console())


@app.command()
def partition(
    data: Annotated[Path, typer.Argument(help="Folder in one of the known layouts, or its table.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    by: Annotated[PartitionKind, typer.Option(help="How hospitals differ; see above.")] = "equal",
    hospitals: Annotated[
        int | None, typer.Option(help="How many; every kind but manifest.", show_default=False)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="labels, view, age, sex: 0.1 makes hospitals very different, 1 different, 100 alike.",
            show_default=False,
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            help="sizes: log-normal; with 1 a third are outside 0.4 to 2.7 times the median.", show_default=False
        ),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="sizes: relative shares instead of --sigma, such as 5,3,2.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="manifest: `Patient ID,Hospital`. Default: patients.csv in DATA.", show_default=False),
    ] = None,
    min_patients: Annotated[int, typer.Option(help="At every hospital; random shares are redrawn until so.")] = 1,
    max_patients: Annotated[
        int | None,
        typer.Option(help="Keep at most so many at each; the others are in no hospital.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and patients give the same partition.")] = 0,
    split: Annotated[
        Split | None,
        typer.Option(
            help="Which official list. Default: train_val, or all where DATA has no lists.", show_default=False
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Share a dataset's patients out among hospitals; no image is read.

    \b
    equal     same size, same mix
    sizes     given (--sizes) or log-normal (--hospitals --sigma), same mix
    labels    each finding's patients by Dirichlet(alpha): mix and size differ;
              a patient counts by the rarest of his or her findings
    view      same size, other shares of PA and AP patients, Dirichlet(alpha)
    age       the same for ages: 0-17, 18-39, 40-59, 60-79, 80+
    sex       the same for women and men
    scanner   the patients of equal; in a run, all hospitals but the first see
              their images as another scanner would show them
    manifest  as a file says, such as the patients.csv of another partition

    \b
    No patient is ever in two hospitals. The folder gets partition.json (counts
    by hospital; a hash, the same wherever the same patients are at the same
    hospitals), patients.csv (for --by manifest) and partition.svg. A run takes
    the same settings below `partition:` of its YAML, and leaves the same files.
    Exit codes: 0 done, 2 the input is faulty.

    Example: aecnn-simulate partition DATA --by labels --alpha 0.5 --hospitals 9 --out silos
    """  # noqa: D301  click's \b keeps lines as they are
    from simulations.partition_command import make_partition, show_partition

    config = validate_config(
        {
            "by": by,
            "num_hospitals": hospitals,
            "alpha": alpha,
            "sigma": sigma,
            "sizes": sizes and sizes.split(","),
            "min_patients": min_patients,
            "max_patients": max_patients,
            **({} if file is None else {"file": str(file.absolute())}),
        },
        PartitionConfig,
        subject="aecnn-simulate partition",
    )
    record = make_partition(load_dataset(data), config, out, seed=seed, split=split)
    if json_:
        print_json({**record.to_json(), "folder": str(out)})
    else:
        show_partition(record, out, Console())


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
    end = prepared.folder.ended() or {}
    alone_file = folder / "alone.json"
    alone = json.loads(alone_file.read_text(encoding="utf-8")) if alone_file.exists() else {}
    return {
        **metrics,
        "alone_mean_macro_auroc": alone.get("mean_macro_auroc"),
        "released_round": end.get("released_round"),
        "privacy": end.get("privacy", {}),
        "num_hospitals": prepared.num_hospitals,
        "seconds": seconds,
        "run_folder": str(folder),
    }


def _show(summary: dict[str, Any], console: Console) -> None:
    findings = summary["findings"]
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in ("finding", "AUROC", "95 %", "AUPRC", "positives"):
        table.add_column(name, justify="left" if name == "finding" else "right")
    for name, row in findings.items():
        ends = interval_text(row["auroc_ci"])
        table.add_row(name, figure(row["auroc"]), ends, figure(row["auprc"]), str(row["num_positive"]))
    console.print(table)
    ends = summary["macro_auroc_ci"]
    say(
        console,
        f"\nGlobal model (round {summary['released_round']}) on {summary['num_images']} images of "
        f"{summary['num_patients']} unseen patients: macro AUROC [bold]{figure(summary['macro_auroc'])}[/]"
        + (f" (95 % interval {interval_text(ends)}, by patient)" if ends else ""),
    )
    if summary["alone_mean_macro_auroc"] is not None:
        say(
            console,
            f"The same hospitals training alone, as many steps: mean macro AUROC "
            f"[bold]{figure(summary['alone_mean_macro_auroc'])}[/]",
        )
    spent = spent_in_words(summary["privacy"])
    if spent is not None:
        say(console, f"Privacy spent: {spent}")
    if summary["num_skipped_images"]:
        say(console, f"{summary['num_skipped_images']} unreadable test image(s) skipped")
    say(
        console,
        f"{summary['seconds']:.0f} s. Report: {summary['run_folder']}/report.html",
    )


def main() -> None:
    """The console script ``aecnn-simulate``."""
    run_cli(app, exit_codes={FederationError: EXIT_FAILED})
