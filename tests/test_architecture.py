"""Who may import whom, made executable."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {path.name: path for folder in ("shared", "kernels", "services", "loadgen")
            for path in sorted((ROOT / folder).glob("octavo_*"))}  # fmt: skip
LEAVES = {"octavo_shared", "octavo_kernels"}
HEAVY = {"torch", "transformers", "peft", "safetensors", "triton", "octavo_kernels"}
WORKER_LAYERS = {
    "octavo_worker.engine": 1,
    "octavo_worker.adapters": 2,
    "octavo_worker.model": 2,
    "octavo_worker.metrics": 3,
}
"""A layer imports only layers below it; what lies directly in the package is layer 0."""


def modules() -> Iterator[tuple[str, Path]]:
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield ".".join((name, *path.relative_to(folder).with_suffix("").parts)), path


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module in PACKAGES:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def layer_of(module: str) -> int:
    return next((layer for name, layer in WORKER_LAYERS.items() if f"{module}.".startswith(f"{name}.")), 0)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda one: one if isinstance(one, str) else "")
def test_imports_follow_the_architecture(module: str, path: Path) -> None:
    package = module.split(".")[0]
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if top in PACKAGES and top != package:
            assert package not in LEAVES, f"{module}: a leaf imports {imported}"
            assert top in LEAVES, f"{module}: a service imports {imported}"
        if top in HEAVY:
            assert package in {"octavo_worker", "octavo_kernels"}, f"{module}: only the worker imports {top}"
        if package == top == "octavo_worker":
            assert layer_of(module) <= layer_of(imported), f"{module}: imports upwards from {imported}"


def test_every_folder_is_a_source_root_of_unique_packages() -> None:
    assert len(PACKAGES) == 8
    assert not [folder for folder in ("shared", "kernels", "services", "loadgen", "tests")
                if (ROOT / folder / "__init__.py").exists()]  # fmt: skip


def test_subjects_are_spelt_once() -> None:
    guilty = [name for name, path in modules() if "octavo.v1" in path.read_text() and name != "octavo_shared.subjects"
              and any(isinstance(node, ast.Constant) and str(node.value).startswith("octavo.v1")
                      for node in ast.walk(ast.parse(path.read_text())))]  # fmt: skip
    assert guilty == []


def test_types_are_decoded_in_one_place() -> None:
    own = re.compile(r"from msgspec\.|msgspec\.(convert|(json|msgpack|toml|yaml)\.(decode|Decoder))\b")
    guilty = [name for name, path in modules() if own.search(path.read_text()) and name != "octavo_shared.decoding"]
    assert guilty == []
