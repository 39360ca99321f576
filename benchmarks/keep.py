"""Keep a trained run in the repository. python benchmarks/keep.py RUN NAME

Writes benchmarks/runs/NAME/: averaged weights in bfloat16, config, metrics; `sfumato.load` opens it like any run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from sfumato.engine.run import RunFolder
from sfumato.engine.state import averaged, write_final

LARGEST = 5 * 2**20


def keep(run: Path, target: Path) -> Path:
    """Copy the averaged model of `run` to `target`; raises ValueError above 5 MB."""
    config, tensors = averaged(run, verify=True)
    small = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    size = sum(t.numel() * t.element_size() for t in small.values())
    if size > LARGEST:
        raise ValueError(f"{run} has {size:,} bytes of weights in bfloat16; at most {LARGEST:,} are kept")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    folder = write_final(RunFolder(target), small, config)
    for path in folder.iterdir():
        path.rename(target / path.name)
    folder.rmdir()
    shutil.copy(run / "metrics.jsonl", target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    print(keep(options.run, Path(__file__).parent / "runs" / options.name))


if __name__ == "__main__":
    main()
