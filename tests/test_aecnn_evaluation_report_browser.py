"""The report in a real browser: at every width, by night and on paper, from the file alone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecnn.evaluation.report import write_report
from run_folders_of_tests import events, write_history


def browse(page: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Opens a page in headless Chromium without network; its console comes on standard error."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH: install it to check how the report renders")
    quiet = ("--disable-gpu", "--disable-quic", "--disable-sync", "--disable-component-update", "--hide-scrollbars")
    closed = ("--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND")
    command = [program, "--headless", "--no-sandbox", *quiet, *closed, f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width_px", [1000, 1280])
def test_nothing_overflows_the_window(changed_run: Path, tmp_path: Path, width_px: int) -> None:
    names = ("A_hospital_whose_name_is_as_long_as_a_name_may_be_" + "x" * 14, *[f"hospital-{k}" for k in range(2, 13)])
    lines = events(np.random.default_rng(1), hospitals=names)
    for line in lines:
        if line["event"] == "round":  # every column there is, as wide as it gets
            line |= {"seconds": 45_000.0, "bytes": dict.fromkeys(names, 128000000)}
    tested = {"event": "test", "round": 2, "macro_auroc": 0.7, "num_images": 600}
    write_history(changed_run / "history.jsonl", [*lines[:-1], tested, {"event": "resume", "round": 4}, lines[-1]])
    text = write_report(changed_run).read_text(encoding="utf-8")
    probe = """<script>
        const page = document.documentElement, right = e => e.getBoundingClientRect().right;
        const out = [...document.querySelectorAll(".page *:not(svg *):not(.track *):not(.axis *)")].filter(
            e => right(e) > right(e.parentElement) + 1);
        page.dataset.probe = [page.clientWidth, page.scrollWidth, out.map(e => e.outerHTML.slice(0, 60))].join(" ");
    </script></body>"""
    unlocked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", probe)
    (changed_run / "probe.html").write_text(unlocked, encoding="utf-8")
    dom = browse(changed_run / "probe.html", tmp_path / "profile", f"--window-size={width_px},900", "--dump-dom").stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found is not None
    assert found.group(1) == f"{width_px} {width_px} "  # and no element wider than its parent


@pytest.mark.browser
@pytest.mark.slow
def test_a_phone_scrolls_the_page_down_and_nothing_but_its_tables_sideways(complete_run: Path, tmp_path: Path) -> None:
    width_px = 390  # a window is never so narrow without a screen; a frame is
    text = (complete_run / "report.html").read_text(encoding="utf-8")
    unlocked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    frame = f'<iframe style="width:{width_px}px;border:0" srcdoc="{html.escape(unlocked)}"></iframe>'
    probe = """<script>document.querySelector("iframe").onload = event => {
        const page = event.target.contentDocument, out = [...page.querySelectorAll(".content")].filter(
            e => e.scrollWidth > e.clientWidth + 1 && !e.querySelector("table"));
        document.body.dataset.probe = [page.documentElement.scrollWidth, out.map(e => e.parentElement.id)].join(" ");
    }</script>"""
    (tmp_path / "phone.html").write_text(f"<!DOCTYPE html><body>{frame}{probe}</body>", encoding="utf-8")
    dom = browse(tmp_path / "phone.html", tmp_path / "profile", "--window-size=600,900", "--dump-dom").stdout
    assert re.findall(r'<body data-probe="([^"]*)"', dom) == [f"{width_px} "]


@pytest.mark.browser
@pytest.mark.slow
def test_the_browser_shows_the_page_and_has_nothing_to_complain_about(complete_run: Path, tmp_path: Path) -> None:
    picture, report = tmp_path / "page.png", complete_run / "report.html"
    ran = browse(report, tmp_path / "profile", "--window-size=1440,4400", f"--screenshot={picture}")
    assert "CONSOLE" not in ran.stderr
    with Image.open(picture) as screenshot:
        pixels = np.asarray(screenshot.convert("RGB")).astype(int)
    is_blank = (pixels == 255).all(axis=2)
    assert is_blank[:, :60].all()  # margins
    assert is_blank[:, -60:].all()
    assert 0.03 < 1.0 - is_blank.mean() < 0.6
    bands = (~is_blank).reshape(11, 400, -1).mean(axis=(1, 2))
    assert (bands[:8] > 0.005).all()  # something in every part of the page
    accent = (np.abs(pixels[:200, 1000:] - (0x0B, 0x5F, 0xA5)) < 8).all(axis=2)
    assert accent.sum() > 1000  # the headline's figure


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_that_loads_from_a_network_would_be_caught(complete_run: Path, tmp_path: Path) -> None:
    text = (complete_run / "report.html").read_text(encoding="utf-8")
    (tmp_path / "bad.html").write_text(text.replace("<main>", '<main><img src="https://example.org/x.png">'))
    ran = browse(tmp_path / "bad.html", tmp_path / "profile", f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" in ran.stderr


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_prints_on_a4(complete_run: Path, tmp_path: Path) -> None:
    document = tmp_path / "page.pdf"
    browse(complete_run / "report.html", tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={document}")
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", document.read_bytes())
    assert 4 <= len(boxes) <= 10
    assert all((round(float(width)), round(float(height))) == (595, 842) for width, height in boxes)  # A4 in points
