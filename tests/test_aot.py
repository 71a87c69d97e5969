"""Guarantee: a training step is compiled for TPUs that are not here, and a configuration that
cannot work is refused with the amount, as far as possible before compiling."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax import cli
from rlhf_jax.cost.presets import preset
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.tools.aot.cli import wanted
from rlhf_jax.tools.aot.compile import INSTALL, Job, _refused, check, prepare_environment

ROOT = Path(__file__).parent.parent
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"libtpu is not installed: {INSTALL}"
)
STUDY = """
from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import CorpusConfig, ModelConfig
from rlhf_jax.study import Study


def study(tiny=False):
    small = ModelConfig(layers=2, width=256, heads=2, vocab=512, compute="bfloat16", remat="full")
    huge = ModelConfig(layers=2, width=32768, heads=2, vocab=512, compute="bfloat16")
    return Study("aot", (
        Pretrain("small", model=small, batch=4, tokens=4096),
        Pretrain("again", model=small, batch=4, tokens=4096, seed=1),
        Pretrain("huge", model=huge, batch=4, tokens=4096),
    ), CorpusConfig(vocab=512, seq_len=256))
"""


def command(*words, folder=None):
    """In a process of its own: libtpu reads its settings once."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "rlhf_jax.cli", "aot", *words],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    file = tmp_path_factory.mktemp("aot") / "study.py"
    file.write_text(STUDY)
    return str(file)


@needs_libtpu
def test_a_study_is_compiled_once_a_model_and_described(study):
    done = command(
        study, "--topology", "v5e:2x2", "--cell", "small", "--mesh", "fsdp=2,tensor=2", "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["fits"] and report["name"] == "small" and report["devices"] == 4
    assert 0 < report["memory_bytes"] < report["hbm_bytes"] == int(15.75 * 2**30)
    assert report["step_seconds"] > 0 and 0 < report["mfu"] < report["hfu"] < 1
    kinds = {c["kind"] for c in report["collectives"]}
    assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}
    assert report["hardware_flops"] == pytest.approx(report["hardware_flops_expected"], rel=0.01)
    assert report["loops_not_read"] == []


@needs_libtpu
def test_what_does_not_fit_is_refused_with_the_amount(study):
    done = command(study, "--topology", "v5e:2x2", "--cell", "huge")
    assert done.returncode == 1
    assert "does not fit" in done.stderr and "GiB a device too much" in done.stderr
    assert "DOES NOT FIT" in done.stdout


@needs_libtpu
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gpt2-124m", "--topology", "v5e:3x7"), "libtpu says"),
        (("gpt2-124m", "--topology", "v5e-256"), "expected GENERATION:CHIPS"),
        (("gpt2-124m", "--topology", "v5e:2x2", "--mesh", "fsdp=8"), "needs 8 devices"),
        (("gpt2-124m", "--topology", "v5e:2x2", "--mesh", "tensor=4"), "model.vocab = 50257"),
    ],
)
def test_bad_input_is_refused_before_compiling(words, said):
    done = command(*words)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr) < 500


@pytest.mark.parametrize("option", ["--batch-per-device", "--seq-len", "--accumulate"])
def test_amounts_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["aot", "gpt2-124m", "--topology", "v5e:2x2", option, "0"])
    assert f"argument {option}: " in capsys.readouterr().err


def test_without_libtpu_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlhf-jax\[tpu\]'"):
        prepare_environment()


def test_the_models_of_a_study_are_each_taken_once(study):
    assert [w.name for w in wanted(study, None)] == ["small", "huge"]
    assert [(w.name, w.batch, w.seq_len) for w in wanted(study, "again")] == [("again", 4, 256)]
    with pytest.raises(ConfigError, match="there are: small, again, huge"):
        wanted(study, "large")
    with pytest.raises(ConfigError, match="--cell base is of a study file; llama-8b is a preset"):
        wanted("llama-8b", "base")
    with pytest.raises(ConfigError, match="Did you mean 'llama-8b'"):
        wanted("llama8b", None)


@pytest.mark.parametrize(
    ("model", "mesh", "batch", "accumulate", "said"),
    [
        ({}, {"fsdp": 8}, 1, 1, "'fsdp=8' needs 8 devices; there are 4"),
        ({}, {"data": 1, "fsdp": 2}, 1, 1, "has 2 devices; v5e:2x2 has 4"),
        ({}, {"pipeline": 4}, 1, 1, "unknown axis 'pipeline'"),
        ({"width": 66, "heads": 3}, {"fsdp": 4}, 1, 1, "model.width = 66 does not divide"),
        ({"kv_heads": 1}, {"tensor": 4}, 1, 1, "kv_heads = 1 does not divide over tensor = 4"),
        ({}, {"fsdp": 4}, 1, 3, "= 4 rows do not divide into .* = 12 parts.*rows of 12"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(model, mesh, batch, accumulate, said):
    job = Job(ModelConfig(**model), "v5e:2x2", mesh, batch, 128, accumulate)
    with pytest.raises(ConfigError, match=said):
        check(job, 4)


def test_the_rest_of_the_devices_go_to_data():
    job = Job(preset("llama-8b").model, "v5e:2x2", {"tensor": 2}, 1, 128)
    assert check(job, 4) == {"data": 2, "fsdp": 1, "tensor": 2}


def test_the_compilers_refusal_is_read():
    words = (
        "E1000: Ran out of memory on HBM, the total memory required for HLO temporaries (43.42G) "
        "exceeds available HBM"
    )
    memory, said = _refused(words, {})
    assert memory["total"] == int(43.42 * 2**30) and said == words
