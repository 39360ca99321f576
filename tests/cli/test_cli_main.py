"""The frame around the verbs: help, version, exit codes, what becomes of errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
from sfumato.cli.main import VERBS, _sentence, main
from sfumato.errors import UserError


def test_overview_names_every_verb(command):
    for words in ((), ("--help",), ("help",)):
        said = command(*words)
        assert said.code == 0 and all(f"\n  {verb} " in said.out for verb in VERBS)


def test_every_verb_has_help_with_its_options(command):
    for verb in [*VERBS, "data check"]:
        said = command(*verb.split(), "--help")
        assert said.code == 0 and not said.err and "sfumato" in said.out, verb
    assert "--guidance SCALE" in command("sample", "--help").out
    assert "--config.FIELD" in command("train", "--help").out
    shown = command("train", "ddpm", "--help").out
    assert "--config.network.widths" in shown and "--training.clip" in shown and "examples\n" in shown


def test_version(command):
    assert command("--version").out.strip() == f"sfumato {sfumato.__version__}"


def test_unknown_verb_suggests_the_nearest(mistake):
    assert "did you mean 'train'?" in mistake("trian", "ddpm")
    assert "choose one of demo, train" in mistake("xyzzy")


def test_debug_raises(place, monkeypatch):
    with pytest.raises(UserError):
        main(["--debug", "train", "ddpm", str(place / "nowhere")])
    monkeypatch.setenv("SFUMATO_DEBUG", "1")
    with pytest.raises(UserError):
        main(["cite", "nothing"])


def test_what_the_system_refuses_is_a_sentence():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "grid.png")
    assert "disk is full" in (_sentence(full) or "") and "--out" in (_sentence(full) or "")
    assert "permissions" in (_sentence(PermissionError(errno.EACCES, "no", "x")) or "")
    assert "--batch" in (_sentence(MemoryError()) or "")
    assert _sentence(ZeroDivisionError()) is None  # a defect keeps its traceback


def shell(place: Path, line: str, **options: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1]), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        line, shell=True, cwd=place, env=env, text=True, capture_output=True, timeout=120, check=False
    )


def test_a_closed_pipe_is_quiet(place):
    said = shell(place, f"{sys.executable} -m sfumato papers ddpm | head -n 1")
    assert said.returncode == 0 and said.stdout.startswith("Denoising") and said.stderr == ""


def test_a_real_process_says_one_sentence(place):
    said = shell(place, f"{sys.executable} -m sfumato train ddmp photos")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("sfumato: ") and said.stderr.count("\n") == 1 and "'ddpm'" in said.stderr
