"""Guarantee: what is compared computes the same, what is reported was measured, and what cannot be
measured is refused before anything runs."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import cli
from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.study.config import ConfigError
from rlhf_jax.tools.bench import agreement, peers, tables, train
from rlhf_jax.tools.bench.cli import BENCHMARKS, add_arguments, command
from rlhf_jax.tools.bench.shapes import LADDER, Shape, batch_of, chosen, random_rows

TINY = Shape("tiny", 1, 32, 16, 384, 2, 64)
ROOT = Path(__file__).parent.parent


def settings(**changed):
    return train.Settings(**{"rounds": 5, "threads": 1, "block_seconds": 0.01, **changed})


# --- the ladder --------------------------------------------------------------------------------


def test_the_ladder_is_what_it_says():
    found = {s.name: (s.model.heads, s.tokens, param_counts(s.model)["total"]) for s in LADDER}
    assert found == {
        "2x64": (2, 4096, 139_904),
        "4x128": (4, 4096, 870_656),
        "6x192": (6, 2048, 2_880_384),
        "8x256": (8, 2048, 6_595_072),
        "12x512": (8, 1024, 38_364_160),
    }


def test_shapes_are_chosen_in_the_ladders_order():
    assert [s.name for s in chosen(["8x256", "2x64"])] == ["2x64", "8x256"]
    assert chosen(None) == list(LADDER)


def test_rows_are_the_same_each_time_and_targets_are_the_next_tokens():
    rows = random_rows(TINY, 3)
    assert rows.shape == (3, 2, 65) and rows.max() < TINY.vocab
    assert np.array_equal(rows, random_rows(TINY, 3)) and not np.array_equal(rows[0], rows[1])
    batch = batch_of(rows[0])
    assert np.array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert batch["weights"].sum() == TINY.tokens and batch["positions"][1, -1] == 63


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --shapes 2x65", "Did you mean '2x64'"),
        ("train --against torch --rounds 4", "needs at least 5"),
        ("population --rounds 0", "must be at least 1"),
        ("ppo --threads 0", "must be at least 1"),
        ("train --against tensorflow", "Known: torch"),
        ("population --against torch", "--against is of bench train"),
        ("train --torch-python python", "needs --against torch"),
        ("train --against torch --torch-python nowhere/python", "python3.11 -m venv .venv-torch"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(words, said, monkeypatch, capsys):
    def started(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(peers.Peer, "__init__", started)
    assert cli.main(["bench", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_an_interpreter_without_torch_is_told_how_to_get_it(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(ConfigError, match=r"No module named 'torch'.*pip install torch numpy"):
        train.find_torch(str(python))


def test_the_command_line_stays_light():
    program = "import sys, rlhf_jax.cli; print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "jax'" not in done.stdout and "numpy" not in done.stdout, done.stdout + done.stderr


def test_a_process_that_dies_says_why():
    command = (sys.executable, "-c", "import sys; sys.exit('no memory left')")
    with (
        peers.Peer("other", command, 1, {}) as peer,
        pytest.raises(ConfigError, match="other process failed at 'load': 'no memory left'"),
    ):
        peer.ask("load")


# --- agreement ---------------------------------------------------------------------------------

LOSSES = [6.2 - 0.01 * n for n in range(agreement.STEPS + 1)]
GRADIENTS = {"embed": np.ones((3, 2)), "layers/wq": np.full((1, 2), 1e-6)}


def agree(folder, losses=LOSSES, **gradients):
    np.savez(folder / "ours.npz", **GRADIENTS)
    np.savez(folder / "theirs.npz", **{**GRADIENTS, **gradients})
    return agreement.check("other", losses, LOSSES, folder / "theirs.npz", folder / "ours.npz")


def test_what_agrees_passes_with_its_differences(tmp_path):
    found = agree(tmp_path, [*LOSSES[:-1], LOSSES[-1] + 1e-3], embed=np.full((3, 2), 1 + 5e-5))
    assert found.loss_difference == 0
    assert found.gradient_difference == pytest.approx(5e-5)
    assert found.loss_difference_after_20 == pytest.approx(1e-3 / LOSSES[-1])


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"losses": [6.21, *LOSSES[1:]]}, "the loss of the first step differs by 0.0016"),
        ({"losses": [*LOSSES[:-1], 6.01]}, "the loss after 20 steps differs by 0.0017"),
        ({"losses": [float("nan"), *LOSSES[1:]]}, "the loss of the first step differs by nan"),
        ({"layers/wq": np.full((1, 2), 1.001e-6)}, "the gradient of layers/wq differs by 0.001"),
        ({"embed": np.full((3, 2), np.nan)}, "the gradient of embed differs by nan"),
        ({"embed": np.ones((2, 3))}, r"shape \(2, 3\), that of rlhf-jax \(3, 2\)"),
        ({"bias": np.ones(2)}, "other parameters than rlhf-jax: bias"),
    ],
)
def test_every_planted_difference_is_named(tmp_path, planted, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        agree(tmp_path, **planted)
    assert "nothing was timed" in str(refusal.value)


# Speaks the protocol, copies our gradients, and gets every loss wrong but the first, which it is
# told.
FAKE = """
import json, pathlib, shutil, sys

for line in sys.stdin:
    asked = json.loads(line)
    answer = {"versions": {"torch": "fake"}, "flops": 1e9}
    if asked["op"] == "load":
        folder = pathlib.Path(asked["path"]).parent
    if asked["op"] == "gradients":
        shutil.copy(folder / "ours.npz", asked["path"])
    if asked["op"] == "steps":
        answer = {"seconds": 0.1, "cpu_seconds": 0.1, "losses": [LOSS] * asked["count"],
                  "peak_memory_bytes": 1}
    print(json.dumps(answer), flush=True)
"""


def test_a_peer_that_computes_something_else_is_refused_before_timing(tmp_path):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE.replace("LOSS", "4.0"))
    said = []
    with pytest.raises(ConfigError, match=r"torch_eager does not compute .* the first step"):
        train.measure(TINY, settings(torch=(sys.executable, str(fake))), said.append)
    assert not any("round" in text for text in said)


# --- measuring ---------------------------------------------------------------------------------


def quietly(_):
    pass


def measured(what, capsys):
    """The row of the tiny shape, after it has been shown."""
    found = BENCHMARKS[what]([TINY], settings(rounds=2), quietly)
    tables.show(what, found)
    assert "tiny" in capsys.readouterr().out
    assert [row["name"] for row in found["shapes"]] == ["tiny"] and found["threads"] == 1
    return found["shapes"][0]


def test_training_is_measured_and_json_is_all_that_is_printed(capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["train", "--json", "--rounds", "1", "--threads", "1"])
    assert command(args, [TINY]) == 0
    found = json.loads(capsys.readouterr().out)
    row = found["shapes"][0]
    assert set(found["versions"]["ours"]) == {"jax", "jaxlib", "python"}
    assert found["machine"]["cores"] >= 1 and "geomean" not in found and "ratio" not in row
    assert row["ours_low"] <= row["ours"] <= row["ours_high"]
    assert row["compile_seconds"] > 0 and 10**8 < row["peak_memory_bytes"] < 10**10
    assert 0 < row["fraction_of_peak"] < 1
    flops = row["ours"] * flops_per_token(TINY.model, TINY.seq_len)
    assert row["model_flops_per_second"] == pytest.approx(flops)
    assert row["fraction_of_peak"] == pytest.approx(flops / found["peak_flops"])


def test_a_population_computes_what_a_cell_computes_and_is_measured(capsys):
    row = measured("population", capsys)
    for name in ("sequential", "workers", "population"):
        assert row[name] > 0
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


# --- torch -------------------------------------------------------------------------------------

COMPILED = "torch.compile(self.model) if compiled else self.model"


def changed(torch, folder, before, after):
    """The torch side with a piece of its program replaced."""
    script = folder / "peer.py"
    text = Path(torch[1]).read_text()
    assert text.count(before) == 1
    script.write_text(text.replace(before, after))
    return [torch[0], str(script)]


@pytest.fixture(scope="module")
def torch():
    """The torch side's command, by the checkout's torch environment or this one."""
    for python in (None, sys.executable):
        try:
            return train.find_torch(python)
        except ConfigError:
            continue
    pytest.skip(f"no torch here: {train.INSTALL}")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("is_causal=True", "is_causal=False", "the loss of the first step differs"),
        ("F.linear(x, self.embed)", "F.linear(x, self.embed.detach())", "the gradient of embed"),
        ('group["lr"] = rate', 'group["lr"] = 0.9 * rate', "the loss after 20 steps differs"),
    ],
)
def test_a_fault_in_torchs_program_is_refused(torch, tmp_path, before, after, said):
    command = changed(torch, tmp_path, before, after)
    with pytest.raises(ConfigError, match=f"torch_eager does not compute .*{said}"):
        train.measure(TINY, settings(torch=command), quietly)


def compared(torch, capsys):
    found = train.bench_train([TINY], settings(torch=torch), quietly)
    row = found["shapes"][0]
    assert row["loss_difference"] <= agreement.FIRST
    assert row["gradient_difference"] <= agreement.FIRST
    assert row["loss_difference_after_20"] <= agreement.LATER
    assert row["torch"] == max(row["torch_eager"], row["torch_compiled"]) == row[row["torch_is"]]
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert found["geomean"] == pytest.approx(row["ratio"])
    assert row["ceiling"] == pytest.approx(row["ours"] / row["torch"] / row["fraction_of_peak"])
    assert found["rounds"] == 5 and set(found["versions"]) == {"ours", "torch"}
    tables.show("train", found)
    assert "geometric mean" in capsys.readouterr().out


def test_torch_agrees_and_is_compared_turn_by_turn(torch, tmp_path, capsys):
    compared(changed(torch, tmp_path, COMPILED, "self.model"), capsys)


@pytest.mark.slow
def test_compiled_torch_agrees_and_is_compared(torch, capsys):
    compared(torch, capsys)
