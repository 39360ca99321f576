"""The shape of the house: who may import whom, file sizes, one Recipe per paper, what is public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
from sfumato import registry

ROOT = Path(sfumato.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAY = {
    "core": set(),
    "networks": set(),
    "errors": set(),
    "weights": {"networks", "errors"},
    "samplers": {"core"},
    "autoencoders": {"core", "networks"},
    "conditioning": {"core", "networks"},
    "recipe": {"core", "samplers", "errors"},
    "registry": {"recipe", "errors", "papers"},
    "pixels": {"core", "networks", "samplers", "conditioning", "recipe", "errors"},
    "walks": {"core", "errors", "pixels", "recipe", "samplers"},
    "edits": {"core", "errors", "pixels", "recipe", "samplers", "walks"},
    "encodings": {"core", "errors", "pixels", "recipe", "samplers", "walks"},
    "noised": {"core", "networks", "recipe", "registry", "pixels", "errors"},
    "papers": {"core", "networks", "samplers", "autoencoders", "conditioning", "recipe", "pixels", "noised", "errors"},
    "data": {"core", "errors"},
    "metrics": {"core", "networks", "errors", "data"},
    "engine": {"core", "samplers", "recipe", "registry", "errors", "data", "networks"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path):
    """Rooms of ours and foreign packages that a file imports, with whether the import runs at import time."""
    tree = ast.parse(path.read_text())
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = ["sfumato", *path.relative_to(ROOT).parts[:-1]]
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "sfumato" else [module]
        else:
            continue
        for name in names:
            yield name, id(node) not in late


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = room(path)
    if here not in MAY:
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "sfumato" and len(parts) > 1 and parts[1] not in (here, "__version__"):
            assert parts[1] in MAY[here], f"{here} may not import {name}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in ("core", "networks")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_core_and_networks_know_torch_alone(path):
    for name, _ in imports(path):
        top = name.split(".")[0]
        assert top in {"torch", "sfumato"} or top in sys.stdlib_module_names, name


def test_no_file_imports_torchvision():
    assert not [p for p in FILES for name, _ in imports(p) if name.split(".")[0] == "torchvision"]


def test_files_stay_small():
    assert [f"{p.name} {n}" for p in FILES if (n := len(p.read_text().splitlines())) > 400] == []


def test_one_broadcaster():
    """No reshaping by hand to (B, 1, 1, 1): `like` does it for any number of dimensions."""
    assert [p.name for p in FILES for line in p.read_text().splitlines() if "None, None, None]" in line] == []


@pytest.mark.parametrize("name", registry.papers())
def test_a_paper_file_is_a_paper(name):
    found = registry.paper(name)
    title, *rest = found.doc.strip().splitlines()
    assert "arXiv:" in title and title.endswith(".") and rest, (
        "title, authors, year, arXiv on the first line, then what it is"
    )
    assert found.presets and all(isinstance(p.config, found.config) for p in found.presets.values())
    for preset in found.presets.values():
        assert registry.config_from(found.config, registry.config_dict(preset.config)) == preset.config


def test_the_public_names_are_sorted_and_there():
    assert list(sfumato.__all__) == sorted(sfumato.__all__)
    for name in sfumato.__all__:
        assert getattr(sfumato, name) is not None
    assert set(sfumato.__all__) <= set(dir(sfumato))


def loaded(code):
    """Packages in memory after `code`, in a process of its own."""
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    """And what people then use, a network with a sampler, imports torch alone."""
    heavy = {"matplotlib", "sklearn", "PIL", "rich", "tyro", "pyarrow", "yaml", "safetensors"}
    assert not loaded("import sfumato") & (heavy | {"torch", "numpy"})
    assert not loaded("import sfumato; sfumato.UNet, sfumato.DDIM, sfumato.NeuralDenoiser") & heavy
