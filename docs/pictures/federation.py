"""Makes federation.png and client-check.png: the centre's table and a hospital's check, as they look at a terminal.

Run from the repository root after the trial federation of the README, whose folders it reads:
``.venv/bin/python docs/pictures/federation.py centre hospital-1``. Needs Chromium for the screenshots.
"""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops
from rich.console import Console
from rich.text import Text

from server.progress import HistoryReader
from server.rounds_table import rounds_table

HERE = Path(__file__).parent
WIDTH = 124  # columns


def picture(console: Console, name: str, title: str) -> None:
    """Writes what a console was shown as a PNG, cut to its content."""
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        page.write_text(f"<body style='margin:0'>{console.export_svg(title=title)}</body>", encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
        size = [f"--user-data-dir={folder}/profile", "--window-size=1560,2400", f"--screenshot={shot}"]
        subprocess.run(["chromium", *flags, *size, page.as_uri()], check=True, capture_output=True)  # noqa: S607
        image = Image.open(shot).convert("RGB")
        blank = Image.new("RGB", image.size, image.getpixel((image.width - 1, image.height - 1)))
        box = ImageChops.difference(image, blank).getbbox()
        image.crop(box).quantize(64).save(HERE / name, optimize=True)


def federation(centre: Path) -> Console:
    """Shows the first run's table."""
    run = min((centre / "runs").iterdir(), key=lambda path: path.name)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    events = HistoryReader(run / "history.jsonl").new_events()
    num_rounds = max(event["round"] for event in events if event["event"] == "round")
    console.print(rounds_table(events, num_rounds=num_rounds))
    return console


def check(hospital: Path) -> Console:
    """Shows the check of a hospital that is enrolled."""
    program = Path(sys.executable).with_name("aecnn-client")
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        [program, "check", "--folder", hospital], env=environment, capture_output=True, text=True, check=True
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.from_ansi(done.stdout))
    return console


if __name__ == "__main__":
    picture(federation(Path(sys.argv[1])), "federation.png", "flower-server start")
    picture(check(Path(sys.argv[2])), "client-check.png", "aecnn-client check")
