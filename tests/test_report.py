"""The report is built from run folders alone, says what is missing, and shows no raw text."""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from tiny_results import whole

from rlhf_jax.cost.flops import param_counts, train_flops
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.data_constrained import DataConstrained
from rlhf_jax.laws.sweep import grid_point, ladder
from rlhf_jax.laws.sweep import pretrain as pretrain_cell
from rlhf_jax.report import html
from rlhf_jax.report.blocks import Paragraph, Section
from rlhf_jax.report.foretell import foretell
from rlhf_jax.report.study_results import read_study
from rlhf_jax.study import Analysis, Study
from rlhf_jax.study.cell import KNOWN, Cell
from rlhf_jax.study.config import ConfigError, CorpusConfig, content_id

LAW = Chinchilla(E=1.6, A=120.0, B=180.0, alpha=0.33, beta=0.35)
EVIL = '<script>alert("x")</script> & </table>'


def write_cell(root: Path, kind: str, name: str, config=None, metrics=(), done=True, **results):
    """A cell's folder. results: parts of its results."""
    results = whole(KNOWN[kind].RESULT, results) if results else {}
    run_id = content_id([kind, name])
    folder = root / "cells" / f"{name}-{run_id}"
    (folder / "results").mkdir(parents=True)
    files = {
        "config": {"kind": kind, "name": name, "seed": 0, **(config or {})},
        "provenance": {
            "sessions": [
                {"commit": "abc123def456", "versions": {"jax": "0.12"}, "hardware": "a CPU"}
            ]
        },
        **({"done": {"finished": "2025-01-01T00:00:00Z", "seconds": 12.5}} if done else {}),
        **{f"results/{k}": v for k, v in results.items()},
    }
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    lines = "".join(json.dumps(row) + "\n" for row in metrics)
    (folder / "metrics.jsonl").write_text(lines)
    return {
        "name": name,
        "run_id": run_id,
        "kind": kind,
        "parents": [],
        "folder": f"cells/{name}-{run_id}",
    }


def pretrain(
    root: Path,
    name: str,
    n: float,
    d: float,
    lr=3e-3,
    loss=None,
    done=True,
    batch_tokens=1024,
    unique=None,
):
    steps = np.arange(1, 101)
    curve = LAW.loss(n, steps / 100 * d) + 0.02 * np.sin(steps)
    metrics = [
        {"step": int(s), "tokens": s / 100 * d, "flops": 6 * n * s / 100 * d, "loss": float(v)}
        for s, v in zip(steps, curve, strict=True)
    ]
    wobble = 1 + 1e-3 * np.random.default_rng(int(n)).normal()
    held = {
        "loss": float(LAW.loss(n, d) * wobble if loss is None else loss),
        "stderr": 0.004,
        "bits_per_byte": 1.9,
        "bits_per_byte_stderr": 0.002,
        "tokens": 65536,
        "params": int(n),
        "train_tokens": int(d),
        "flops": {"exact": 6 * n * d, "kaplan": 6 * n * d * (1 - 0.5 * (1e6 / n) ** 0.5)},
        "param_counts": {"total": n, "non_embedding": n * (1 - 0.5 * (1e6 / n) ** 0.5)},
        "batch_tokens": batch_tokens,
    }
    config = {"tokens": int(d), "optim": {"lr": lr}, "unique_tokens": unique}
    return write_cell(root, "pretrain", name, config, metrics, done, heldout=held)


def sweep(root: Path, budgets=(1e14, 4e14, 1.6e15, 6.4e15), off=1.0):
    cells = []
    for i, c in enumerate(budgets):
        middle = LAW.compute_optimal(c)[0] * (off if i == len(budgets) - 1 else 1)
        for j, n in enumerate(middle * np.geomspace(1 / 3, 3, 7)):
            cells.append(pretrain(root, f"c{i}-n{j}", n, c / (6 * n)))
    return cells


def rlhf(root: Path):
    rng = np.random.default_rng(0)
    cells = [
        write_cell(
            root,
            "sft",
            "sft",
            metrics=[{"step": s, "loss": 3 - 0.01 * s} for s in range(50)],
            heldout={"loss": 2.5},
        ),
        write_cell(
            root,
            "reward",
            "reward",
            {},
            [{"step": s, "loss": 0.7 - 0.005 * s, "accuracy": 0.5 + 0.005 * s} for s in range(50)],
            report={
                "accuracy": 0.7421,
                "n_pairs": 960,
                "baselines": {"length": 0.55},
                "accuracy_interval": [0.71, 0.77],
                "accuracy_by_length": [{"winner": "longer", "n": 300, "accuracy": 0.8}],
                "calibration": {
                    "bins": [
                        {"confidence": c, "accuracy": c - 0.05, "n": 120} for c in (0.55, 0.7, 0.9)
                    ]
                },
                "accuracy_by_margin": [
                    {"from": m, "to": m + 0.5, "accuracy": 0.55 + 0.1 * m, "n": 240}
                    for m in (0, 0.5, 1, 1.5)
                ],
            },
        ),
    ]
    for seed in range(3):
        metrics = [
            {
                "step": i,
                "reward_gold": 0.02 * i + rng.normal() * 0.05,
                "reward_proxy": 0.03 * i,
                "kl": 0.2 * i,
                "entropy": 3 - 0.01 * i,
                "distinct_2": 0.9 - 0.002 * i,
                "response_length": 20 + rng.normal(),
                "max_ratio_error": 3e-6,
                "approx_kl": 0.01,
            }
            for i in range(50)
        ]
        cells.append(write_cell(root, "ppo", f"ppo-s{seed}", {"seed": seed}, metrics))
        samples = [
            {
                "prompt": EVIL,
                "before": "bad",
                "after": "good",
                "gold_before": b,
                "gold_after": b + 0.5,
            }
            for b in rng.normal(size=12)
        ]
        evaluation = {
            "n_prompts": 256,
            "temperature": 1.0,
            "gold_before": 0.1,
            "gold_after": 0.613 + seed / 10,
            "gain": 0.513 + seed / 10,
            "gain_interval": [0.4, 0.7],
            "win_rate": 0.8,
            "win_rate_interval": [0.75, 0.85],
            "kl": 9.5,
            "entropy_before": 3.0,
            "entropy_after": 2.5,
            "samples": samples,
            "gold": {
                "before": list(rng.normal(size=256)),
                "after": list(rng.normal(0.5, 1, size=256)),
            },
            "next_words": {
                side: {"The sky is": [[word, 0.4], [EVIL, 0.2]]}
                for side, word in (("before", "grey"), ("after", "blue"))
            },
        }
        cells.append(
            write_cell(root, "evaluate", f"eval-s{seed}", {}, (), True, evaluation=evaluation)
        )
    return cells


def write_study(root: Path, cells, analyses=(), **extra):
    folder = root / "studies" / "demo"
    folder.mkdir(parents=True)
    spec = {
        "name": "demo",
        "title": f"Demo {EVIL}",
        "description": "",
        "command": "rlhf-jax run demo",
        "cells": cells,
        "analyses": list(analyses),
        **extra,
    }
    (folder / "study.json").write_text(json.dumps(spec))
    return folder


def isoflop(cells):
    return {"kind": "isoflop", "cells": [c["name"] for c in cells]}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    cells = sweep(root, off=5.0)
    rates = [
        pretrain(root, f"lr{i}", 1e6, 2e7, lr, 3.5 + (i - 1) ** 2 / 10)
        for i, lr in enumerate((1e-3, 3e-3, 9e-3))
    ]
    base = pretrain(root, "base", 5e6, 1e8)
    missing = {
        "name": "late",
        "run_id": "ffff0000",
        "kind": "ppo",
        "parents": ["base"],
        "folder": "cells/late-ffff0000",
    }
    analyses = [isoflop(cells), {"kind": "lr_check", "cells": [c["name"] for c in rates]}]
    all_cells = [*cells, *rates, base, *rlhf(root), missing]
    folder = write_study(root, all_cells, analyses)
    html.build(folder, root, resamples=25)
    return folder, root, all_cells


def text_of(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_the_report_holds_the_numbers_of_the_run_folders(full):
    folder, _, cells = full
    text = text_of(folder)
    fit = json.loads((folder / "fits" / "isoflop-approach3.json").read_text())
    assert fit["alpha"] == pytest.approx(LAW.alpha, rel=0.1)
    assert f"N* ∝ C^{fit['a']:.3f}" in text
    for said in (
        "74.2%",
        "+0.513",
        "[0.400, 0.700]",
        "max_ratio_error",
        "blue&#39; 40.0%",
        "grey&#39; 40.0%",
    ):
        assert said in text
    for cell in cells:
        assert f'id="cell-{cell["run_id"]}"' in text
    assert set(re.findall(r'href="#(cell-[^"]+)"', text)) <= set(re.findall(r'id="([^"]+)"', text))


def test_refusals_and_missing_cells_are_said_in_words(full):
    folder, _, _ = full
    text = text_of(folder)
    two = json.loads((folder / "fits" / "isoflop-approach2.json").read_text())
    assert [bool(b["refused"]) for b in two["budgets"]] == [False, False, False, True]
    assert "refused: " + two["budgets"][3]["refused"] in text
    assert "not started" in text
    assert "0.003 is lowest, and both ends are worse" in text


def test_text_from_samples_titles_and_words_is_escaped(full):
    text = text_of(full[0])
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;/table&gt;" in text


def test_the_page_needs_no_network_and_follows_the_readers_colours(full):
    text = text_of(full[0])
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links
    assert all(link.startswith("#") for link in links)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#000[12]0|url\(http", text)


def test_every_figure_has_its_data_and_stands_alone(full):
    figures = full[0] / "figures"
    names = {p.stem for p in figures.glob("*.svg")}
    assert {
        "isoflop-parabolas",
        "isoflop-frontier",
        "isoflop-residuals",
        "isoflop-curves",
        "lr_check",
        "base-curve",
        "sft-curve",
        "reward-curves",
        "reward-calibration",
        "ppo-curves",
        "before-after",
        "gains",
        "exponents",
        "isoflop-envelope",
        "isoflop-extrapolation",
        "lead-isoflop",
        "lead-heldout",
        "lead-reward",
        "lead-ppo",
        "lead-gain",
    } == names
    assert names == {p.stem for p in figures.glob("*.csv")}
    for path in figures.glob("*.svg"):
        ElementTree.fromstring(path.read_text())
        assert "--s0:#0072b2" in path.read_text()


def test_an_unchanged_fit_is_not_made_again(full, monkeypatch):
    folder, root, _ = full
    monkeypatch.setattr("rlhf_jax.report.study_fits.fit_points", None)
    html.build(folder, root, resamples=25)


def test_a_failure_leaves_the_old_report_whole(full, monkeypatch):
    folder, root, _ = full
    old, real = text_of(folder), os.replace

    def fail(source, target):
        if str(target).endswith("report.html"):
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        html.build(folder, root, resamples=25)
    assert text_of(folder) == old
    assert not list(folder.glob(".report*"))


def test_a_diverged_run_is_named_beside_the_fit_that_lacks_it(tmp_path):
    cells = sweep(tmp_path, budgets=(1e14, 1e15))
    lost = write_cell(tmp_path, "pretrain", "c0-lost", done=False)
    failed = tmp_path / lost["folder"] / "failed.json"
    failed.write_text('{"reason": "loss not finite at step 7"}')
    folder = write_study(tmp_path, [*cells, lost], [isoflop([*cells, lost])])
    html.build(folder, tmp_path, resamples=10)
    for approach in (2, 3):
        fit = json.loads((folder / "fits" / f"isoflop-approach{approach}.json").read_text())
        assert "c0-lost is left out: failed: loss not finite at step 7" in fit["notes"]
        assert fit["n"] == len(cells)


def test_a_study_of_pretraining_alone_has_a_report(tmp_path):
    cells = sweep(tmp_path, budgets=(1e14,))
    folder = write_study(tmp_path, cells, [isoflop(cells)])
    text = html.build(folder, tmp_path, resamples=10).read_text()
    assert "1 of 1 budgets show a minimum; an exponent needs at least 2" in text
    assert "N and D lie on one line in logs" in text
    assert '<section id="ppo">' not in text


def test_one_studys_runs_counted_in_several_ways_stand_side_by_side(tmp_path):
    cells = []
    for n in np.geomspace(1e6, 1e8, 10):
        optimal = (n / LAW.G) ** (1 / LAW.a) / n  # tokens that n is compute-optimal for
        for d in optimal * np.geomspace(1 / 12, 12, 5):
            cells.append(pretrain(tmp_path, f"n{n:.3g}-d{d:.3g}", n, d))
    names = [c["name"] for c in cells]
    ways = [
        {"label": "ends", "loss": "ends"},
        {
            "label": "counted otherwise",
            "loss": "ends",
            "params": "non_embedding",
            "flops": "kaplan",
        },
        {"label": "read on the way", "loss": "curve"},
    ]
    folder = write_study(
        tmp_path, cells, [{"kind": "isoflop", "cells": names, **way} for way in ways]
    )
    text = html.build(folder, tmp_path, resamples=20).read_text()
    ends, otherwise, way = (
        json.loads((folder / "fits" / f"isoflop-{label}-approach2.json").read_text())
        for label in ("ends", "counted-otherwise", "read-on-the-way")
    )
    assert ends["a"] == pytest.approx(LAW.a, abs=0.03)
    assert otherwise["a"] > ends["a"] + 0.03
    assert way["a"] == pytest.approx(LAW.a, abs=0.1)
    assert "Exponents side by side" in text
    assert "N: parameters without embeddings" in text
    assert "read off each size" in text


def test_the_learning_rate_law_and_repeated_data_have_sections(tmp_path):
    rates = []
    for n in (1e5, 3e5, 1e6):
        for b in (512, 1024):
            best = 1e-2 * (n / 1e5) ** -0.5
            for i, factor in enumerate((0.3, 1.0, 3.0)):
                loss = 3 + 0.1 * np.log(factor) ** 2
                rates.append(
                    pretrain(
                        tmp_path,
                        f"lr-{n:.0f}-{b}-{i}",
                        n,
                        20 * n,
                        factor * best,
                        loss,
                        batch_tokens=b,
                    )
                )
    law = DataConstrained(E=1.6, A=120.0, B=180.0, alpha=0.34, R_D=8.0, R_N=5.0)
    repeated = []
    for n in (1e6, 4e6):
        for u in (2e6, 8e6, 3e7, 3e8):
            for d in (u, 4 * u, 16 * u):
                loss = float(law.predict(params=n, tokens=d, unique_tokens=u))
                repeated.append(
                    pretrain(tmp_path, f"u-{n:.0f}-{u:.0f}-{d:.0f}", n, d, 1e-3, loss, unique=u)
                )
    folder = write_study(
        tmp_path,
        [*rates, *repeated],
        [
            {"kind": "lr_law", "cells": [c["name"] for c in rates]},
            {"kind": "data_constrained", "cells": [c["name"] for c in repeated]},
        ],
    )
    text = html.build(folder, tmp_path, resamples=10).read_text()
    assert "lr = 0.01 (N / 100,000)^-0.50 (B / 1,024)^" in text
    assert "R_D* = 8" in text
    names = {p.stem for p in (folder / "figures").glob("*.csv")}
    assert {"lr_law", "data_constrained", "data_constrained-law"} <= names


def test_a_prediction_is_made_before_its_runs_and_scored_after(tmp_path):
    shapes = ladder((16, 24, 32, 48, 64, 96), 512, head_width=8)
    budgets = (1e12, 2e12, 4e12, 8e12)
    cells = [pretrain_cell(grid_point(c, m, 128, 8)) for c in budgets for m in shapes]
    study = Study("demo", tuple(cells), CorpusConfig(vocab=512), (Analysis("isoflop", ("c*",)),))

    def results(done):
        made = [
            pretrain(tmp_path / str(done), c.name, param_counts(c.model)["total"], c.tokens)
            for c in study.cells
            if done or not c.name.startswith("c8e12")
        ]
        for c, cell in zip(made, study.cells, strict=False):
            path = tmp_path / str(done) / c["folder"] / "results" / "heldout.json"
            held = json.loads(path.read_text())
            held["flops"]["exact"] = train_flops(cell.model, 128, cell.tokens)
            path.write_text(json.dumps(held))
        late = [
            {
                "name": c.name,
                "run_id": "ff",
                "kind": "pretrain",
                "parents": [],
                "folder": f"cells/{c.name}-ff",
            }
            for c in study.cells[len(made) :]
        ]
        return write_study(tmp_path / str(done), [*made, *late], [isoflop([*made, *late])])

    before = results(False)
    for wrong in (-1.0, 0.0, float("nan"), float("inf"), 1e30, 1.0):
        with pytest.raises(ConfigError):
            foretell(study, read_study(before, tmp_path / "False"), wrong)
    assert not (before / "prediction.json").exists()  # the one prediction is still to be made
    path = foretell(study, read_study(before, tmp_path / "False"), 8e12, resamples=20)
    said = json.loads(path.read_text())
    assert said["below"] < 5e12
    assert [run["label"] for run in said["runs"]] == [c.name for c in cells[-6:]]
    with pytest.raises(ConfigError, match="there already"):
        foretell(study, read_study(before, tmp_path / "False"), 8e12)
    text = html.build(before, tmp_path / "False", resamples=20).read_text()
    assert "No run of this compute is done" in text
    after = results(True)
    with pytest.raises(ConfigError, match="has begun"):
        foretell(study, read_study(after, tmp_path / "True"), 8e12)
    path.rename(after / "prediction.json")
    text = html.build(after, tmp_path / "True", resamples=20).read_text()
    assert "Predicted before it was run" in text
    assert "the loss of each of the 6 runs: missed by 0." in text


def test_a_study_of_rlhf_alone_has_a_report(tmp_path):
    folder = write_study(tmp_path, rlhf(tmp_path))
    text = html.build(folder, tmp_path).read_text()
    assert "Base model" not in text
    assert "74.2%" in text


def test_a_result_that_cannot_be_read_ends_the_report_and_is_named(tmp_path):
    cells = sweep(tmp_path, budgets=(1e14,))
    path = tmp_path / cells[3]["folder"] / "results" / "heldout.json"
    path.write_text('{"loss": ')
    folder = write_study(tmp_path, cells, [isoflop(cells)])
    with pytest.raises(ConfigError, match=rf"{path} is damaged.*--force {cells[3]['name']}"):
        html.build(folder, tmp_path, resamples=5)
    assert not (folder / "report.html").exists()


def test_cells_without_results_are_not_fatal(tmp_path):
    cells = [
        write_cell(tmp_path, kind, f"{kind}-empty", done=done)
        for kind, done in [
            ("pretrain", True),
            ("sft", True),
            ("reward", True),
            ("ppo", True),
            ("evaluate", True),
            ("best_of_n", True),
            ("dpo", True),
            ("ensemble", True),
            ("compare", False),
        ]
    ]
    broken = write_cell(tmp_path, "pretrain", "broken")
    (tmp_path / broken["folder"] / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"st')
    folder = write_study(
        tmp_path,
        [*cells, broken],
        [
            isoflop([broken]),
            {"kind": "lr_check", "cells": ["broken"]},
            {"kind": "overoptimization", "cells": ["ppo-empty", "best_of_n-empty"]},
        ],
    )
    text = html.build(folder, tmp_path, resamples=5).read_text()
    assert "0 of the sweep" in text
    assert "cannot bracket a minimum" in text


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no study\.json"):
        html.build(tmp_path, tmp_path)


def test_the_report_imports_no_jax():
    import subprocess

    code = "import sys, rlhf_jax.report.html, rlhf_jax.laws.sweep; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(frozen=True)
class Probed:
    layers: int
    said: str


@dataclass(frozen=True)
class ProbeResult:
    probe: Probed


@dataclass(frozen=True)
class Probe(Cell):
    """A kind from outside without a section."""

    KIND = "a_probe"
    RESULT = ProbeResult


@dataclass(frozen=True)
class Shown(Cell):
    """A kind from outside with one."""

    KIND = "shown_probe"
    RESULT = ProbeResult
    SECTION = ":probe_section"


def probe_section(study):
    (cell,) = study.having(ProbeResult)[1:]
    return Section("Probes", [Paragraph(f"{cell.result.probe.layers} layers")], [f"{EVIL} said"])


def test_a_kind_from_outside_is_shown_by_its_section_or_else_plainly(tmp_path):
    cells = [
        write_cell(tmp_path, kind, f"of-{kind}", probe={"layers": 7, "said": EVIL})
        for kind in (Probe.KIND, Shown.KIND)
    ]
    unknown = write_cell(tmp_path, "sft", "other", heldout={"loss": 2.0}) | {"kind": "not_here"}
    text = html.build(write_study(tmp_path, [*cells, unknown]), tmp_path).read_text()
    anchors = re.findall('<section id="([^"]+)">', text)
    assert anchors[:4] == ["summary", "a_probe", "shown_probe", "not_here"]
    assert "<p>7 layers</p>" in text and '<td class="n">7</td>' in text
    assert "heldout.loss" in text and "<script" not in text


def test_figures_come_before_words_and_cautions_after_them(full):
    text = text_of(full[0])
    lead, summary, limits = (text.index(s) for s in ('class="lead"', 'id="summary"', 'id="limits"'))
    assert lead < summary < text.index('class="refused"') and lead < text.index("<p")
    assert text.count('class="lead"') == 5 and text.count("<svg", lead, summary) == 5
    cautions = [s for s in text[summary:limits].split("<section")[0].split("<p") if "refused" in s]
    assert cautions == []
