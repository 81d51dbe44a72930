"""Commands about data: `phantom`, `check` and `cache`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.config import PhantomConfig, load_dataset, validate_config
from aecnn.console import EXIT_FAULTY_INPUT, JsonOption, print_json, progress_bar, say, table_of
from aecnn.errors import ManifestError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds, and `check` needs little
    from aecnn.data.cache.build import CacheReport
    from aecnn.data.check.report import DataReport

EXIT_FAULTS_FOUND = 1
EXIT_INTERRUPTED = 130  # as a shell has it
MOST_DETAILS = 8  # entries of one check on the screen

DataArgument = Annotated[
    Path, typer.Argument(help="Folder, its table, or a YAML whose `data:` section says where and how (a site file).")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes that decode; default: one a core.", show_default=False)
]


def phantom(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    patients: Annotated[int, typer.Option(help="Number of patients; each has one or more images.")] = 400,
    image_size_px: Annotated[int, typer.Option(help="Side of the square images, in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    preset: Annotated[str, typer.Option(help="Prevalence: demo (every finding in ≥ 5 % of images) or nih.")] = "demo",
    hospitals: Annotated[int, typer.Option(help="Hospitals the patients belong to, each with its scanner style.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw; the bytes do not depend on it.")] = 1,
    json_: JsonOption = False,
) -> None:
    """Draw synthetic chest radiographs in the official ChestX-ray14 layout.

    Anatomy and lesions are parametric; no patient's data are in them. The folder gets images/, the table, the two
    official lists, patients.csv (patient → hospital) and phantom.json (prevalence, and how learnable each finding is).
    """
    from aecnn.data.phantom import write_phantom

    config = validate_config(
        {
            "num_patients": patients,
            "image_size_px": image_size_px,
            "seed": seed,
            "preset": preset,
            "num_hospitals": hospitals,
        },
        PhantomConfig,
        subject="aecnn phantom",
    )
    with progress_bar("drawing phantoms") as (progress, task):
        report = write_phantom(
            out,
            config,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            num_workers=workers,
        )
    if json_:
        print_json({"root": str(out), **vars(report)})
        return
    table = table_of("finding", "prevalence", "oracle AUROC")
    for name, prevalence in report.prevalence.items():
        oracle = report.oracle_auroc.get(name)
        table.add_row(name, f"{prevalence:.1%}", "" if oracle is None else f"{oracle:.3f}")
    console = Console()
    console.print(table)
    say(
        console,
        f"{report.num_images} images of {report.num_patients} patients in {out}",
    )


def check(
    data: DataArgument,
    labels_only: Annotated[
        bool, typer.Option("--labels-only", help="Check the tables and lists; do not look for image files.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML page, with pictures of the suspects.", show_default=False)
    ] = None,
    floor: Annotated[int, typer.Option(min=1, help="Patients below which a count is too small to be told.")] = 10,
    workers: WorkersOption = None,
    json_: JsonOption = False,
) -> None:
    """Check a dataset before it joins: rows, files, patients, radiographs, labels. Nothing leaves the machine.

    Tables: duplicate rows, unknown findings, ages, patients in two splits or under another file name, withdrawn
    patients. Files: missing, extra, unreadable, formats, bit depth, copies. Radiographs: inverted, turned, mirrored,
    blank, not frontal, framed. Labels: what is too rare to evaluate, what is too few to tell.

    Exit codes: 0 nothing to mend (there may be warnings), 1 faults found, 2 the command cannot be carried out.
    """
    dataset = load_dataset(data)
    if not dataset.root.exists():
        raise ManifestError(dataset.root, ["is not there: give the folder that holds the table and images/"])
    from aecnn.data.check.page import refuse_place, write_page
    from aecnn.data.check.report import check_dataset

    if report is not None:
        refuse_place(report)

    with progress_bar("opening images") as (progress, task):
        found = check_dataset(
            dataset,
            labels_only=labels_only,
            floor=floor,
            num_workers=workers or os.cpu_count() or 1,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json_:
        print_json(found.to_json())
    else:
        _show_report(found, Console())
    if report is not None:
        write_page(found, report)
        if not json_:
            say(Console(), f"report: {escape(str(report))} (shows patients: keep it in the hospital)")
    if found.num_images == 0:
        raise typer.Exit(EXIT_FAULTY_INPUT)  # no table to speak of
    if found.status == "fail":
        raise typer.Exit(EXIT_FAULTS_FOUND)


def cache(
    data: DataArgument,
    size_px: Annotated[int, typer.Option(min=16, max=4096, help="Side of the stored images: `images.size_px`.")] = 1024,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole cache and all image files again, and compare the hashes.")
    ] = False,
    workers: WorkersOption = None,
    json_: JsonOption = False,
) -> None:
    """Decode every image once into a memory-mapped store, from which training reads without decoding.

    Run it again after images were added, changed or withdrawn: only what changed is decoded, and what must go is
    removed from the disk. Interrupted, it resumes. The store is `aecnn-cache` in the folder, or data.cache_folder.

    Exit codes: 0 done, 1 --verify found differences, 2 the command cannot be carried out.
    """
    dataset = load_dataset(data)
    from aecnn.data.cache.build import build_cache
    from aecnn.data.cache.verify import verify_cache

    num_workers = workers or os.cpu_count() or 1
    with _told_if_interrupted(), progress_bar("verifying" if verify else "decoding") as (progress, task):

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if verify:
            faults = verify_cache(dataset, size_px=size_px, num_workers=num_workers, on_progress=tell)
        else:
            made = build_cache(dataset, size_px=size_px, num_workers=num_workers, on_progress=tell)
    if not verify:
        _show_cache(made, json_=json_)
        return
    if json_:
        print_json({"faults": faults})
    else:
        for fault in faults:
            say(Console(), f"[bold red]fault[/] {escape(fault)}")
        say(Console(), f"{len(faults)} difference(s)" if faults else "[green]the cache is true to the files[/]")
    if faults:
        raise typer.Exit(EXIT_FAULTS_FOUND)


@contextmanager
def _told_if_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(Console(stderr=True), "interrupted: what was finished is kept, and the same command goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from None


_COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def _show_report(report: "DataReport", console: Console) -> None:
    table = table_of("finding", "images", "patients", "not labelled")
    for name, count in report.labels.findings.get("all", {}).items():
        positive, missing = count.positive, count.not_labelled.num_images
        table.add_row(name, f"{positive.num_images:,}", f"{positive.num_patients:,}", f"{missing:,}")
    if report.num_images:
        console.print(table)
        say(console, f"\n{report.num_images:,} images of {report.num_patients:,} patients")
        for name, counts in report.labels.splits.items():
            say(console, f"  {name}: {counts.num_images:,} images of {counts.num_patients:,} patients")
        say(console, "")
    for outcome in report.checks:
        colour = _COLOURS[outcome.status]
        say(console, f"[{colour}]{outcome.status}[/]  {outcome.title}: {escape(outcome.summary)}")
        if outcome.status == "pass":
            continue
        entries = [*outcome.details, *(f"{s.image} (patient {s.patient}): {s.sentence}" for s in outcome.suspects)]
        for entry in entries[:MOST_DETAILS]:
            say(console, f"      {escape(entry)}")
        if len(entries) > MOST_DETAILS:
            say(console, f"      … and {len(entries) - MOST_DETAILS:,} more: see --json or --report")


def _show_cache(made: "CacheReport", *, json_: bool) -> None:
    if json_:
        print_json(
            vars(made)
            | {"folder": str(made.folder), "unreadable": list(made.unreadable), "warnings": list(made.warnings)}
        )
        return
    for sentence in made.warnings:
        say(Console(stderr=True), f"[yellow]warning[/] {escape(sentence)}")
    for sentence in made.unreadable:
        say(Console(stderr=True), f"skipped: {escape(sentence)}")
    done = (
        f"{made.num_decoded:,} decoded, {made.num_copied:,} moved, {made.num_kept:,} kept, {made.num_removed:,} removed"
    )
    say(Console(), f"{done} in {made.seconds:.1f} s")
    say(Console(), f"{made.num_images:,} images, {made.num_bytes / 1e6:,.1f} MB in {escape(str(made.folder))}")
