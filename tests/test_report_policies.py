"""Every number of the report's sections on policies and reward models stands in its own column."""

from __future__ import annotations

import numpy as np
import pytest
from report_tables import Made, rows_under

from rlhf_jax.kinds.best_of_n import section as best_of_n
from rlhf_jax.kinds.dpo import section as dpo
from rlhf_jax.kinds.evaluate import plots
from rlhf_jax.kinds.evaluate import section as evaluate
from rlhf_jax.kinds.ppo import section as ppo
from rlhf_jax.kinds.reward import section as reward
from rlhf_jax.laws.overoptimization import FORMULAS
from rlhf_jax.report import overoptimization, plots_overoptimization, rounds
from rlhf_jax.report.blocks import html
from rlhf_jax.report.families import evaluated, proxy_of
from rlhf_jax.report.families import rounds as rounds_of

CHANGED = evaluate.DIVERSITY


def evaluation(gain: float = 0.25) -> dict:
    """Every value occurs once."""
    sides = {
        f"{key}_{side}": 3 * i + j / 8
        for i, (key, _) in enumerate(CHANGED)
        for j, side in enumerate(("before", "after"))
    }
    return sides | {
        "n_prompts": 200,
        "temperature": 0.7,
        "gold_before": 0.101,
        "gold_after": 0.351,
        "gain": gain,
        "gain_interval": [0.201, 0.301],
        "win_rate": 0.61,
        "win_rate_interval": [0.55, 0.67],
        "proxy_before": 1.1,
        "proxy_after": 2.2,
        "kl": 9.51,
        "kl_interval": [9.11, 9.91],
        "win_rate_length_controlled": 0.57,
        "win_rate_length_controlled_interval": [0.51, 0.63],
        "gain_at_equal_length": 0.19,
        "gain_at_equal_length_interval": [0.14, 0.24],
        "perplexity_before": 30.5,
        "perplexity_after": 33.25,
        "tax": {
            "nats_per_token": 0.0301,
            "nats_per_token_interval": [0.0201, 0.0401],
            "bits_per_byte": 0.0101,
            "bits_per_byte_interval": [0.0051, 0.0151],
        },
        "calibration_before": {"expected_calibration_error": 0.021, "bins": []},
        "calibration_after": {"expected_calibration_error": 0.043, "bins": []},
        "samples": [
            {"prompt": "p", "before": "b", "after": "a", "gold_before": 0.11, "gold_after": 0.22}
        ],
        "next_words": {"before": {"The": [["cat", 0.75]]}, "after": {"The": [["dog", 0.5]]}},
        "gold": {"before": [0.0, 0.5], "after": [0.25, 1.0]},
        "modes": {
            "names": ["x", "y"],
            "total_variation": 0.41,
            "before": {"shares": {"x": 0.5, "y": 0.25}, "none": 0.25, "kept": 2, "entropy": 0.637},
            "after": {"shares": {"x": 0.875, "y": 0.0}, "none": 0.125, "kept": 1, "entropy": 0.001},
        },
    }


@pytest.fixture
def evaluations(tmp_path):
    made = Made(tmp_path)
    made.add("sft", "sft")
    made.add("ppo", "ppo", "sft", "rm")
    made.add("evaluate", "eval", "sft", "ppo", evaluation=evaluation())
    return made


def test_an_evaluation_in_words_and_rows(evaluations):
    study = evaluations.study()
    section = evaluate.section(study)
    assert section.said == [
        "eval: gold reward 0.101 to 0.351, gain +0.250 [0.201, 0.301]; wins 61.0% [0.550, 0.670] "
        "of 200 prompts, at 9.51 nats of KL."
    ]
    text = str(html(section.blocks))
    assert "200 held-out prompts at temperature 0.7" in text
    assert rows_under(
        text,
        "evaluation",
        "gold before",
        "after",
        "gain",
        "95%",
        "win rate",
        "95%",
        "proxy before",
        "after",
        "KL (nats)",
        "95%",
    ) == [
        [
            "eval",
            "0.101",
            "0.351",
            "0.250",
            "[0.201, 0.301]",
            "61.0%",
            "[0.550, 0.670]",
            "1.100",
            "2.200",
            "9.51",
            "[9.11, 9.91]",
        ]
    ]
    assert rows_under(
        text,
        "evaluation",
        "gain",
        "at equal length",
        "95%",
        "win rate",
        "length-controlled",
        "95%",
        "length before",
        "after",
    ) == [
        [
            "eval",
            "0.250",
            "0.190",
            "[0.140, 0.240]",
            "61.0%",
            "57.0%",
            "[0.510, 0.630]",
            "15.0",
            "15.1",
        ]
    ]
    assert rows_under(text, "evaluation", *(label for _, label in CHANGED)) == [
        ["eval", *(f"{3 * i:.3f} → {3 * i + 0.125:.3f}" for i in range(len(CHANGED)))]
    ]
    assert rows_under(
        text,
        "evaluation",
        "modes seen",
        "kept",
        "entropy (nats)",
        "in none",
        "total variation",
        "shares",
    ) == [
        [
            "eval",
            "2",
            "2 → 1",
            "0.637 → 0.001",
            "25.0% → 12.5%",
            "0.410",
            "x: 50.0% → 87.5%; y: 25.0% → 0.0%",
        ]
    ]
    assert rows_under(
        text,
        "evaluation",
        "perplexity before",
        "after",
        "tax (nats/token)",
        "95%",
        "tax (bits/byte)",
        "95%",
        "calibration error before",
        "after",
    ) == [
        [
            "eval",
            "30.50",
            "33.25",
            "0.0301",
            "[0.0201, 0.0401]",
            "0.0101",
            "[0.0051, 0.0151]",
            "0.021",
            "0.043",
        ]
    ]
    assert rows_under(text, "prompt", "before", "after", "gold before", "gold after") == [
        ["p", "b", "a", "0.11", "0.22"]
    ]
    assert rows_under(text, "prompt", "most likely next, before", "after") == [
        ["The …", "'cat' 75.0%", "'dog' 50.0%"]
    ]


def test_several_evaluations_have_their_mean_and_ends_and_a_row_a_family(tmp_path):
    made = Made(tmp_path)
    for seed, gain in enumerate((0.5, -0.25, 0.125)):
        made.add("evaluate", f"eval-s{seed}", "a", "b", evaluation=evaluation(gain))
    study = made.study()
    section = evaluate.section(study)
    assert section.said[-1] == (
        "Over 3 evaluations the gain is +0.125 on average, from -0.250 to +0.500."
    )
    half = (
        4.302653 * 0.375 / 3**0.5
    )  # Student's t of 2 degrees of freedom; their deviation is 0.375
    assert rows_under(
        section.blocks,
        "family",
        "seeds",
        "mean gain",
        "95% over seeds",
        "standard deviation",
        "every seed's gain",
    ) == [
        [
            "eval",
            "3",
            "+0.125",
            f"[{0.125 - half:.3f}, {0.125 + half:.3f}]",
            "0.375",
            "+0.500, -0.250, +0.125",
        ]
    ]


def test_figures_of_evaluations_hold_their_numbers(evaluations):
    (cell,) = evaluations.study().of("evaluate")
    gains = plots.gains([cell], "gains")
    assert gains.header == ("family", "cell", "gain", "low", "high")
    assert gains.rows == [("eval", "eval", 0.25, 0.201, 0.301)]
    both = plots.before_after([cell], "both")
    assert both.header[2:] == ("gold_before", "gold_after")
    assert [row[2:] for row in both.rows] == [(0.0, 0.25), (0.5, 1.0)]
    modes = plots.modes([cell], "modes")
    assert modes.header == ("cell", "mode", "before", "after")
    assert modes.rows == [
        ("eval", "x", 0.5, 0.875),
        ("eval", "y", 0.25, 0.0),
        ("eval", "none", 0.25, 0.125),
    ]


PPO_METRICS = [
    {
        "step": i + 1,
        "reward_gold": 0.1 + i,
        "reward_proxy": 10.1 + i,
        "kl": 20.1 + i,
        "entropy": 30.1 - i,
        "distinct_2": 40.1 - i,
        "response_length": 50.1 - i,
        "max_ratio_error": (0.001, 0.004, 0.002)[i],
        "max_logprob_gap": (0.5, 0.25, 0.125)[i],
        "stop_rate": (0.75, 0.5, 0.875)[i],
    }
    for i in range(3)
]


def test_ppo_cells_have_their_first_and_last_iteration_and_their_worst_health(tmp_path):
    made = Made(tmp_path)
    config = {"algorithm": "grpo", "seed": 7}
    seen = {"diagnoses": {"length": "first in iteration 2: longer"}}
    made.add("ppo", "ppo", "sft", config=config, metrics=PPO_METRICS, ppo=seen)
    text = ppo.section(made.study()).blocks
    assert rows_under(
        text,
        "cell",
        "algorithm",
        "seed",
        "gold",
        "reward model",
        "KL",
        "entropy",
        "distinct-2",
        "length",
    ) == [
        [
            "ppo",
            "grpo",
            "7",
            "0.100 → 2.100",
            "10.100 → 12.100",
            "20.100 → 22.100",
            "30.100 → 28.100",
            "40.100 → 38.100",
            "50.100 → 48.100",
        ]
    ]
    assert rows_under(
        text, "cell", "max_ratio_error, greatest", "max_logprob_gap, greatest", "stop_rate, last"
    ) == [["ppo", "0.004", "0.5", "0.875"]]
    assert rows_under(text, "cell", "diagnosis", "what was seen") == [
        ["ppo", "length", "first in iteration 2: longer"]
    ]


def test_dpo_cells_have_every_value_in_its_column(tmp_path):
    made = Made(tmp_path)
    found = {
        "prompts": 96,
        "loss": 0.611,
        "accuracy": 0.71,
        "margin": 0.321,
        "chosen_log_ratio": -1.25,
        "rejected_log_ratio": -3.5,
    }
    config = {"loss": "ipo", "beta": 0.2, "seed": 5}
    made.add("dpo", "dpo", "sft", config=config, dpo=found, heldout={"loss": 2.75})
    assert rows_under(
        dpo.section(made.study()).blocks,
        "cell",
        "loss",
        "beta",
        "seed",
        "prompts",
        "held-out loss",
        "accuracy",
        "margin",
        "ln ratio, chosen",
        "ln ratio, rejected",
        "language loss",
    ) == [["dpo", "ipo", "0.2", "5", "96", "0.611", "71.0%", "0.321", "-1.25", "-3.50", "2.750"]]


def test_policies_by_round_have_what_their_evaluation_found_after(tmp_path):
    made = Made(tmp_path)
    made.add("sft", "sft")
    before = "sft"
    for r in (1, 2):
        made.add("reward", f"rm{r}", "sft")
        made.add("ppo", f"ppo{r}", before, f"rm{r}", config={"seed": 3})
        e = {
            "gold_before": 0.1,
            "gold_after": 0.3 * r,
            "proxy_before": 5.0,
            "proxy_after": 1.5 * r,
            "kl": 4.0 * r,
        }
        made.add("evaluate", f"eval{r}", "sft", f"ppo{r}", f"rm{r}", evaluation=e)
        before = f"ppo{r}"
    study = made.study()
    assert [evaluated(c) for c in study.of("evaluate")] == ["ppo1", "ppo2"]
    assert rounds.round_steps(study) == [
        rounds.Step("ppo1", "3", 1, {"gold": 0.3, "proxy": 1.5, "kl": 4.0}, None),
        rounds.Step("ppo2", "3", 2, {"gold": 0.6, "proxy": 3.0, "kl": 8.0}, "ppo1"),
    ]
    text = rounds.section(study).blocks
    assert rows_under(text, "round", "policy", "gold", "proxy", "KL") == [
        ["1", "ppo1", "0.300", "1.500", "4.00"],
        ["2", "ppo2", "0.600", "3.000", "8.00"],
    ]


def reward_report(accuracy: float) -> dict:
    return {
        "accuracy": accuracy,
        "accuracy_interval": [0.66, 0.78],
        "n_pairs": 480,
        "prompts": 160,
        "baselines": {"longer wins": 0.54, "gold score (label ceiling)": 0.91},
        "calibration": {"expected_calibration_error": 0.037, "bins": []},
        "accuracy_by_margin": [{"from": 0.0, "to": 0.5, "accuracy": 0.625, "n": 240}],
        "accuracy_by_length": [{"winner": "longer", "accuracy": 0.8125, "n": 300}],
        "accuracy_by_rank_difference": [{"ranks": 2, "accuracy": 0.875, "n": 90}],
    }


def test_reward_models_have_every_value_in_its_column(tmp_path):
    made = Made(tmp_path)
    model = {"layers": 1, "width": 16, "heads": 2, "vocab": 64}
    made.add("reward", "rm", "sft", "compare", config={"model": model}, report=reward_report(0.72))
    study = made.study()
    section = reward.section(study)
    assert section.said == ["rm: 72.0% of 480 held-out pairs ranked right."]
    text = section.blocks
    (row,) = rows_under(
        text,
        "cell",
        "params",
        "labelled prompts",
        "accuracy",
        "95%",
        "held-out pairs",
        "calibration error",
        "longer wins",
        "gold score (label ceiling)",
    )
    assert row[0] == "rm" and row[2:] == [
        "160",
        "72.0%",
        "[0.660, 0.780]",
        "480",
        "0.037",
        "54.0%",
        "91.0%",
    ]
    for first, expected in (
        ("gold margin (middle)", ["0.25", "62.5%", "240"]),
        ("the better one is", ["longer", "81.2%", "300"]),
        ("ranks apart", ["2", "87.5%", "90"]),
    ):
        assert rows_under(text, "cell", first, "accuracy", "pairs") == [["rm", *expected]]


def test_many_reward_models_are_named_by_the_worst_and_the_best(tmp_path):
    made = Made(tmp_path)
    for i, accuracy in enumerate((0.7, 0.9, 0.6, 0.8, 0.75, 0.65, 0.85)):
        made.add("reward", f"rm{i}", "sft", report=reward_report(accuracy))
    assert reward.section(made.study()).said == [
        "7 reward models rank held-out pairs right, from 60.0% (rm2) to 90.0% (rm1)."
    ]


def fit_of(form: str) -> dict:
    return {
        "form": form,
        "formula": FORMULAS[form],
        "alpha": 1.1,
        "beta": 0.4,
        "gold_at_0": 0.5,
        "refused": None,
        "intervals": {
            "alpha": [1.0, 1.2],
            "beta": [0.3, 0.5],
            "peak_d": [1.31, 1.44],
            "peak_gain": [0.7, 0.8],
        },
        "peak": {"d": 1.375, "gain": 0.756, "beyond": False},
        "d_max": 1.9,
        "notes": [],
        "extrapolation": {"rms_error": 0.021, "last_rms_error": 0.084},
        "band": {"d": [0.0, 1.0], "gain": [0.0, 0.7], "low": [0.0, 0.6], "high": [0.0, 0.8]},
    }


@pytest.fixture
def optimised(tmp_path):
    """Two seeds of a reward model; best of 4 against both, PPO against the first."""
    made = Made(tmp_path)
    made.add("sft", "sft")
    curve = [
        {
            "n": n,
            "kl": kl,
            "gold": gold,
            "gold_gain": gold - 0.2,
            "gold_gain_interval": [gold - 0.3, gold - 0.1],
            "proxy": proxy,
        }
        for n, kl, gold, proxy in ((1, 0.0, 0.2, 1.0), (2, 0.16, 0.7, 2.0), (4, 0.64, 0.6, 3.0))
    ]
    found = {
        "curve": curve,
        "prompts": 40,
        "n": 4,
        "distinct": 0.95,
        "demonstrations": 39,
        "gold_by_prompt": [[0.1, 0.3], [0.2, 0.5], [0.4, 0.9]],
    }
    for s in (0, 1):
        made.add("reward", f"rm-s{s}", "sft", report=reward_report(0.7 + 0.1 * s))
        made.add(
            "best_of_n",
            f"bon-s{s}",
            "sft",
            f"rm-s{s}",
            config={"reward": f"rm-s{s}"},
            best_of_n=found,
        )
    made.add(
        "ppo",
        "ppo",
        "sft",
        "rm-s0",
        config={"reward": "rm-s0"},
        metrics=[
            {"step": 1, "kl": 0.0, "reward_gold": 0.5, "reward_proxy": 4.0},
            {"step": 2, "kl": 0.25, "reward_gold": 0.75, "reward_proxy": 6.0},
        ],
    )
    return made


def test_over_optimization_has_a_row_a_proxy_with_every_value_in_its_column(optimised):
    study = optimised.study({"kind": "overoptimization", "cells": ["bon-s0", "bon-s1", "ppo"]})
    (analysis,) = study.analyses("overoptimization")
    best, rl = overoptimization.groups(study, analysis)
    assert [c.name for c in best.cells] == ["bon-s0", "bon-s1"] and best.proxy == rl.proxy == "rm"
    assert [c.name for c in rl.cells] == ["ppo"] and [p.name for p in best.proxies] == [
        "rm-s0",
        "rm-s1",
    ]
    fits = {g.name: fit_of(g.form) for g in (best, rl)}
    section = overoptimization.section(study, analysis, fits)
    text = section.blocks
    values = [
        "1.100",
        "[1.000, 1.200]",
        "0.400",
        "[0.300, 0.500]",
        "1.38",
        "0.756",
        "0.021 (0.084)",
    ]
    assert rows_under(
        text,
        "proxy",
        "optimised by",
        "cells",
        "params",
        "labels",
        "accuracy",
        "alpha",
        "95%",
        "beta",
        "95%",
        "peak d",
        "peak gain",
        "extrapolation (last)",
    ) == [
        ["rm", "best-of-n", "2", "-", "160", "75.0%", *values],
        ["rm", "PPO", "1", "-", "160", "70.0%", *values],
    ]
    assert section.said[1] == (
        "PPO against rm: the gold score peaks at sqrt(KL) = 1.38 [1.31, 1.44], +0.756 above the "
        "start [0.700, 0.800]."
    )


def test_over_optimization_is_drawn_and_fitted_against_the_root_of_the_kl(optimised):
    study = optimised.study()
    best, ppo = study.cell("bon-s0"), study.cell("ppo")
    assert proxy_of(study, best).name == "rm-s0"
    seen = [overoptimization._points(c) for c in (best, ppo)]
    for run, d, gold, proxy in zip(
        seen,
        ([0, 0.4, 0.8], [0, 0.5]),
        ([0.2, 0.7, 0.6], [0.5, 0.75]),
        ([1.0, 2, 3], [4.0, 6.0]),
        strict=True,
    ):
        np.testing.assert_allclose(run.d, d)
        np.testing.assert_allclose(run.gold, gold)
        np.testing.assert_allclose(run.proxy, proxy)
    np.testing.assert_allclose(overoptimization.gold_curve(ppo).d_BM.ravel()[:2], [0, 0.5])
    bounds = [0, np.log(2) - 1 / 2, np.log(4) - 3 / 4]  # ln n - (n - 1) / n
    drawn = overoptimization.gold_curve(best)
    np.testing.assert_allclose(drawn.d_BM, np.sqrt([bounds, bounds]))
    np.testing.assert_allclose(drawn.gold_BM, [[0.1, 0.2, 0.4], [0.3, 0.5, 0.9]])
    facets = [
        plots_overoptimization.Facet("best of n", seen[:1], fit_of("best_of_n")),
        plots_overoptimization.Facet("rl", seen[1:], fit_of("rl") | {"gold_at_0": 0.45}),
    ]
    rows = plots_overoptimization.curves(facets, "n", "over").rows
    expected = [(0, 0, 0), (0.4, 0.5, 1), (0.8, 0.4, 2), (0, 0.05, 0), (0.5, 0.3, 2)]
    np.testing.assert_allclose([row[2:] for row in rows], expected, atol=1e-12)


def test_best_of_n_names_the_best_n_and_the_gain_of_the_largest(optimised):
    text = best_of_n.section(optimised.study()).blocks
    assert rows_under(
        text,
        "cell",
        "reward",
        "prompts",
        "n",
        "gold of one",
        "gain at n",
        "95%",
        "best n",
        "KL at most",
        "distinct",
        "demonstrations",
    ) == [
        [
            f"bon-s{s}",
            f"rm-s{s}",
            "40",
            "4",
            "0.200",
            "0.400",
            "[0.300, 0.500]",
            "2",
            "0.64",
            "0.95",
            "39",
        ]
        for s in (0, 1)
    ]


def test_a_round_is_a_policy_that_was_optimised_against_feedback_of_any_kind(tmp_path):
    made = Made(tmp_path)
    for kind, name, *parents in (
        ("sft", "sft"),
        ("compare", "compare", "sft"),
        ("reward", "reward", "sft", "compare"),
        ("dpo", "dpo", "sft", "compare"),
        ("ppo", "ppo", "dpo", "reward"),
        ("best_of_n", "best", "ppo", "reward"),
        ("sft", "on-best", "ppo", "best"),
        ("sft", "on-records", "sft", "compare"),
    ):
        made.add(kind, name, *parents)
    assert rounds_of(made.study()) == {"dpo": 1, "ppo": 2, "on-best": 3}
