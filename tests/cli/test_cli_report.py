"""`sfumato report`: where the file goes, what is said, mistakes, interruption; and the page in a browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sfumato.cli.main import main

ROOT = Path(__file__).parent.parent.parent
FAST = ("--n", 6, "--steps", 2, "--sampler", "ddim", "--threads", 1)


def test_a_report_of_a_run_and_its_data(command, run, photos):
    said = command("report", run, *FAST)
    assert said.code == 0, said
    out = run / "report.html"
    assert said.out.startswith(f"{out}: ") and "Open it in a browser." in said.out
    text = out.read_text("utf8")
    for part in ("samples", "way", "nearest", "curves", "health", "run", "again", "cite"):
        assert f'<section id="{part}">' in text, part
    assert "ddim in 2 steps" in text and "Searched: all " in text and "rose" in text
    assert "canary" not in text, "no path"
    out.unlink()


def test_the_training_pictures_are_those_that_were_trained_on(command, run, photos, tmp_path):
    """Not those held out, and with --data none not a single one."""
    from sfumato.data import DataOptions, open_data

    whole = open_data(photos, DataOptions(labels="folder"))
    trained = len(whole.split(0.02, 0)[0])
    assert trained < len(whole)
    assert command("report", run, *FAST, "--out", tmp_path / "a.html").code == 0
    assert f"Searched: all {trained:,} training pictures" in (tmp_path / "a.html").read_text("utf8")
    assert command("report", run, *FAST, "--data", "none", "--out", tmp_path / "b.html").code == 0
    assert "Training picture" not in (tmp_path / "b.html").read_text("utf8")


def test_other_data_than_the_run_was_trained_on(command, run, tmp_path):
    """Read at the run's size and in its colours."""
    folder = tmp_path / "other"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (40, 30), (40 * i, 0, 0)).save(folder / f"{i}.png")
    assert command("report", run, *FAST, "--data", folder, "--out", tmp_path / "a.html").code == 0
    assert "Searched: all 5 pictures given, which are not as many" in (tmp_path / "a.html").read_text("utf8")


def test_a_run_that_knows_no_classes(command, plain, tmp_path):
    assert (
        command("report", plain, "--n", 2, "--steps", 2, "--data", "none", "--out", tmp_path / "deep" / "a.html").code
        == 0
    )
    assert "2 pictures from the averaged weights" in (tmp_path / "deep" / "a.html").read_text("utf8")


def test_a_final_that_lies_in_its_run_knows_the_run(command, run, tmp_path):
    assert command("report", run / "final", "--n", 0, "--out", tmp_path / "a.html").code == 0
    text = (tmp_path / "a.html").read_text("utf8")
    assert '<section id="curves">' in text and "data-chart" in text


def test_mistakes_are_sentences(mistake, run, plain, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "needs the folder of a run" in mistake("report")
    assert "there is no run" in mistake("report", tmp_path / "nothing")
    assert "is a folder" in mistake("report", run, "--out", tmp_path)
    assert "lies below" in mistake("report", run, "--out", tmp_path / "file" / "a.html")
    assert "at most 400" in mistake("report", run, "--n", 1000)
    assert "--n is -1" in mistake("report", run, "--n", -1)
    assert "there is no sampler" in mistake("report", run, "--sampler", "ddimm")
    assert "knows no classes" in mistake("report", plain, "--guidance", 2, "--out", tmp_path / "a.html")
    assert "no folder or file" in mistake("report", run, "--n", 2, "--data", "nowhere", "--out", tmp_path / "a.html")
    assert "no option --json" in mistake("report", run, "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_written(mistake, run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in mistake("report", run, "--out", tmp_path / "a.html")


def test_a_full_disk_is_a_sentence(mistake, run, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in mistake("report", run, "--n", 0, "--out", tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(run, place, tmp_path):
    words = [
        "report",
        str(run),
        "--n",
        "400",
        "--steps",
        "1000",
        "--sampler",
        "ddim",
        "--out",
        str(tmp_path / "a.html"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    work = subprocess.Popen(
        [sys.executable, "-m", "sfumato", *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    time.sleep(8)
    work.send_signal(signal.SIGINT)
    _, said = work.communicate(timeout=60)
    assert work.returncode == 130 and said.strip().endswith("sfumato: interrupted."), said
    assert not list(tmp_path.iterdir())


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(run, place):
    """A page with everything on it."""
    home = place / "runs" / "shown"
    shutil.copytree(run, home)
    (home / "samples").mkdir(exist_ok=True)
    for step in (10, 20, 30):
        Image.new("RGB", (320, 200), (step, 0, 0)).save(home / "samples" / f"step_{step:08d}.png")
    long = {"metric": "fid", "value": 12.5, "n": 500, "low": 11.0, "high": 14.0, "floor": 2.0}
    long |= {"features": "lite0@64 (232 features, clean, 5793442442f2)", "warning": "n = 500 is small. " * 6}
    receipt = {"format": "sfumato receipt 1", "figures": [long], "samples": {}, "reference": {}}
    (home / "evaluation").mkdir()
    (home / "evaluation" / "20260101.json").write_text(json.dumps(receipt))
    words = ["report", home, *FAST, "--out", place / "shown.html"]
    assert main([str(word) for word in words]) == 0
    return place / "shown.html"


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not here")
    options = driver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = driver.Chrome(options, driver.ChromeService(shutil.which("chromedriver")))
    yield found
    found.quit()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(browser, shown, width, scheme):
    """Nothing is wider than the window, nothing complains, words have contrast; hovering, sliding, enlarging work."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(shown.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(CONTRAST) == []
    figure = "const f = document.querySelector('[data-chart] .plot'); f.scrollIntoView();"
    figure += "const b = f.getBoundingClientRect();"
    move = "f.dispatchEvent(new PointerEvent('pointermove', {clientX: b.right, clientY: b.top + 9}));"
    tip = browser.execute_script(f"{figure} {move} return f.querySelector('.tip').innerText")
    told = json.loads(browser.execute_script("return document.querySelector('[data-chart]').dataset.chart"))
    label, _, steps, values = told["lines"][0]
    assert f"step {steps[-1]}" in tip and f"{label}: {float(f'{values[-1]:.4g}'):g}" in tip
    slide = "const r = document.querySelector('.slide input'); r.value = 0; r.dispatchEvent(new Event('input'));"
    seen = "return [...document.querySelectorAll('.reel figure')].filter(f => f.offsetParent).map(f => f.dataset.step)"
    assert browser.execute_script(f"{slide} {seen}") == ["10"]
    opened = "document.querySelector('.wall a').click(); const d = document.querySelector('dialog');"
    assert browser.execute_script(f"{opened} return d.open && d.querySelector('span').innerText").startswith("seed 0")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


CONTRAST = """
const lit = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => {
  v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
const bad = [];
for (const e of document.querySelectorAll('main *')) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  const [a, b] = [lit(getComputedStyle(e).color), lit(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push(e.tagName + ' ' + e.className + ' ' + ratio.toFixed(2));
}
return bad;
"""
