"""Guarantee: TRL's trainer and our compiled iteration take the same iteration before they are
timed, and neither stops early."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import cli
from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.tools.bench import peers, ppo, tables, train
from rlhf_jax.tools.bench.shapes import PPO_LADDER, Shape

TINY = Shape("tiny", 1, 32, 16, 300, 4, 16)
TIMES = {"total", "generate", "score", "update", "tokens_per_second", "peak_memory_bytes"}


def settings(**changed):
    return train.Settings(**{"rounds": 2, "threads": 1, "block_seconds": 0.01, **changed})


def quietly(_):
    pass


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ppo --shapes 8x256", "unknown shape '8x256'"),
        ("ppo --against torch", "ppo is not measured against torch"),
        ("train --against trl", "train is not measured against trl"),
        ("ppo --against tlr", "Did you mean 'trl'"),
        ("ppo --trl-python python", "needs --against trl"),
        ("ppo --against trl --torch-python python", "needs --against torch"),
        ("ppo --against trl --rounds 4", "needs at least 5"),
        ("ppo --against trl --trl-python nowhere/python", "pip install trl==1.9.0 torch"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(words, said, monkeypatch, capsys):
    def started(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(peers.Peer, "__init__", started)
    assert cli.main(["bench", *words.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'No package metadata was found for trl' >&2; exit 1", "No package metadata"),
        ("echo 0.29.0", "has trl 0.29.0, and the trainer of trl 1.9.0"),
    ],
)
def test_an_interpreter_without_this_trl_is_told_how_to_get_it(tmp_path, script, said):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(ConfigError, match=rf"{said}.*-m venv \.venv-trl .*trl==1\.9\.0 torch"):
        ppo.find_trl(str(python))


# --- agreement ---------------------------------------------------------------------------------

LOSSES = {"policy_loss": -0.02, "value_loss": 3.0}
ARRAYS = {
    "reference": np.full((2, 3), -5.0),
    "log_probs": np.full((2, 3), -6.0),
    "values": np.zeros((2, 3)),
    "scores": np.ones(2),
    "log_probs_after": np.full((2, 3), -5.9),
    "values_after": np.full((2, 3), 0.2),
}


def agree(folder, losses=LOSSES, **arrays):
    np.savez(folder / "ours.npz", **ARRAYS)
    np.savez(folder / "trl.npz", **{**ARRAYS, **arrays})
    return ppo.agreement(losses, LOSSES, folder / "trl.npz", folder / "ours.npz")


def test_what_agrees_passes_with_its_differences(tmp_path):
    found = agree(tmp_path, {**LOSSES, "value_loss": 3.0002}, scores=np.full(2, 1 - 5e-5))
    assert found["value_loss"] == pytest.approx(2e-4 / 3)
    assert found["scores"] == pytest.approx(5e-5)
    assert found["reference"] == found["log_probs_moved"] == found["values_moved"] == 0


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"reference": np.full((2, 3), -5.001)}, "reference differs by 0.001"),
        ({"log_probs": np.full((2, 3), np.nan)}, "log_probs differs by nan"),
        ({"scores": np.full(2, 1.001)}, "scores differs by 0.001"),
        ({"losses": {**LOSSES, "policy_loss": -0.0202}}, "policy_loss differs by 0.0002"),
        ({"log_probs_after": np.full((2, 3), -5.89)}, "log_probs_moved differs by 0.1"),
        ({"values_after": np.zeros((2, 3))}, "values_moved differs by 1,"),
    ],
)
def test_every_planted_difference_is_named(tmp_path, planted, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        agree(tmp_path, **planted)
    assert "nothing was timed" in str(refusal.value)


# --- measuring ---------------------------------------------------------------------------------


def test_the_setting_is_64_prompts_of_32_tokens_and_32_more():
    found = {s.name: (s.batch, s.seq_len, s.llama.heads, s.llama.F) for s in PPO_LADDER}
    assert found == {"2x64": (64, 64, 2, 176), "4x128": (64, 64, 4, 344)}
    assert all(param_counts(s.llama)["embedding"] == 1024 * s.width for s in PPO_LADDER)


def test_the_arithmetic_at_the_least_is_that_of_its_passes():
    """Where every position needs logits, a pass costs a third of a training step's token."""
    cfg = ModelConfig(layers=2, width=32, heads=2, vocab=50, activation="swiglu")
    rows, T = 3, 40
    a_pass = rows * T * flops_per_token(cfg, T) / 3
    head = 2 * param_counts(cfg)["embedding"] * rows * T
    last = rows * (flops_per_token(cfg, T + 1) * (T + 1) - flops_per_token(cfg, T) * T) / 3
    reward = a_pass + last - head - head / T
    # 14 passes with logits (sample, reference, three for each epoch), 13 without (critic), and the
    # reward.
    expected = 14 * a_pass + 13 * (a_pass - head) + reward
    assert ppo.iteration_flops(cfg, rows, 1, T) == pytest.approx(expected)


def test_ratios_are_of_the_turns_of_a_round():
    ours = [
        {"total": t, "generate": 1.0, "score": 0.5, "update": 1.5, "peak_memory_bytes": 1}
        for t in (1.0, 2.0, 4.0)
    ]
    trl = [{**a, "total": 3 * a["total"], "generate": 5.0, "collect": a["total"]} for a in ours]
    row = ppo.summary(TINY, {"ours": ours, "trl": trl})
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == 3
    assert row["ratio_without_collect"] == 2 and row["decode_ratio"] == 5
    assert row["ours"]["total"] == 2 and row["ours"]["tokens_per_second"] == 4 * 8
    assert set(row["ours"]) == TIMES and set(row["trl"]) == {*TIMES, "collect"}


def test_our_iteration_is_measured(capsys):
    found = json.loads(json.dumps(ppo.bench_ppo([TINY], settings(), quietly)))
    row = found["shapes"][0]
    assert set(row) == {
        "name",
        "ours",
        "reward_step",
        "floor_seconds",
        "share_of_floor",
        "others_share_of_cpu",
    }
    assert set(row["ours"]) == TIMES
    parts = sum(row["ours"][p] for p in ppo.PHASES)
    assert row["ours"]["generate"] > 0 and parts > 0 and 0 < row["share_of_floor"] < 1
    assert row["floor_seconds"] == pytest.approx(
        ppo.iteration_flops(TINY.llama, 4, 8, 8) / found["peak_flops"]
    )
    # One forward and backward pass for each of 9 completions, whatever the 36 pairs.
    assert row["reward_step"]["completions"] == 9
    assert row["reward_step"]["ratio"] == pytest.approx(9, rel=0.05)
    assert set(found["versions"]) == {"ours"}
    tables.show("ppo", found)
    shown = capsys.readouterr().out
    assert "tiny" in shown and "reward step" in shown and "TRL" not in shown


# --- trl ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl():
    """TRL's side's command, by the checkout's environment or this one."""
    for python in (None, sys.executable):
        try:
            return ppo.find_trl(python)
        except ConfigError:
            continue
    pytest.skip(f"no trl here: {ppo.INSTALL}")


def test_trl_agrees_and_is_compared_turn_by_turn(trl, capsys):
    found = ppo.bench_ppo([TINY], settings(torch=trl), quietly)
    row = found["shapes"][0]
    assert max(row["agreement"].values()) <= ppo.MOVED
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert set(row["trl"]) == {*TIMES, "collect"} and row["decode_ratio"] > 0
    assert found["versions"]["trl"]["trl"] == ppo.TRL
    tables.show("ppo", found)
    assert "TRL over ours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rms_norm_eps=1e-6", "rms_norm_eps=1e-2", "reference differs"),
        (" **ppo,", ' **{**ppo, "lam": 0.5},', "policy_loss differs"),
        (" **ppo,", ' **{**ppo, "adam_beta1": 0.0},', "(moved|loss)"),
    ],
)
def test_a_fault_in_trls_program_is_refused(trl, tmp_path, before, after, said):
    script = tmp_path / "peer.py"
    text = Path(trl[1]).read_text()
    assert text.count(before) == 1
    script.write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=f"trl does not compute .*{said}"):
        ppo.bench_ppo([TINY], settings(torch=[trl[0], str(script)]), quietly)
