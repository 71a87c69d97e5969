"""Which parts of the house may know which, read from the imports in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from rlhf_jax.kinds import KINDS

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("rlhf_jax", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def statements(body: list[ast.stmt], lazy: bool) -> Iterator[ast.stmt]:
    """Those of a module, without what type checkers alone read; `lazy`: of functions as well."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse, lazy)
            continue
        yield node
        if lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from statements(getattr(node, name, []), lazy)


def imports(module: str, lazy: bool = False) -> set[str]:
    """Modules of this house that a module names in its imports."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[module].read_text()).body, lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n for n in names if n in MODULES} or {node.module}
    return {name for name in found if name in MODULES}


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_no_modules_import_each_other():
    assert circle({name: imports(name) - {name} for name in MODULES}) == []


@pytest.mark.parametrize(
    ("room", "stranger", "door"),
    [
        ("rlhf_jax.study", "rlhf_jax.kinds", None),  # a study is about cells of any kind
        ("rlhf_jax.study", "rlhf_jax.data", "rlhf_jax.study.command"),  # finds the corpus
        ("rlhf_jax.study", "rlhf_jax.report", None),
        ("rlhf_jax.cost", "rlhf_jax.kinds", None),
        ("rlhf_jax.cost", "rlhf_jax.report", None),
        ("rlhf_jax.laws", "rlhf_jax.report", None),
        ("rlhf_jax.data", "rlhf_jax.report", None),
        ("rlhf_jax.evals", "rlhf_jax.report", None),
        ("rlhf_jax.placement", "rlhf_jax.kinds", "rlhf_jax.placement.cli"),  # its checks
        ("rlhf_jax", "rlhf_jax.tools", "rlhf_jax.cli"),  # guests
        ("rlhf_jax", "launch", None),  # found by entry point
        ("launch", "rlhf_jax.tools", None),
    ],
)
def test_a_room_knows_nothing_of_another(room, stranger, door):
    def inside(name: str, of: str) -> bool:
        return name == of or name.startswith(of + ".")

    known = {
        name: {other for other in imports(name, lazy=True) if inside(other, stranger)}
        for name in MODULES
        if inside(name, room) and not inside(name, stranger) and name != door
    }
    assert {name: others for name, others in known.items() if others} == {}


def test_kinds_know_each_other_by_role_alone():
    """A folder of a kind imports no other one's, and no module outside imports any, but for the
    analyses of what is pretrained and the code that one kind runs."""
    folders = {cls.__module__.rpartition(".")[0]: kind for kind, cls in KINDS.items()}
    assert len(folders) == len(KINDS)
    for folder in folders:
        for name in (n for n in MODULES if n.startswith(folder + ".")):
            for other in imports(name, lazy=True):
                owner = ".".join(other.split(".")[:3])
                assert owner not in folders or owner == folder, f"{name} imports {other}"
    shared = [n for n in MODULES if n.startswith("rlhf_jax.kinds.") and n.count(".") == 2]
    for name in set(shared) - set(folders):
        known = {".".join(o.split(".")[:3]) for o in imports(name, lazy=True)} & set(folders)
        assert not known, f"{name} imports {known}"


def test_studies_and_kinds_import_neither_jax_nor_matplotlib():
    names = [n for n in MODULES if n.startswith("rlhf_jax.study")]
    names += [n for n in MODULES if n.startswith("rlhf_jax.kinds") and n.endswith(".cell")]
    code = f"""
import importlib, sys
for name in {[*names, "rlhf_jax.kinds", "rlhf_jax.kinds.bases", "rlhf_jax.worker"]}:
    importlib.import_module(name)
heavy = {{"jax", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_study_files_of_before_find_what_they_import():
    from rlhf_jax import cells, config
    from rlhf_jax.kinds import TaskConfig
    from rlhf_jax.study import Analysis, Study
    from rlhf_jax.study.config import CorpusConfig, ModelConfig, OptimConfig

    for kind in ("PPO", "SFT", "Compare", "Ensemble", "Evaluate", "Pretrain", "Reward"):
        assert getattr(cells, kind) is KINDS[kind.lower()]
    assert cells.TaskConfig is TaskConfig and issubclass(cells.PPO, cells.Cell)
    for name in (CorpusConfig, ModelConfig, OptimConfig):
        assert getattr(config, name.__name__) is name
    assert Study("old", (cells.Pretrain("a"),), analyses=(Analysis("lr_check", ("a",)),))
