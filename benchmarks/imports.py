"""What `import sfumato` costs, against `import torch`: whole processes in turn. python benchmarks/imports.py"""

from __future__ import annotations

import argparse
import subprocess
import sys

from timing import alternate, ratios, report

USED = "import sfumato; sfumato.UNet, sfumato.NeuralDenoiser, sfumato.DDIM, sfumato.Discrete, sfumato.Seeds"
CODE = {"import torch": "import torch", "import sfumato": "import sfumato", "network and sampler": USED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--rounds", type=int, default=15)
    o = parser.parse_args()
    rivals = {
        name: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True) for name, code in CODE.items()
    }
    seconds = alternate(rivals, rounds=o.rounds)
    rows: dict[str, object] = {
        f"{name}, of import torch (median, low, high)": [round(r, 3) for r in ratios(seconds, name, "import torch")]
        for name in list(CODE)[1:]
    }
    rows["seconds, fastest"] = {name: round(min(s), 3) for name, s in seconds.items()}
    report("imports", rows, o.out)


if __name__ == "__main__":
    main()
