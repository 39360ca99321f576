"""What `sfumato demo` ends with: the word, and once for each model a report."""

import os
import shutil
from pathlib import Path

import pytest

from sfumato.apps.demo import Demo, main

LETTERS = Path(__file__).parent.parent.parent / "benchmarks" / "runs" / "letters"


@pytest.mark.slow
def test_the_demo_writes_a_report_beside_its_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    shutil.copytree(LETTERS, tmp_path / "run" / "final")
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(LETTERS / name, tmp_path / "run")
    demo = Demo(word="ab", out=tmp_path, rows=1, sampling_steps=2)
    assert main(demo) == tmp_path / "ab.png"
    page = tmp_path / "report.html"
    text = page.read_text("utf8")
    assert str(page) in capsys.readouterr().out
    assert "ddim in 2 steps, guidance 3" in text and "Searched: all 1,354 training pictures" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab.png", "report.html", "run"]
    made = page.stat().st_mtime_ns
    main(demo)
    assert page.stat().st_mtime_ns == made, "another word takes seconds"
    os.utime(page, (0, 0))
    main(demo)
    assert page.stat().st_mtime_ns > 10**9, "another model, another report"
