"""Every number of the report's sections on scaling, data and provenance stands in its own
column."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from markupsafe import Markup
from report_tables import Made, rows_under
from test_report import write_study

from rlhf_jax.kinds.pretrain import section as pretrain
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.report import (
    blocks,
    html,
    law_sections,
    plots_laws,
    plots_scaling,
    scaling_sections,
    study_fits,
    style,
)
from rlhf_jax.report.export import export
from rlhf_jax.report.study_fits import Fits
from rlhf_jax.report.study_results import (
    Analysed,
    read_study,
    sweep_table,
    training_curves,
    unique_rows,
)


def test_numbers_are_written_with_their_units():
    assert [style.power(v) for v in (3e15, 1e15, 2.5e-3, 0.0)] == [
        "3×10¹⁵",
        "10¹⁵",
        "2.5×10⁻³",
        "-",
    ]
    assert [style.count(v) for v in (950, 1234, 1_234_567, 2.5e9, 7e12, None)] == [
        "950",
        "1.23k",
        "1.23M",
        "2.5B",
        "7T",
        "-",
    ]
    assert (blocks.share(0.125), blocks.share(None)) == ("12.5%", "-")
    assert blocks.interval([0.1, 0.9], 2) == "[0.10, 0.90]" and blocks.interval([0.1], 2) == "-"
    assert blocks.interval([1500, 2.5e6], form=style.count) == "[1.5k, 2.5M]"
    assert (
        blocks.plus_minus(1.5, 0.25, 2) == "1.50 ± 0.25"
        and blocks.plus_minus(1.5, None, 2) == "1.50"
    )
    assert [blocks.number(v) for v in (1234, 12_345_678, 0.123456, math.nan)] == [
        "1,234",
        "1.235e+07",
        "0.1235",
        "-",
    ]


def test_text_in_paragraphs_and_tables_is_escaped_and_markup_is_not():
    text = blocks.html([blocks.Paragraph("<b>"), blocks.Paragraph("<b>", "muted")])
    assert text.split("\n")[:2] == ["<p>&lt;b&gt;</p>", '<p class="muted">&lt;b&gt;</p>']
    shown = blocks.html([blocks.Table(("<i>",), [("<b>",), (Markup("<u>ok</u>"),)])])
    assert "&lt;i&gt;" in shown and "&lt;b&gt;" in shown and "<u>ok</u>" in shown


def test_a_table_of_more_than_25_rows_is_folded_and_none_of_its_rows_is_lost():
    whole, long = (
        blocks.Table(("cell", "x"), [(f"c{i}", i) for i in range(n)], (0,)) for n in (25, 26)
    )
    assert "<details" not in blocks.html([whole])
    page = blocks.html([long])
    assert "16 more rows" in page and len(rows_under(page, "cell", "x")) == 26
    text = blocks.markdown([whole], ()), blocks.markdown([long], ())
    assert [t.count("| c") for t in text] == [26, 11]
    assert text[1].endswith("16 more rows: [results.json](results.json).\n")


def test_titles_name_an_analysis_only_among_others_of_its_kind(trunk):
    kinds = (("isoflop", "well-known"), ("isoflop", "other"), ("lr_check", "single"))
    study = trunk.study(*({"kind": k, "label": label, "cells": []} for k, label in kinds))
    (alone,), several = study.analyses("lr_check"), study.analyses("isoflop")
    assert alone.titled("Fits") == "Fits"
    assert [a.titled("Fits") for a in several] == ["Fits (well-known)", "Fits (other)"]
    line = scaling_sections._exponent_line(2, several[0], law_fit())
    assert line.startswith("Approach 2 (IsoFLOP, well-known): N*")


def heldout(n: float, d: float, loss: float) -> dict:
    return {
        "loss": loss,
        "stderr": 0.0041,
        "bits_per_byte": 1.91,
        "bits_per_byte_stderr": 0.0023,
        "params": int(n),
        "train_tokens": int(d),
        "flops": {"exact": 7 * n * d, "kaplan": 5 * n * d},
        "param_counts": {"total": int(n), "non_embedding": int(n) // 2},
        "batch_tokens": 2048,
    }


@pytest.fixture
def trunk(tmp_path):
    """A base; a trunk of two cells and its branch; and a run on a subset."""
    made = Made(tmp_path)

    def add(name, d, *parents, unique=None, n=1000.0, first=0):
        """Metrics of 40 steps from token `first` on."""
        logged = [
            {"step": i, "tokens": t, "flops": 7 * n * t, "loss": 9.0 - 0.5 * math.log(t)}
            for i, t in enumerate(np.linspace(first, d, 41)[1:].tolist())
        ]
        config = {"tokens": d, "optim": {"lr": 0.003}, "unique_tokens": unique, "seed": 0}
        made.add(
            "pretrain", name, *parents, config=config, metrics=logged, heldout=heldout(n, d, 4.5)
        )

    add("base", 4e4)
    add("trunk", 2e4)
    add("on", 5e4, "trunk", first=2e4)
    add("branch", 8e4, "on", first=5e4)
    add("subset", 4e4, unique=1e4)
    return made


def test_the_sweeps_rows_are_of_the_counts_asked_for(trunk):
    study = trunk.study()
    row = sweep_table([study.cell("base")])[0]
    assert (row["params"], row["tokens"], row["flops"]) == (1000, 40_000, 7 * 1000 * 4e4)
    assert (row["loss"], row["stderr"], row["bits_per_byte"]) == (4.5, 0.0041, 1.91)
    assert (row["bits_per_byte_stderr"], row["lr"], row["batch_tokens"]) == (0.0023, 0.003, 2048)
    other = sweep_table([study.cell("base")], "non_embedding", "kaplan")[0]
    assert (other["params"], other["flops"]) == (500, 5 * 1000 * 4e4)
    unique = unique_rows([study.cell(n) for n in ("base", "subset")])
    assert [r["unique_tokens"] for r in unique] == [4e4, 1e4]
    text = [scaling_sections._sweep_rows([row])]
    assert rows_under(
        text,
        "cell",
        "run id",
        "params N",
        "tokens D",
        "D/N",
        "FLOPs (exact)",
        "loss (nats/token)",
        "bits/byte",
        "peak lr",
    ) == [
        ["base", row["run_id"], "1k", "40k", "40", "2.8×10⁸", "4.5000 ± 0.0041", "1.9100", "0.003"]
    ]


def test_cells_that_continue_each_other_are_one_curve_and_cost_what_they_add(trunk):
    study = trunk.study()
    cells = [study.cell(n) for n in ("trunk", "on", "branch")]
    (curve,) = training_curves(cells)
    assert curve.label == "branch" and (np.diff(curve.tokens) > 0).all()
    assert curve.tokens[0] < 2e4 and curve.tokens[-1] == pytest.approx(8e4)
    np.testing.assert_allclose(curve.loss, 9.0 - 0.5 * np.log(curve.tokens), atol=1e-6)
    np.testing.assert_allclose(curve.flops, 7000 * curve.tokens)
    (other,) = training_curves(cells, "non_embedding", "kaplan")
    np.testing.assert_allclose(other.flops, 5000 * other.tokens)
    spent = [scaling_sections._own_flops(c, study) for c in cells]
    assert spent == pytest.approx([7000 * 2e4, 7000 * 3e4, 7000 * 3e4])
    found = scaling_sections._with_parents([cells[2]], study)
    assert {c.name for c in found} == {"trunk", "on", "branch"}


def test_base_models_are_those_outside_analyses_or_that_others_start_from(trunk):
    study = trunk.study({"kind": "isoflop", "cells": ["trunk", "on", "branch", "subset"]})
    section = pretrain.section(study)
    header = ("cell", "params", "training tokens", "FLOPs (exact)", "held-out loss", "bits/byte")
    rows = rows_under(section.blocks, *header)
    assert [row[0] for row in rows] == ["base", "trunk", "on"]
    assert rows[0] == ["base", "1k", "40k", "2.8×10⁸", "4.5000 ± 0.0041", "1.9100 ± 0.0023"]
    assert (
        "base (1k parameters): held-out loss 4.5000 ± 0.0041 nats/token, 1.9100 ± 0.0023 bits/byte"
        in section.said[0]
    )


def test_cells_are_counted_and_the_process_that_finished_them_is_named(trunk):
    late = {
        "name": "late",
        "run_id": "ff",
        "kind": "pretrain",
        "parents": [],
        "folder": "cells/late",
    }
    trunk.cells.append(late)
    study = trunk.study()
    path = study.cell("base").folder.path / "provenance.json"
    sessions = [{"commit": f"{c}" * 12, "dirty": c == "b", "hardware": f"chip {c}"} for c in "ab"]
    path.write_text(json.dumps({"sessions": sessions}))
    assert rows_under(html._data(study).blocks, "kind", "cells", "done") == [["pretrain", "6", "5"]]
    header = ("cell", "kind", "run id", "state", "commit", "seconds", "made on", "starts from")
    rows = {row[0]: row for row in rows_under(html._provenance(study).blocks, *header)}
    assert rows["base"][3:6] == ["done", "b" * 10 + "+", "12.5"]
    assert rows["branch"][7] == "on" and rows["late"][3] == "not started"
    text = blocks.html(html._provenance(study).blocks)
    assert "chip b" in text and "chip a" not in text


def law_fit() -> dict:
    return {
        "a": 0.52,
        "b": 0.48,
        "n": 9,
        "refused": None,
        "resamples": 25,
        "frontier": [],
        "notes": ["three runs are far out"],
        "intervals": {"a": [0.51, 0.53], "b": [0.46, 0.5]},
        "extrapolation": {"n_log_error": -0.123, "flops": 4e15, "below": 1e15},
    }


def test_exponents_have_their_own_intervals_and_errors_are_percent():
    fits = Fits(
        approaches={
            "isoflop": {
                2: law_fit() | {"budgets": []},
                3: law_fit() | {"refused": "no split", "a": None, "E": None, "residuals": []},
            }
        },
        lr_law={"lr_law": rate_law()},
    )
    rates = law_sections.lr_law(Analysed("lr_law", "", []), fits.lr_law["lr_law"])
    _, section = scaling_sections._isoflop(Analysed("isoflop", "", []), fits.approaches["isoflop"])
    assert [*section.said, *section.cautions, *rates.said] == [
        "Approach 2 (IsoFLOP): N* ∝ C^0.520, 95% interval [0.510, 0.530]; D* ∝ C^0.480 [0.460, "
        "0.500]. Hoffmann 2022: 0.49.",
        "Approach 3 (parametric): no exponent. No split.",
        "Learning-rate law: lr = 0.011 (N / 100,000)^-0.61 (B / 1,024)^0.52; 95% intervals "
        "[0.0100, 0.0120], [0.60, 0.62], [0.51, 0.53]; residual of ln lr 0.07.",
    ]
    text = str(blocks.html(scaling_sections._exponents(law_fit())))
    assert (
        "a = 0.5200 [0.510, 0.530], b = 0.4800 [0.460, 0.500] (95%, 25 bootstrap resamples)" in text
    )
    assert "N* at 4×10¹⁵ FLOPs, from the runs up to 10¹⁵, missed by -12% (ln)" in text
    ahead = {"extrapolation": {"rms_log_error": 0.0123, "below": 2e14}}
    assert law_sections.ahead(ahead) == "loss above 2×10¹⁴ FLOPs missed by 1.23% rms"


def rate_law() -> dict:
    """lr = 0.011 (N / 1e5)^-0.61 (B / 1024)^0.52 and a group that lies on it."""
    group = {
        "params": 2e5,
        "batch_tokens": 2048,
        "best_lr": 0.0103,
        "loss": 3.25,
        "refused": None,
        "points": [],
        "predicted": 0.011 * 2**-0.61 * 2**0.52,
    }
    return {
        "lr0": 0.011,
        "n_power": 0.61,
        "b_power": 0.52,
        "residual_sd": 0.07,
        "refused": None,
        "notes": [],
        "groups": [group],
        "intervals": {"lr0": [0.01, 0.012], "n_power": [0.6, 0.62], "b_power": [0.51, 0.53]},
    }


def test_the_line_of_the_learning_rate_law_is_the_law():
    fit = rate_law()
    ends, line = plots_laws._law_line(fit, fit["groups"], 4096, [1e5, 4e5])
    np.testing.assert_allclose(np.exp(ends), [5e4, 8e5])
    np.testing.assert_allclose(
        np.exp(line), 0.011 * (np.exp(ends) / 1e5) ** -0.61 * (4096 / 1024) ** 0.52
    )
    header = ("params N", "tokens a batch", "best lr", "the law's", "loss", "refused")
    assert rows_under([law_sections._rates(fit)], *header) == [
        ["200k", "2.05k", "0.0103", "0.0103", "3.2500", "-"]
    ]


def budget(**changes) -> dict:
    points = [
        {
            "label": f"n{n:g}",
            "params": n,
            "tokens": 1e9 / n,
            "loss": 3 + (n / 200 - 1) ** 2,
            "stderr": 0.01,
        }
        for n in (100.0, 200.0, 400.0)
    ]
    return {
        "flops": 6e9,
        "n_star": 2e6,
        "d_star": 3e7,
        "loss_star": 3.0125,
        "refused": None,
        "warnings": [],
        "intervals": {
            "n_star": [1.9e6, 2.1e6],
            "d_star": [2.8e7, 3.3e7],
            "loss_star": [3.0, 3.025],
        },
        "parabola": [3.0, 0.0, 1.0],
        "center": math.log(200),
        "points": points,
        **changes,
    }


def test_budgets_have_their_minima_beside_their_own_intervals():
    fit = law_fit() | {"budgets": [budget(), budget(refused="concave", n_star=None, intervals={})]}
    header = ("budget", "runs", "N*", "95%", "D*", "95%", "L*", "95%", "verdict")
    rows = rows_under(scaling_sections._budgets(fit), *header)
    assert rows[0] == [
        "6×10⁹",
        "3",
        "2M",
        "[1.9M, 2.1M]",
        "30M",
        "[28M, 33M]",
        "3.0125",
        "[3.0000, 3.0250]",
        "resolved",
    ]
    assert rows[1][2:4] == ["-", "-"] and rows[1][8] == "refused: concave"


def test_the_frontier_has_sizes_left_and_tokens_right_with_published_slopes():
    line = [
        {
            "flops": c,
            "n_star": c**0.52,
            "d_star": c**0.48 / 6,
            "intervals": {"n_star": [c**0.51, c**0.53], "d_star": [c**0.47 / 6, c**0.49 / 6]},
        }
        for c in (1e9, 1e10)
    ]
    plot = plots_scaling.frontier(
        {2: law_fit() | {"frontier": line, "budgets": [budget()]}}, "front"
    )
    assert plot.header == ("source", "quantity", "flops", "value", "low", "high")
    found = {(row[0], row[1], row[2]): row[3:] for row in plot.rows}
    assert found["approach 2", "n_star", 1e9] == (1e9**0.52, 1e9**0.51, 1e9**0.53)
    assert found["approach 2", "d_star", 1e9] == (1e9**0.48 / 6, 1e9**0.47 / 6, 1e9**0.49 / 6)
    assert found["minimum", "d_star", 6e9] == (3e7, 2.8e7, 3.3e7)
    labels = [
        "a = 0.520",
        f"kaplan: {FRONTIERS['kaplan'].a:.2f}",
        "b = 0.480",
        f"kaplan: {1 - FRONTIERS['kaplan'].a:.2f}",
    ]
    places = [plot.svg.index(label) for label in labels]
    assert places == sorted(places)
    assert "model size N* (parameters) ∝ Cᵃ" in plot.svg and "training tokens D* ∝ Cᵇ" in plot.svg


def test_a_prediction_stands_beside_what_was_measured_with_its_error():
    said = {
        "made": "2025-01-01",
        "fitted": 12,
        "below": 2e15,
        "flops": 8e15,
        "approaches": {"2": {"n_star": 2e6, "intervals": {"n_star": [1e6, 3e6]}}},
        "score": {
            "measured": {
                "n_star": 2.5e6,
                "refused": None,
                "intervals": {"n_star": [2.25e6, 2.75e6]},
            },
            "approaches": {"2": {"n_star": math.log(2 / 2.5), "covered": {"n_star": True}}},
            "runs": {"n": 5, "rms_log_error": 0.015, "mean_log_error": -0.005},
        },
    }
    drawn, *rest = law_sections.prediction(said).blocks
    text = str(blocks.html(rest))
    header = ("from", "quantity", "predicted", "95%", "measured", "95%", "ln error")
    assert rows_under(text, *header) == [
        ["approach 2", "N*", "2e+06", "[1e+06, 3e+06]", "2.5e+06", "[2.25e+06, 2.75e+06]", "-22.3%"]
    ]
    assert "each of the 5 runs: missed by 1.50% rms (mean -0.50%)" in text
    assert drawn.rows == [("N*", "A2", 2e6, 1e6, 3e6, 2.5e6, 2.25e6, 2.75e6)]


def test_a_law_is_drawn_against_what_was_observed():
    law = Chinchilla(E=1.5, A=100.0, B=200.0, alpha=0.3, beta=0.3)
    said = float(law.predict(params=np.array(1e6), tokens=np.array(1e8)))
    observed = 3.5
    row = {"label": "run", "params": 1e6, "tokens": 1e8, "residual": math.log(said / observed)}
    fit = {
        "law": "chinchilla",
        "parameters": dict(zip(law.names(), (1.5, 100.0, 200.0, 0.3, 0.3), strict=True)),
        "inputs": ["params", "tokens"],
        "target": "loss",
        "residuals": [row, row],
        "source": "S",
    }
    plot = plots_laws.law(fit, "law")
    assert plot.header == ("run", "params", "tokens", "observed", "predicted")
    assert plot.rows[0] == ("run", 1e6, 1e8, pytest.approx(observed), pytest.approx(said))


def test_runs_that_repetition_made_worse_are_left_out_of_its_law(monkeypatch):
    fitted = []

    def fit(name, points, resamples, seed):
        fitted.extend(points.labels)
        return {"notes": []}

    monkeypatch.setattr(study_fits, "fit_named", fit)
    rows = [
        {"label": label, "params": 1e6, "tokens": d, "unique_tokens": u, "loss": loss}
        for label, d, u, loss in (
            ("once", 1e7, 1e7, 4.0),
            ("twice", 2e7, 1e7, 3.9),
            ("often", 9e7, 1e7, 4.1),
            ("other", 9e7, 9e7, 4.2),
        )
    ]
    notes = study_fits._repetition(rows, 0, 0)["notes"]
    assert fitted == ["once", "twice", "other"] and notes[0].startswith("often is left out")


def test_a_kept_fit_is_read_only_while_its_inputs_are_the_same(tmp_path):
    made = iter(({"a": 1}, {"a": 2}))
    path = tmp_path / "fit.json"
    for inputs, expected in (([1], 1), ([1], 1), ([2], 2)):
        assert study_fits._kept(path, inputs, lambda: dict(next(made)))["a"] == expected


def test_an_export_keeps_numbers_to_six_digits_and_neither_texts_nor_long_lists(tmp_path):
    made = Made(tmp_path)
    found = {
        "samples": [{"prompt": "secret", "before": "b", "after": "a"}],
        "gold": {"before": [0.5] * 64, "after": [0.5] * 65},
        "gain": 1.23456789,
    }
    made.add("evaluate", "eval", "sft", "ppo", evaluation=found)
    metrics = [{"step": 1, "kl": 0.123456789, "reward_gold": 2.0, "unlisted": 1.0}]
    made.add("ppo", "ppo", "sft", metrics=metrics)
    folder = write_study(tmp_path, made.cells)
    path = read_study(folder, tmp_path).cell("ppo").folder.path / "provenance.json"
    path.write_text(json.dumps({"sessions": [{"commit": "first"}, {"commit": "last"}]}))
    kept = json.loads((export(folder, tmp_path, tmp_path / "to") / "results.json").read_text())
    evaluated, cell = kept["cells"]
    evaluation = evaluated["results"]["evaluation"]
    assert evaluation["gold"] == {"before": [0.5] * 64} and "samples" not in evaluation
    assert evaluation["gain"] == 1.23456789
    assert cell["metrics"] == {"step": [1], "kl": [0.123457], "reward_gold": [2.0]}
    assert cell["provenance"]["commit"] == "last" and cell["done"]["seconds"] == 12.5
