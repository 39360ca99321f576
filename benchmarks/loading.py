"""Loading a run into a built model: sfumato.load against building, reading and copying.

    python benchmarks/loading.py [--width 2000000] [--out result.json]

Each way in a process of its own, alternated, page cache warm: seconds until every weight has been read once, and by how
much the peak of resident memory grows, over the size of the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.engine.toy import options, toy, train

WAYS = {
    "sfumato.load": "recipe = load(where, builder=build_toy)",
    "build, safetensors, load_state_dict": "recipe = built(); recipe.load_state_dict(load_file(model))",
    "build, torch.load, load_state_dict": "recipe = built(); recipe.load_state_dict(torch.load(where / 'model.pt'))",
}
CHILD = """
import json, sys, time
from pathlib import Path
import torch, yaml
from safetensors.torch import load_file
from sfumato.engine import load
from tests.engine.toy import build_toy
def peak():     # of this process alone; ru_maxrss begins with the parent's
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
where = Path(sys.argv[1])
model = where / "final" / "model.safetensors"
config = yaml.safe_load((where / "config.yaml").read_text())["config"]
built = lambda: build_toy("toy", config)
load(sys.argv[2], builder=build_toy)
before, start = peak(), time.perf_counter()
{way}
ready = time.perf_counter() - start
total = sum(float(p.sum()) for p in recipe.parameters())
print(json.dumps({{"seconds": ready, "touched": time.perf_counter() - start, "memory": peak() - before}}))
"""


def measure(way: str, large: Path, small: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(way=way), large, small], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--width", type=int, default=2_000_000)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--out", type=Path)
    given = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        train(toy(), options(small, steps=1))
        recipe = toy(width=given.width)
        train(recipe, options(large, steps=1))
        import torch

        torch.save(recipe.state_dict(), large / "model.pt")
        size = sum(p.numel() * 4 for p in recipe.parameters())
        rows = [{name: measure(way, large, small) for name, way in WAYS.items()} for _ in range(given.rounds)]
    results = {
        name: {key: statistics.median(row[name][key] for row in rows) for key in ("seconds", "touched", "memory")}
        for name in WAYS
    }
    print(f"{size / 1e6:.0f} MB of weights")
    for name, r in results.items():
        print(
            f"{name}: {1e3 * r['seconds']:.0f} ms, all weights read after {1e3 * r['touched']:.0f} ms, "
            f"memory {r['memory'] / size:.2f} x"
        )
    if given.out:
        given.out.write_text(json.dumps({"bytes": size, "results": results}, indent=1))


if __name__ == "__main__":
    main()
