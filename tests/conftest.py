"""Studies and a worker without training, for the tests of graphs, folders and launchers."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: fits use tiny matrices

import pytest

from launch.local import Local, LocalOptions
from rlhf_jax import cli
from rlhf_jax.kinds import PPO, SFT, Compare, Evaluate, Pretrain, Reward
from rlhf_jax.placement import launchers
from rlhf_jax.placement.launchers import Launch
from rlhf_jax.study import Study, load_study
from rlhf_jax.study.config import CorpusConfig, ModelConfig
from rlhf_jax.study.runs import Runs

STUDY = """
from rlhf_jax.kinds import Pretrain, SFT
from rlhf_jax.study import CorpusConfig, ModelConfig
from rlhf_jax.study import Study


def study(tiny):
    model = ModelConfig(layers=1, width=32, heads=2, vocab=64)
    small = dict(model=model, batch=2, tokens=256)
    return Study("fake", (
        Pretrain("a", **small),
        Pretrain("b", **small, seed=1),
        SFT("a-child", base="a"),
        SFT("a-grandchild", base="a-child"),
        SFT("b-child", base="b"),
    ), CorpusConfig(vocab=64, seq_len=32), members=1)
"""

# Answers like rlhf_jax.worker. What it does in a cell is the text of CONTROL/<cell>; what it has
# done is a line in CONTROL/log.
WORKER = """
import os, signal, sys, threading, time
from pathlib import Path
from rlhf_jax.study.files import write_json
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.runs import Runs
from rlhf_jax.study import load_study

control, path, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
runs = Runs(arguments[arguments.index("--runs") + 1])
overrides = [b for a, b in zip(arguments, arguments[1:]) if "=" in b and a != "--mesh"]
study = load_study(path, "--tiny" in arguments, overrides)
folders = runs.folders(study, "corpus")
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())


(control / "started").write_text(" ".join(arguments) + chr(10) + os.environ.get("XLA_FLAGS", ""))


def files(kind):
    measured = {"bits_per_byte": 2.0, "bits_per_byte_stderr": 0.01, "tokens": 64}
    held = {"loss": 3.25, "stderr": 0.0125, **measured}
    if kind == "sft":
        return {"heldout": held, "sft": {"demonstrations": 8, "steps": 2}}
    cost = {"params": 1000, "param_counts": {"total": 1000}, "flops": {"exact": 1e6}}
    return {"heldout": {**held, **cost, "train_tokens": 256, "batch_tokens": 64}}


def log(text):
    with open(control / "log", "a") as f:
        f.write(text + chr(10))


def answer(name, outcome, reason=None):
    import json
    print(json.dumps({"cell": name, "outcome": outcome, "reason": reason}), flush=True)


print("a line that is not an answer", flush=True)
for line in sys.stdin:
    name = line.strip()
    folder = folders[name]
    todo = (control / name).read_text().split() if (control / name).exists() else []
    with folder.held() as ours:
        if not ours:
            answer(name, "held")
            continue
        if folder.kept():
            folder.clear()
        folder.unfinish()
        (folder.path / "failed.json").unlink(missing_ok=True)
        with Heartbeat(folder, every=0.1) as beat:
            beat.progress(step=1, steps=2, loss=3.5)
            log(f"start {name}")
            if "sleep" in todo:
                asked.wait(float(todo[1]))
            if asked.is_set():
                if "slow" in todo:
                    time.sleep(float(todo[todo.index("slow") + 1]))
                if "hang" in todo:
                    beat._stop.set()
                    time.sleep(60)
                log(f"stopped {name}")
                answer(name, "stopped")
                sys.exit(0)
            if "die" in todo:
                time.sleep(0.5)  # what was printed before is in the log by now
                print("last words", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if "fail" in todo:
                write_json(folder.path / "failed.json", {"reason": "asked to", "time": time.time()})
                answer(name, "failed", "asked to")
                continue
            log(f"end {name}")
            for stem, content in files(study[name].KIND).items():
                write_json(folder.results / f"{stem}.json", content)
            folder.finish(seconds=0.5)
            if "die-done" in todo:
                os.kill(os.getpid(), signal.SIGKILL)
    answer(name, "done")
"""


class FakeLaunch:
    """A study file, a runs root and a control folder; `run` launches with the fake worker."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fake.py"
        self.path.write_text(STUDY)
        self.control = folder / "control"
        self.control.mkdir()
        self.script = folder / "worker.py"
        self.script.write_text(WORKER)
        self.runs = Runs(folder / "runs")
        self.study = load_study(self.path)
        self.worker_command = (sys.executable, str(self.script), str(self.control))

    def run(self, **options) -> int:
        of = {"workers": 2, **options}
        places = LocalOptions(**{n: of.pop(n) for n in ("workers", "threads") if n in of})
        launch = Launch(
            self.study,
            self.path,
            self.runs,
            "corpus",
            worker_command=self.worker_command,
            **{"display": "lines", **of},
        )
        return Local(launch, places).run()

    def tell(self, cell: str, what: str) -> None:
        (self.control / cell).write_text(what)

    def log(self) -> list[str]:
        path = self.control / "log"
        return path.read_text().splitlines() if path.exists() else []

    def folder(self, cell: str):
        return self.runs.folders(self.study, "corpus")[cell]

    def states(self) -> dict[str, str]:
        return {n: f.state()["state"] for n, f in self.runs.folders(self.study, "corpus").items()}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLaunch:
    here = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    return FakeLaunch(tmp_path)


@pytest.fixture
def command(fake, monkeypatch):
    """The command line over a corpus that needs no preparation, the fake worker, and no report."""
    corpus = types.SimpleNamespace(content_hash="corpus", tokens=lambda split: 1000)
    module = types.ModuleType("rlhf_jax.data.corpus")
    module.find = lambda cfg, root: corpus
    module.prepare = lambda cfg, root, log: corpus
    monkeypatch.setattr("rlhf_jax.kinds.needs.check_data", lambda *given: [])
    monkeypatch.setitem(sys.modules, "rlhf_jax.data.corpus", module)
    report = types.ModuleType("rlhf_jax.report.html")
    report.build = lambda folder, root: folder / "report.html"
    monkeypatch.setitem(sys.modules, "rlhf_jax.report.html", report)
    monkeypatch.setattr(launchers, "WORKER", fake.worker_command)

    def call(name: str, *words: str) -> int:
        return cli.main([name, str(fake.path), "--runs", str(fake.runs.root), *words])

    return call


@pytest.fixture
def rlhf_study() -> Study:
    """One cell of every kind."""
    model = ModelConfig(layers=2, width=64, heads=4, vocab=256)
    return Study(
        "all-kinds",
        (
            Pretrain("base", model=model, tokens=65_536, batch=8),
            Pretrain("longer", model=model, tokens=131_072, batch=8, continues="base"),
            SFT("sft", base="longer", examples=128),
            Compare("compare", policy="sft", prompts=32, heldout_prompts=16),
            Reward("reward", base="sft", comparisons="compare"),
            PPO("ppo", policy="sft", reward="reward", iterations=3, batch=8),
            Evaluate("evaluate", before="sft", after="ppo", reward="reward", prompts=16),
        ),
        CorpusConfig(vocab=256, seq_len=64, heldout_tokens=4096),
    )


def pytest_make_parametrize_id(config, val, argname):
    """Bytes can hold the time at which they were packed; workers must name a test alike."""
    return argname if isinstance(val, bytes) else None
