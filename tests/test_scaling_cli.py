"""`rlhf-jax fit` on tables and on studies."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_results import whole

from rlhf_jax import cli
from rlhf_jax.kinds import Pretrain
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.study.files import write_json

DATA = Path(__file__).parent / "data"
LAW = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def study(root, budgets=(1e16, 1e17, 1e18), sizes=6, unfinished=1, analyses=1, loss="heldout"):
    """A study folder whose finished cells follow a law."""
    cells = []
    for c in budgets:
        for k in range(sizes):
            n = round(LAW.compute_optimal(c)[0] * 2.0 ** (k - sizes / 2 + 0.5))
            name = f"c{c:.0e}-n{k}"
            folder = root / "cells" / f"{name}-id"
            cells.append(
                {"name": name, "run_id": "id", "kind": "pretrain", "folder": f"cells/{name}-id"}
            )
            if len(cells) <= unfinished:
                continue
            d = round(c / (6 * n))
            held = {
                "loss": float(LAW.loss(n, d)),
                "stderr": 1e-6,
                "params": n,
                "param_counts": {"total": n},
                "train_tokens": d,
                "flops": {"exact": c},
            }
            write_json(folder / "config.json", {})
            held = whole(Pretrain.RESULT, {"heldout": held})["heldout"]
            write_json(folder / "results" / "heldout.json", held)
            write_json(folder / "done.json", {"seconds": 1.0})
    names = [cell["name"] for cell in cells]
    spec = [
        {"kind": "isoflop", "label": f"{i}", "cells": names, "loss": loss} for i in range(analyses)
    ]
    folder = root / "studies" / "synthetic"
    write_json(folder / "study.json", {"cells": cells, "analyses": spec})
    return folder


def fit(capsys, *words):
    assert cli.main(["fit", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_approach_is_fitted_by_default_and_names_its_source(capsys):
    found = fit(capsys, DATA / "kyo_takano.csv", "--resamples", "20")
    assert [f["approach"] for f in found["fits"]] == [1, 2, 3]
    assert found["file"] == "kyo_takano.csv"
    assert len(found["sha256"]) == 64
    assert all(len(f["points"]) == 234 for f in found["fits"])
    assert f"{found['fits'][2]['E']:.5f}" == "1.78389"


def test_approaches_that_a_table_does_not_support_are_refused_beside_the_others(capsys):
    found = fit(capsys, DATA / "gadre2024.csv", "--resamples", "20")
    one, two, three = found["fits"]
    assert "an exponent needs at least" in one["refused"]
    assert "budgets show a minimum" in two["refused"]
    assert three["a"] > 0
    assert (
        cli.main(["fit", str(DATA / "gadre2024.csv"), "--approach", "2", "--resamples", "0"]) == 0
    )
    assert "Refused: " in capsys.readouterr().out


def test_a_table_that_supports_nothing_is_wrong_input(tmp_path, capsys):
    path = tmp_path / "two.csv"
    path.write_text("N,D,loss\n1e6,2e7,3.5\n2e6,4e7,3.25\n")
    assert cli.main(["fit", str(path)]) == 2
    said = capsys.readouterr().err
    assert "no approach can be fitted to these 2 runs" in said
    assert "approach 3: approach 3 fits 5 coefficients and needs at least 6 runs" in said


def test_a_study_folder_is_fitted_by_its_finished_cells(tmp_path, capsys):
    folder = study(tmp_path)
    found = fit(capsys, folder, "--approach", "2", "--resamples", "20")
    assert found["study"] == "synthetic"
    assert found["analysis"] == "isoflop-0"
    assert found["n"] == 17
    assert {p["run_id"] for p in found["points"]} == {"id"}
    assert found["a"] == pytest.approx(LAW.a, abs=0.02)


def test_an_analysis_of_ends_is_read_off_at_equal_compute_for_approach_2_alone(tmp_path, capsys):
    """The same sizes at every horizon, so that each has a curve."""
    folder = study(tmp_path, budgets=(1e16, 1e17, 1e18), unfinished=0, loss="ends")
    ratio = LAW.compute_optimal(1e17)[0] / LAW.compute_optimal(1e16)[0]
    for path in sorted((tmp_path / "cells").glob("*/results/heldout.json")):
        held = json.loads(path.read_text())
        c = held["flops"]["exact"]
        size = held["params"] / ratio ** round(np.log10(c / 1e17))
        held["params"] = held["param_counts"]["total"] = int(float(f"{size:.3g}"))
        held["train_tokens"] = round(c / (6 * held["params"]))
        held["loss"] = float(LAW.loss(held["params"], held["train_tokens"]))
        write_json(path, held)
    two = fit(capsys, folder, "--approach", "2", "--resamples", "0")
    assert any("interpolated along each size's curve" in note for note in two["notes"])
    assert len(two["budgets"]) == 6
    three = fit(capsys, folder, "--approach", "3", "--resamples", "0")
    assert three["n"] == 18
    assert three["alpha"] == pytest.approx(LAW.alpha, rel=1e-3)


def test_a_study_with_several_analyses_asks_which(tmp_path, capsys):
    folder = study(tmp_path, analyses=2)
    assert cli.main(["fit", str(folder)]) == 2
    assert "--analysis isoflop-0 | isoflop-1" in capsys.readouterr().err
    assert (
        fit(capsys, folder, "--analysis", "isoflop-1", "--approach", "2")["analysis"] == "isoflop-1"
    )
    assert cli.main(["fit", str(folder), "--analysis", "isoflop"]) == 2
    assert "Did you mean 'isoflop-" in capsys.readouterr().err


def test_another_law_is_fitted_by_name_and_an_unknown_one_lists_them(capsys):
    found = fit(capsys, DATA / "muennighoff2023.csv", "--law", "kaplan", "--resamples", "5")
    assert found["law"] == "kaplan"
    assert len(found["points"]) == found["n"] == 296
    assert cli.main(["fit", str(DATA / "kyo_takano.csv"), "--law", "kaplann"]) == 2
    assert "Did you mean 'kaplan'" in capsys.readouterr().err


POWER = """
from dataclasses import dataclass
import numpy as np
from rlhf_jax.laws.law import Law
from rlhf_jax.laws.solve import linear_start

@dataclass(frozen=True)
class Power(Law):
    "loss = E + k C^-gamma"
    E: float
    k: float
    gamma: float
    NAME, INPUTS, SOURCE, FLOOR = "power", ("flops",), "a test", "E"

    @classmethod
    def formula(cls, p, columns):
        return p[0] + p[1] * columns["flops"] ** -p[2]

    @classmethod
    def starts(cls, columns, target):
        C, powers = columns["flops"], (0.05, 0.1, 0.2)
        return np.array([[*linear_start([C**0, C**-g], target), g] for g in powers])

class Empty(Law):
    "no formula"
"""


def test_a_law_from_outside_is_one_class(capsys, tmp_path, monkeypatch):
    (tmp_path / "powers.py").write_text(POWER)
    monkeypatch.syspath_prepend(tmp_path)
    flops = np.geomspace(1e18, 1e22, 12)
    rows = [f"{c:.6g},{np.sqrt(c / 120):.6g},{1.5 + 300 * c**-0.13:.12g}" for c in flops]
    (tmp_path / "runs.csv").write_text("\n".join(["flops,params,loss", *rows]))
    words = ("--law", "powers:Power", "--resamples", "5", "--plot", tmp_path / "figures")
    found = fit(capsys, tmp_path / "runs.csv", *words)
    assert found["law"] == "powers:Power"
    assert found["parameters"] == pytest.approx({"E": 1.5, "k": 300, "gamma": 0.13}, rel=1e-3)
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 1
    for name, message in (("powers:Empty", "lacks formula, starts"), ("json:loads", "a subclass")):
        assert cli.main(["fit", str(tmp_path / "runs.csv"), "--law", name]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.csv"], "no file no.csv"),
        ([DATA / "kyo_takano.csv", "--columns", "loss"], "'loss' is not ROLE=NAME"),
        ([DATA / "kyo_takano.csv", "--tiny"], "--tiny is for studies"),
        ([DATA / "kyo_takano.csv", "--resamples", "-1"], "must be 0 or more"),
        ([DATA / "kyo_takano.csv", "--law", "kaplan", "--approach", "3"], "give one of them"),
        (
            ["experiments/demo.py", "--tiny", "--runs", "none"],
            "first: rlhf-jax run experiments/demo.py --tiny",
        ),
        (["."], "has no study.json"),
    ],
)
def test_wrong_input_is_refused_in_words(words, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert cli.main(["fit", *map(str, words)]) == 2
    assert message in capsys.readouterr().err


def test_the_figures_of_a_fit_are_drawn_with_their_data(tmp_path, capsys):
    fit(capsys, DATA / "kyo_takano.csv", "--resamples", "0", "--plot", tmp_path)
    fit(
        capsys,
        DATA / "gadre2024.csv",
        "--law",
        "downstream",
        "--columns",
        "loss=loss_c4_val",
        "error=mean_error",
        "--resamples",
        "0",
        "--plot",
        tmp_path,
    )
    names = {"envelope", "parabolas", "frontier", "residuals", "extrapolation", "downstream"}
    assert (
        {p.stem for p in tmp_path.glob("*.svg")}
        == names
        == {p.stem for p in tmp_path.glob("*.csv")}
    )
    said = (tmp_path / "downstream.csv").read_text().splitlines()
    assert said[0] == "run,loss,observed,predicted"
    table = {
        line.split(",")[0]: line.split(",")
        for line in (DATA / "gadre2024.csv").read_text().splitlines()
    }
    for line in said[1:]:
        label, loss, observed, _ = line.split(",")
        assert float(loss) == pytest.approx(float(table[label][4]))
        assert float(observed) == pytest.approx(float(table[label][5]))


def test_a_study_without_an_isoflop_analysis_says_what_it_has(tmp_path, capsys):
    folder = study(tmp_path, analyses=0)
    assert cli.main(["fit", str(folder), "--approach", "2", "--json", "--resamples", "0"]) == 0
    said = "has no isoflop analysis; analyses: no other; cells: 18 pretrain"
    assert any(said in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert cli.main(["fit", str(folder), "--analysis", "isoflop"]) == 2
    err = capsys.readouterr().err
    assert said in err and "Known" not in err
    spec = json.loads((folder / "study.json").read_text())
    spec["analyses"] = [{"kind": "lr_check", "label": "rates", "cells": []}]
    spec["cells"] = [{**cell, "kind": "sft"} for cell in spec["cells"]]
    (folder / "study.json").write_text(json.dumps(spec))
    assert cli.main(["fit", str(folder)]) == 2
    assert "analyses: lr_check-rates (0 cells); cells: 18 sft" in capsys.readouterr().err
