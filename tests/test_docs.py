"""The programs in the README and the docs run; the commands they name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LESS = {  # the same program on less: embedded data, one picture, three steps
    '"runs/photos"': repr(str(ROOT / "benchmarks" / "runs" / "letters")),
    "n=16": "n=1",
    '"photos/"': '"digits"',
    "size=64": "size=8",
    "out=": "sample_every=0, out=",
    "training=preset.training": "training=sfumato.Training(steps=3, batch=4)",
    "step.step % 100 == 0": "True",
}


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
COMMAND = re.compile(r"^(?:torchrun .* -m )?sfumato ([a-z]+)(.*)$", re.M)


def python(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def programs():
    for page in PAGES:
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf8"), re.S)):
            yield pytest.param(code, id=f"{page.stem}-{i}")


@pytest.mark.parametrize("code", list(programs()))
def test_python_programs_run(code, tmp_path):
    for old, new in LESS.items():
        code = code.replace(old, new)
    code = code.replace(LESS['"runs/photos"'] + ", training", repr(str(tmp_path / "run")) + ", training")
    done = python("-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_that_is_named_exists():
    helps: dict[str, str] = {}
    for page in PAGES:
        for verb, rest in re.findall(
            r"^(?:torchrun .* -m )?sfumato ([a-z]+)(.*)$", page.read_text(encoding="utf8"), re.M
        ):
            if verb not in helps:
                done = python("-m", "sfumato", verb, "--help")
                assert done.returncode == 0, (page.name, verb, done.stderr)
                helps[verb] = done.stdout
            for option in re.findall(r"(--[a-z-]+)", rest.split("#")[0]):
                assert option in helps[verb], (page.name, verb, option)
    assert {"demo", "train", "sample"} <= helps.keys()


def test_the_readme_lists_every_paper():
    from sfumato import registry

    text = PAGES[0].read_text(encoding="utf8")
    for name in registry.papers():
        assert f"| `{name}` | {registry.paper(name).title} |" in text
