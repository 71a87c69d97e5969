"""Guarantee: a launcher is one file and one entry point of any installed package; the product
imports none; an option that a launcher does not declare is refused."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax import cli
from rlhf_jax.placement import launchers

ROOT = Path(__file__).parent.parent

# A batch scheduler in small: it takes all tasks at once, and starts a process a task when those
# that it comes after have succeeded.
BATCH = """
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launch.launcher import Event, Launcher
from rlhf_jax.study.config import Checked


@dataclass(frozen=True)
class Options(Checked):
    record: str = ""
    slots: int = 1


class Batch(Launcher):
    Options = Options
    QUEUES = True

    def __init__(self, launch, options):
        super().__init__(launch, options)
        self.queue, self.done, self.workers = [], set(), options.slots
        self.said = []

    def start(self, task):
        self.queue.append(task)
        self.said.append(["submit", list(task.cells), list(task.after)])

    def poll(self, seconds):
        for task in self.queue:
            if set(task.after) <= self.done:
                self.queue.remove(task)
                self.said.append(["start", *task.cells])
                started = [Event(cell, "started") for cell in task.cells]
                return started + self.work(task)
        return []

    def work(self, task):
        process = subprocess.run(self.launch.worker(threads=1), input=" ".join(task.cells),
                                 capture_output=True, text=True)
        if process.returncode < 0:
            return [Event(cell, "killed", "preempted", process.stderr) for cell in task.cells]
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        events = [Event(a["cell"], a["outcome"], a["reason"]) for a in map(json.loads, lines)]
        self.done |= {event.cell for event in events if event.outcome == "done"}
        return events

    def describe(self, tasks):
        return "\\n".join(f"submit {' '.join(t.cells)} after {' '.join(t.after)}." for t in tasks)

    def stop(self, cells, now=False):
        self.said.append(["stop", *cells])
        self.queue = [task for task in self.queue if not set(task.cells) & set(cells)]

    def close(self):
        Path(self.options.record).write_text(json.dumps(self.said))
"""


def install(folder: Path, name: str, value: str) -> None:
    """What an installer leaves of a package with one entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{launchers.GROUP}]\n{name} = {value}\n")


@pytest.fixture
def batch(command, fake, tmp_path, monkeypatch):
    """`run` with the launcher from outside; returns its exit code and what it was told."""
    site = tmp_path / "site"
    install(site, "batch", "batch_launcher:Batch")
    (site / "batch_launcher.py").write_text(BATCH)
    monkeypatch.syspath_prepend(str(site))
    record = tmp_path / "said.json"

    def call(*words: str) -> tuple[int, list]:
        code = command("run", "--launcher", "batch", "--launch", f"record={record}", *words)
        return code, json.loads(record.read_text()) if record.exists() else []

    return call


def test_a_launcher_of_another_package_runs_a_study(batch, fake, capsys):
    code, said = batch()
    assert code == 0 and set(fake.states().values()) == {"done"}
    submitted = {told[1][0]: told[2] for told in said if told[0] == "submit"}
    assert submitted == {
        "a": [],
        "b": [],
        "a-child": ["a"],
        "a-grandchild": ["a-child"],
        "b-child": ["b"],
    }
    order = [told[0] for told in said]
    assert order.index("start") >= len(submitted) and "stop" not in order
    assert "studies/fake/report.html" in capsys.readouterr().out
    assert batch() == (0, [])  # all is done: nothing is submitted again


def test_a_dry_run_says_what_the_launcher_would_submit(batch, fake, capsys):
    lines = ["submit a after .", "submit a-child after a.", "submit a-grandchild after a-child."]
    assert batch("--dry-run", "--only", "a-grand*") == (0, [])
    assert capsys.readouterr().out.split("\n\n")[-1].splitlines() == lines
    assert fake.log() == [] and batch("--only", "a*")[0] == 0
    assert batch("--dry-run", "--only", "a*", "--force", "a-child")[0] == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("submit")] == [
        "submit a-child after .",
        lines[2],
    ]
    assert fake.states()["a-child"] == "done"


@pytest.mark.parametrize("at", ["__init__", "start", "poll", "describe"])
def test_a_launcher_that_raises_ends_in_one_sentence_and_is_closed(batch, tmp_path, capsys, at):
    failing = (
        f"def {at}(self, *given, **named):\n    raise KeyError('partition')\nBatch.{at} = {at}\n"
    )
    site = tmp_path / "site" / "batch_launcher.py"
    site.write_text(BATCH + failing)
    sys.modules.pop("batch_launcher", None)
    code, said = batch(*(["--dry-run"] if at == "describe" else []))
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    assert "launcher 'batch' failed: KeyError: 'partition'" in err and f"{site}, line" in err
    assert bool(said) == (at == "poll") or at == "start"


def test_what_fails_takes_its_descendants_out_of_the_queue(batch, fake, capsys):
    fake.tell("a", "fail")
    code, said = batch("--display", "lines")
    assert code == 1 and ["stop", "a-child", "a-grandchild"] in said
    assert "a-grandchild: waiting: parent a failed" in capsys.readouterr().out
    assert fake.states()["b-child"] == "done"
    fake.tell("a", "")
    code, said = batch()
    assert code == 0 and [told[1] for told in said if told[0] == "submit"] == [
        ["a"],
        ["a-child"],
        ["a-grandchild"],
    ]


def test_a_preempted_cell_is_submitted_again_a_few_times(batch, fake, capsys):
    fake.tell("b", "die")
    code, said = batch("--only", "b")
    assert code == 1 and said.count(["submit", ["b"], []]) == 3
    assert fake.folder("b").state()["reason"] == "3 workers in turn: preempted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "btach"], "unknown launcher 'btach'. Did you mean 'batch'? Installed: ba"),
        (["--launcher", "moon"], "Installed: batch, broken, local, needy; a package adds one"),
        (["--launcher", "broken"], "launcher 'broken' (nowhere:Gone) cannot be loaded: ModuleNotF"),
        (["--launcher", "needy"], "launcher 'needy' (needy:Needy) cannot be loaded: TypeError"),
        (["--launch", "slot=2"], "unknown key 'slot' in launcher batch. Did you mean 'slots'?"),
        (["--launch", "slots=two"], "launcher batch.slots: expected int, got 'two'"),
        (["--launch", "slots"], "expected OPTION=VALUE; options of launcher batch: record, slots"),
        (["--workers", "2"], "unknown key 'workers' in launcher batch"),
        (["--launcher", "local", "--launch", "workers=0"], "launcher local.workers = 0; expected"),
        (
            ["--launcher", "local", "--launch", "workers=2", "--workers", "3"],
            "launcher local: workers = 2 and workers = 3 are both given",
        ),
    ],
)
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_what_no_launcher_reads_is_refused_before_anything_runs(
    batch, fake, tmp_path, capsys, words, message, how
):
    install(tmp_path / "site", "broken", "nowhere:Gone")
    install(tmp_path / "site", "needy", "needy:Needy")
    needy = "class Needy:\n    def Options(needed):\n        return needed\n"
    (tmp_path / "site" / "needy.py").write_text(needy)
    words = words if "--launcher" in words else ["--launcher", "batch", *words]
    runs = ["--runs", str(fake.runs.root)]
    assert cli.main(["run", str(fake.path), *runs, *how, *words]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert fake.log() == [] and not fake.runs.root.exists()


def test_options_of_the_local_launcher_may_stand_among_overrides(command, fake):
    words = ["--launch", "workers=1", "b.seed=4", "threads=1", "--only", "b"]
    assert command("run", *words) == 0
    assert fake.states()["b"] == "waiting"  # its seed is 4
    arguments = (fake.control / "started").read_text()
    assert "b.seed=4" in arguments and "workers" not in arguments


def test_the_product_imports_no_launcher():
    for path in (ROOT / "rlhf_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] == "launch"], path
    code = "import sys, launch.local; assert not {'jax', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: rlhf-jax ") and "predict" in done.stdout
