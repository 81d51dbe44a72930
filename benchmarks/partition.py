"""How long the full ChestX-ray14 table takes to be read, validated and shared out by each kind, and how much memory.

Each measurement is a process of its own, so that peak memory is one kind's; kinds take turns, so that a busy machine
slows all of them. Writes benchmarks/results/partition.md.

    .venv/bin/python benchmarks/partition.py /data/nih_metadata [--hospitals 10] [--repeats 3]
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "equal": {},
    "sizes": {"sigma": 1.0},
    "labels": {"alpha": 0.5, "min_patients": 10},
    "view": {"alpha": 0.5},
    "age": {"alpha": 0.5},
    "sex": {"alpha": 0.5},
    "scanner": {},
    "manifest": {},
}
STAGES = ("imports", "read", "share out", "write")
RESULTS = Path(__file__).parent / "results" / "partition.md"


def measure(data: Path, by: str, *, hospitals: int, file: str | None, out: Path) -> dict[str, Any]:
    """Runs one partition from the table to the three files; gives seconds a stage and peak memory."""
    marks = [time.perf_counter()]
    from aecnn.config import PartitionConfig
    from aecnn.data.manifest import read_manifest
    from server.run_folder import RunFolder
    from simulations.partition import partition_patients
    from simulations.partition_record import record_partition

    marks.append(time.perf_counter())
    manifest = read_manifest(data, require_images=False)
    marks.append(time.perf_counter())
    own = {"file": file} if by == "manifest" else {"num_hospitals": hospitals, **KINDS[by]}
    config = PartitionConfig.model_validate({"by": by, **own})
    partition = partition_patients(manifest, config, seed=0)
    marks.append(time.perf_counter())
    record = record_partition(manifest, partition, config, seed=0, split="all")
    record.write(RunFolder.create(out))
    marks.append(time.perf_counter())
    sizes = [hospital.num_patients for hospital in record.hospitals.values()]
    return {
        "seconds": [end - start for start, end in itertools.pairwise(marks)],
        "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),  # user and system
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": len(manifest),
        "patients": sum(sizes),
        "smallest": min(sizes),
        "largest": max(sizes),
        "hash": record.content_hash,
    }


def main() -> None:
    """Measures all kinds in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--hospitals", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", metavar="KIND:FILE:OUT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        by, file, out = options.one.split(":")
        print(json.dumps(measure(options.data, by, hospitals=options.hospitals, file=file, out=Path(out))))
        return
    measured: dict[str, list[dict[str, Any]]] = {by: [] for by in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "0-equal" / "patients.csv"  # what `manifest` reads is what `equal` left
        for repeat in range(options.repeats):
            for by, results in measured.items():
                out = Path(folder) / f"{repeat}-{by}"
                command = [sys.executable, __file__, str(options.data), "--hospitals", str(options.hospitals)]
                done = subprocess.run(
                    [*command, "--one", f"{by}:{file}:{out}"], check=True, capture_output=True, text=True
                )
                results.append(json.loads(done.stdout))
                print(by, f"{sum(results[-1]['seconds']):.2f} s", f"{results[-1]['peak_mib']:.0f} MiB", file=sys.stderr)
    text = _report(measured, options)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def _report(measured: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    first = measured["equal"][0]
    lines = [
        "# The full table as hospitals",
        "",
        f"`.venv/bin/python benchmarks/partition.py …/{options.data.name} --hospitals {options.hospitals} "
        f"--repeats {options.repeats}`",
        "",
        f"{first['rows']:,} rows of {first['patients']:,} patients, all splits, into {options.hospitals} hospitals. "
        f"Median seconds of {options.repeats} processes a kind, taking turns, and the largest peak memory. CPU "
        f"seconds are of the whole process, start included, and grow less with what else the machine does. Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, which other work shared "
        f"(load {os.getloadavg()[0]:.1f} at the end).",
        "",
        f"| kind | {' | '.join(STAGES)} | total s | slowest s | CPU s | peak MiB | smallest–largest | one hash |",
        "|---|" + "---:|" * (len(STAGES) + 6),
    ]
    for by, results in measured.items():
        totals = [sum(result["seconds"]) for result in results]
        stages = [statistics.median(result["seconds"][index] for result in results) for index in range(len(STAGES))]
        cells = [
            by + "".join(f", {name} {value:g}" for name, value in KINDS[by].items()),
            *(f"{seconds:.2f}" for seconds in stages),
            f"{statistics.median(totals):.2f}",
            f"{max(totals):.2f}",
            f"{statistics.median(result['cpu_seconds'] for result in results):.2f}",
            f"{max(result['peak_mib'] for result in results):.0f}",
            f"{results[0]['smallest']:,}–{results[0]['largest']:,}",
            "yes" if len({result["hash"] for result in results}) == 1 else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    same = len({measured[by][0]["hash"] for by in ("equal", "scanner", "manifest")}) == 1
    lines += [
        "",
        f"equal, scanner and manifest (which read equal's patients.csv) have one hash: {'yes' if same else 'NO'}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
