"""The report's sections on feedback: proxies and over-optimization, rounds, seeds, modes."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_report import write_cell, write_study
from tiny_results import whole

from rlhf_jax.evals.best_of_n import gold_by_prompt
from rlhf_jax.kinds.best_of_n.result import BestOf
from rlhf_jax.kinds.evaluate.section import over_seeds
from rlhf_jax.report import html, rounds
from rlhf_jax.report.families import family, strokes
from rlhf_jax.report.study_results import read_study


def child(cell, *parents):
    """The cell with its parents, as `study.json` names them."""
    return cell | {"parents": list(parents)}


def proxies(root: Path, seeds=3):
    """Reward models of 2 sizes and 2 numbers of labels, each optimised against by best-of-n and
    PPO; larger ones and more labels are over-optimised later."""
    rng = np.random.default_rng(0)
    cells = [write_cell(root, "sft", "sft", heldout={"loss": 2.5})]
    for width in (16, 64):
        for labels in (128, 1024):
            beta = 0.5 - 0.002 * width - 0.0001 * labels
            for seed in range(seeds):
                name = f"rm-w{width}-n{labels}-s{seed}"
                accuracy = 0.6 + 0.001 * width + 0.0001 * labels + 0.01 * rng.normal()
                model = {"layers": 1, "width": width, "heads": 2, "vocab": 64}
                report = {
                    "accuracy": accuracy,
                    "prompts": labels,
                    "n_pairs": 300,
                    "baselines": {"longer wins": 0.55},
                }
                cells.append(write_cell(root, "reward", name, {"model": model}, report=report))
                d = np.sqrt([np.log(n) - (n - 1) / n for n in (1, 2, 4, 8, 16, 32)])
                config = {"reward": name, "seed": seed}
                bon = child(write_cell(root, "best_of_n", f"bon-{name}", config), "sft", name)
                proxy = rng.normal(size=(40, 32))
                gold = 0.6 * proxy - 0.4 * beta * proxy**2 + 0.5 * rng.normal(size=(40, 32))
                results = root / bon["folder"] / "results"
                np.savez(results / "samples.npz", proxy=proxy, gold=gold)
                curve = [
                    {
                        "n": 2**i,
                        "kl": float(x**2),
                        "gold": float(x * (0.6 - 0.4 * beta * x)),
                        "proxy": float(1.1 * x),
                        "gold_gain": float(x * (0.6 - 0.4 * beta * x)),
                        "gold_gain_interval": [0.1, 0.3],
                    }
                    for i, x in enumerate(d)
                ]
                found = {
                    "curve": curve,
                    "gold_by_prompt": gold_by_prompt(proxy, gold),
                    "prompts": 40,
                    "n": 32,
                    "distinct": 0.9,
                    "demonstrations": 40,
                }
                (results / "best_of_n.json").write_text(json.dumps(whole(BestOf, found)))
                kl = 12 * np.linspace(0, 1, 60) ** 1.5
                x = np.sqrt(kl)
                golds = (
                    0.1
                    + x * (0.5 - beta * np.log(np.maximum(x, 1e-9)))
                    + 0.05 * rng.normal(size=60)
                )
                metrics = [
                    {
                        "step": i + 1,
                        "kl": k,
                        "reward_gold": g,
                        "reward_proxy": float(0.8 * np.sqrt(k)),
                        "entropy": 2.0,
                        "distinct_2": 0.8,
                        "response_length": 20.0,
                        "max_ratio_error": 1e-6,
                    }
                    for i, (k, g) in enumerate(zip(kl.tolist(), golds.tolist(), strict=True))
                ]
                ppo = write_cell(
                    root,
                    "ppo",
                    f"ppo-{name}",
                    config,
                    metrics,
                    ppo={"diagnoses": {"length": "first in iteration 9: longer"}},
                )
                cells += [bon, child(ppo, "sft", name)]
    return cells


def evaluated(rng, gold: float, kl: float):
    """An evaluation's result with all that newer ones hold."""
    bins = [{"confidence": c, "accuracy": c**1.2, "n": 100} for c in (0.1, 0.3, 0.5, 0.7, 0.9)]
    shares = rng.dirichlet([4, 4, 2])

    def side(p):
        return {
            "counts": {},
            "shares": dict(zip("012", p, strict=True)),
            "none": 0.0,
            "kept": int((p > 0.01).sum()),
            "entropy": 1.0,
        }

    found = {
        "n_prompts": 64,
        "temperature": 1.0,
        "gold_before": 0.1,
        "gold_after": gold,
        "gain": gold - 0.1,
        "gain_interval": [gold - 0.15, gold - 0.05],
        "win_rate": 0.7,
        "win_rate_interval": [0.6, 0.8],
        "win_rate_length_controlled": 0.625,
        "win_rate_length_controlled_interval": [0.5, 0.75],
        "gain_at_equal_length": 0.2,
        "gain_at_equal_length_interval": [0.1, 0.3],
        "kl": kl,
        "kl_interval": [kl - 1, kl + 1],
        "tax": {"nats_per_token": 0.0321, "nats_per_token_interval": [0.02, 0.04]},
        "gold": {
            "before": rng.normal(0.1, 1, 64).tolist(),
            "after": rng.normal(gold, 1, 64).tolist(),
        },
        "modes": {
            "names": ["0", "1", "2"],
            "before": side(np.array([0.4, 0.4, 0.2])),
            "after": side(shares),
            "total_variation": 0.3,
        },
    }
    for name in ("before", "after"):
        found |= {f"calibration_{name}": {"expected_calibration_error": 0.0712, "bins": bins}}
        found |= {
            f"{k}_{name}": 0.5
            for k in (
                "entropy",
                "distinct_1",
                "distinct_2",
                "similarity",
                "length",
                "perplexity",
                "proxy",
            )
        }
    return found


def in_rounds(root: Path, seeds=4, most=3):
    """Seeds of rounds: PPO, comparisons of it, a reward model of those, PPO again."""
    rng = np.random.default_rng(1)
    cells = [write_cell(root, "sft", "sft")]
    for s in range(seeds):
        policy = "sft"
        for r in range(1, most + 1):
            compare, reward, ppo = (f"{kind}-s{s}-r{r}" for kind in ("compare", "rm", "ppo"))
            e = evaluated(rng, 0.1 + 0.2 * r + 0.05 * rng.normal(), 2.0 * r)
            cells += [
                child(write_cell(root, "compare", compare), policy),
                child(write_cell(root, "reward", reward), "sft", compare),
                child(write_cell(root, "ppo", ppo, {"seed": s}), "sft", reward),
                child(
                    write_cell(root, "evaluate", f"eval-s{s}-r{r}", {}, evaluation=e),
                    "sft",
                    ppo,
                    reward,
                ),
            ]
            policy = ppo
    return cells


def test_over_optimization_is_fitted_by_proxy_with_all_its_seeds(tmp_path, monkeypatch):
    cells = proxies(tmp_path)
    names = [c["name"] for c in cells if c["kind"] in ("best_of_n", "ppo")]
    late = {
        "name": "late",
        "run_id": "ff",
        "kind": "ppo",
        "parents": ["sft"],
        "folder": "cells/late-ff",
    }
    folder = write_study(
        tmp_path, [*cells, late], [{"kind": "overoptimization", "cells": [*names, "late"]}]
    )
    text = html.build(folder, tmp_path, resamples=50).read_text()
    fits = sorted(p.stem for p in (folder / "fits").glob("*.json"))
    assert len(fits) == 8 and "overoptimization-rl-rm-w16-n128" in fits
    fit = json.loads((folder / "fits" / "overoptimization-rl-rm-w16-n128.json").read_text())
    assert fit["curves"] == [f"ppo-rm-w16-n128-s{s}" for s in range(3)]
    assert fit["beta"] == pytest.approx(0.5 - 0.032 - 0.0128, abs=0.05)
    assert fit["alpha"] == pytest.approx(0.5, abs=0.1)
    assert fit["gold_at_0"] == pytest.approx(0.1, abs=0.05)
    for said in (
        "Left out: late: not started",
        "8 fits show over-optimization",
        "1,024",
        "rm-w64-n1024",
        "first in iteration 9",
    ):
        assert said in text
    drawn = {p.stem for p in (folder / "figures").glob("*.csv")}
    assert {"overoptimization-best-of-n", "overoptimization-rl", "reward-scaling"} <= drawn
    monkeypatch.setattr("rlhf_jax.report.study_fits.fit_overoptimization", None)
    html.build(folder, tmp_path, resamples=50)


def test_results_without_what_a_curve_is_made_of_are_a_refusal(tmp_path):
    cells = proxies(tmp_path, seeds=1)
    names = [c["name"] for c in cells if c["kind"] == "best_of_n"]
    gone = next(c for c in cells if c["name"] == names[0])
    path = tmp_path / gone["folder"] / "results" / "best_of_n.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in found.items() if k != "gold_by_prompt"}))
    folder = write_study(tmp_path, cells, [{"kind": "overoptimization", "cells": names}])
    text = html.build(folder, tmp_path, resamples=10).read_text()
    assert f"{names[0]} has no gold_by_prompt in its result" in text


def test_rounds_seeds_and_modes_are_shown(tmp_path):
    folder = write_study(tmp_path, in_rounds(tmp_path))
    text = html.build(folder, tmp_path, resamples=10).read_text()
    for said in (
        "Rounds",
        "Over seeds",
        "over 4 seeds",
        "62.5%",
        "0.0321",
        "0.071",
        "Modes",
        "At equal length",
    ):
        assert said in text
    steps = rounds.round_steps(read_study(folder, tmp_path))
    assert {(s.cell, s.round, s.before) for s in steps if "-s1-" in s.cell} == {
        ("ppo-s1-r1", 1, None),
        ("ppo-s1-r2", 2, "ppo-s1-r1"),
        ("ppo-s1-r3", 3, "ppo-s1-r2"),
    }
    drawn = {p.stem for p in (folder / "figures").glob("*.csv")}
    assert {"rounds", "modes", "gains", "next-word-calibration", "before-after"} <= drawn


def test_dpo_and_ensembles_are_in_the_tables(tmp_path):
    cells = proxies(tmp_path, seeds=2)
    members = [c["name"] for c in cells if c["kind"] == "reward"][:2]
    report = {"accuracy": 0.8765, "prompts": 128, "members": dict.fromkeys(members, 0.7)}
    cells += [
        child(write_cell(tmp_path, "ensemble", "together", report=report), *members),
        child(
            write_cell(tmp_path, "dpo", "dpo-s0", {"beta": 0.1}, dpo={"accuracy": 0.6543}), "sft"
        ),
    ]
    text = html.build(write_study(tmp_path, cells), tmp_path).read_text()
    assert "87.6%" in text or "87.7%" in text
    assert "65.4%" in text and "70.0%, 70.0%" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ppo-s3-r2", "ppo-r2"),
        ("rm-n128-s0", "rm-n128"),
        ("eval_seed12", "eval"),
        ("s0", "s0"),
        ("sft", "sft"),
        ("s1-ppo", "ppo"),
        ("rms3", "rms3"),
        ("ppo-2-0", "ppo-2"),
        ("reward-256-3", "reward-256"),
        ("reward-64", "reward-64"),
    ],
)
def test_a_family_is_a_name_without_its_seed(name, expected):
    assert family(name) == expected


def test_few_cells_have_colours_and_many_share_those_of_their_family(tmp_path):
    cells = [write_cell(tmp_path, "ppo", f"{k}-s{s}") for k in ("a", "b") for s in range(4)]
    study = read_study(write_study(tmp_path, cells), tmp_path)
    few, many = strokes(study.cells[:3]), strokes(study.cells)
    assert [s.label for s in few] == ["a-s0", "a-s1", "a-s2"] and len({s.color for s in few}) == 3
    assert [s.label for s in many] == [
        "a (4 seeds)",
        None,
        None,
        None,
        "b (4 seeds)",
        None,
        None,
        None,
    ]
    assert len({s.color for s in many}) == 2


def test_the_mean_over_seeds_has_students_interval():
    mean, (low, high) = over_seeds([1.0, 2.0, 3.0])
    assert (
        mean == 2
        and high - 2 == pytest.approx(4.302653 / 3**0.5)
        and low == pytest.approx(4 - high)
    )
    assert over_seeds([1.5]) == (1.5, None)
