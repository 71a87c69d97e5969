"""Tables as W&B, MLflow, Markdown, spreadsheets and downloads leave them."""

import json
import math

import numpy as np
import pytest

from rlhf_jax import cli
from rlhf_jax.laws.approaches import fit_points
from rlhf_jax.laws.points import from_rows, read_table
from rlhf_jax.laws.tables.columns import FitError

N = np.geomspace(2e7, 6e8, 8)
D = np.geomspace(8e9, 2e9, 8)
LOSS = 1.8 + 480 * N**-0.35 + 2100 * D**-0.37
ROWS = [[float(v) for v in row] for row in zip(N, D, LOSS, strict=True)]


def write(path, header, rows=ROWS, sep=","):
    path.write_text("\n".join(sep.join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def read(tmp_path, header, rows=ROWS, **columns):
    return read_table(write(tmp_path / "runs.csv", header, rows), columns)


def said(points):
    return "\n".join(points.notes)


@pytest.mark.parametrize(
    ("names", "units"),
    [
        (("Parameter (Mio.)", "Tokens (Mrd.)"), (1e6, 1e9)),
        (("Mparams", "Btokens"), (1e6, 1e9)),
        (("params_mil", "tokens_bil"), (1e6, 1e9)),
        (("Model size (M params)", "Dataset size (tokens)"), (1e6, 1)),
        (("num_parameters", "num_input_tokens_seen"), (1, 1)),
        (("parameter_count", "throughput/total_tokens"), (1, 1)),
    ],
)
def test_names_and_units_of_other_tools_are_understood(tmp_path, names, units):
    rows = [[n / units[0], d / units[1], loss] for n, d, loss in ROWS]
    points = read(tmp_path, [*names, "loss"], rows)
    np.testing.assert_allclose([points.params, points.tokens], [N, D], rtol=1e-12)


def test_the_flops_of_hf_and_levanter_are_compute(tmp_path):
    for name, unit in (("total_flos", 1.0), ("throughput/total_gflops", 1e9)):
        points = read(
            tmp_path, ["params", name, "loss"], [[n, 6 * n * d / unit, x] for n, d, x in ROWS]
        )
        np.testing.assert_allclose(points.tokens, D)


@pytest.mark.parametrize("name", ["pile_loss", "c4_loss", "macro_loss", "schema/loss"])
def test_the_only_loss_of_a_data_set_is_the_loss(tmp_path, name):
    np.testing.assert_allclose(read(tmp_path, ["params", "tokens", name]).loss, LOSS)


def test_the_only_perplexity_of_a_data_set_is_read_as_one(tmp_path):
    rows = [[n, d, math.exp(x)] for n, d, x in ROWS]
    np.testing.assert_allclose(
        read(tmp_path, ["params", "tokens", "wikitext_ppl"], rows).loss, LOSS
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("params,tokens,train_loss", "only the training loss 'train_loss'"),
        (
            "params,tokens,eval/c4/loss,eval/pile/loss",
            "several of losses (eval/c4/loss, eval/",
        ),
        ("Step,r0 - loss,r0 - loss__MIN", "is the export of a chart"),
        ("params,2.1e7,3.3e7,5.3e7", "each run must be a row"),
    ],
)
def test_a_table_without_a_plain_loss_is_told_what_it_has(tmp_path, header, message):
    row = [1e8] * (header.count(",") + 1)
    with pytest.raises(FitError) as e:
        read(tmp_path, header.split(","), [row] * 3)
    assert message in str(e.value)


def test_rules_of_databases_and_prose_above_markdown_are_no_rows(tmp_path):
    rows = "\n".join(f"| {n!r} | {d!r} | {x!r} |" for n, d, x in ROWS)
    rule = "+------+------+------+\n"
    for name, text in (
        ("sql.txt", f"{rule}| N | D | L |\n{rule}{rows}\n{rule}"),
        ("org.txt", f"| N | D | L |\n|------+------+------|\n{rows}\n"),
        ("notes.md", f"# Runs\n\nOurs, in two weeks.\n\n| N | D | L |\n|--|--|--|\n{rows}\n"),
    ):
        (tmp_path / name).write_text(text)
        points = read_table(tmp_path / name)
        assert not points.left_out
        np.testing.assert_allclose(points.loss, LOSS)


def test_a_markdown_table_loses_no_row_to_its_rule(tmp_path):
    rule = ["", " :--- ", "---:", "---", ""]
    rows = [["", f" {n!r} ", d, f"**{x!r}**", ""] for n, d, x in ROWS]
    path = write(tmp_path / "runs.md", ["", " N ", "D", "`loss`", ""], [rule, *rows], "|")
    points = read_table(path)
    assert not points.left_out
    np.testing.assert_allclose([points.params, points.loss], [N, LOSS])


@pytest.mark.parametrize(
    "data",
    [
        {"columns": ["params", "tokens", "loss"], "data": ROWS},
        {"columns": ["params", "tokens", "loss"], "index": list(range(8)), "data": ROWS},
        [["params", "tokens", "loss"], *ROWS],
        {"sweep": "x", "cells": [dict(zip("NDL", row, strict=True)) for row in ROWS]},
        {"runs": [dict(zip("NDL", row, strict=True)) for row in ROWS], "authors": [{"name": "a"}]},
    ],
)
def test_json_tables_of_wandb_and_pandas_are_read(tmp_path, data):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(data))
    np.testing.assert_allclose(read_table(path).loss, LOSS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!DOCTYPE html>\n<html><body a,b>404</body></html>\n", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "git lfs pull"),
    ],
)
def test_what_was_downloaded_in_the_tables_place_is_named(tmp_path, capsys, text, message):
    (tmp_path / "runs.csv").write_text(text)
    assert cli.main(["fit", str(tmp_path / "runs.csv")]) == 2
    assert message in capsys.readouterr().err


def test_summaries_below_a_table_are_no_runs_and_a_word_on_many_rows_is_no_summary(tmp_path):
    named = [[f"r{i}", *row] for i, row in enumerate(ROWS)]
    points = read(
        tmp_path, ["run", "N", "D", "L"], [*named, ["mean", 1e8, 4e9, 3], ["std", 1e7, 1e9, 1]]
    )
    assert [label for label, _ in points.left_out] == ["mean", "std"]
    pooled = [["mean" if i % 2 else "max", *row] for i, row in enumerate(ROWS)]
    assert len(read(tmp_path, ["pooling", "N", "D", "L"], pooled)) == len(ROWS)


def test_rows_that_differ_in_what_the_law_does_not_see_are_said(tmp_path):
    header = ["lr", "seed", "params", "tokens", "loss"]
    rates = [[lr, 0, n, d, x * (1 + lr)] for n, d, x in ROWS for lr in (0.01, 0.05)]
    assert "apart, and every row counts; they differ in lr, which the law does not see" in said(
        read(tmp_path, header, rates)
    )
    seeds = [[0.01, s, n, d, x + s / 100] for n, d, x in ROWS for s in (0, 1)]
    assert said(read(tmp_path, header, seeds)).endswith("they differ in seed")
    assert "every row counts" not in said(read(tmp_path, ["params", "tokens", "loss"]))


def test_data_seen_again_are_said(tmp_path):
    twice = [[n, d, d / 2, x] for n, d, x in ROWS]
    points = read(tmp_path, ["params", "tokens", "unique_tokens", "loss"], twice)
    assert "8 of 8 runs saw data more than once (up to 2 times" in said(points)
    for epochs, count in ((4, 1), (1, 0)):
        points = read(
            tmp_path,
            ["params", "tokens", "epochs", "loss"],
            [[n, d, epochs, x] for n, d, x in ROWS],
        )
        assert said(points).count("saw data more than once") == count


def test_a_median_run_with_a_rare_ratio_is_asked_for_its_units(tmp_path):
    points = read(tmp_path, ["params", "tokens", "loss"], [[n / 1e3, d, x] for n, d, x in ROWS])
    assert "tokens a parameter: are the units of both right?" in said(points)


def test_steps_without_names_of_runs_are_said(tmp_path):
    rows = [[s, n, d * s, x + 3 - s] for n, d, x in ROWS for s in (1, 2, 3)]
    assert "no column names the runs" in said(
        read(tmp_path, ["step", "params", "tokens", "loss"], rows)
    )


def test_a_budget_that_is_not_of_compute_is_passed_over_or_refused(tmp_path):
    rows = [["$100", n, 20 * n, x] for n, _, x in ROWS]
    points = read(tmp_path, ["budget", "params", "tokens", "loss"], rows)
    assert points.budget is None and "is no budget of compute: runs of '$100'" in said(points)
    with pytest.raises(FitError, match="column 'group' is no budget of compute"):
        read(tmp_path, ["group", "params", "tokens", "loss"], rows, budget="group")


def test_flops_that_overflowed_64_bits_are_refused(tmp_path):
    rows = []
    for n, d, x in ROWS:
        exact = 6 * round(n) * round(10 * d)
        rows.append([round(n), round(10 * d), (exact + 2**63) % 2**64 - 2**63, x])
    assert any(row[2] > 0 and row[2] != 6 * row[0] * row[1] for row in rows)
    with pytest.raises(FitError, match="multiplied as integers of 64 bits"):
        read(tmp_path, ["params", "tokens", "flops", "loss"], rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--params", "7M", "--tokens", "2000"], "0.000286 a parameter"),
        (["--params", "7B", "--tokens", "1T", "--inference-tokens", "1e30"], "1e24 at most"),
        (["--params", "7B"], "give --tokens"),
    ],
)
def test_a_cost_that_cannot_be_is_refused(capsys, words, message):
    assert cli.main(["cost", *words]) == 2
    assert message in capsys.readouterr().err


def test_shares_and_dollars_may_be_written_as_such(capsys):
    words = ["cost", "--params", "7B", "--tokens", "2T", "--json"]
    assert cli.main([*words, "--mfu", "40%", "--price", "$2"]) == 0
    assert (cost := json.loads(capsys.readouterr().out))["mfu"] == pytest.approx(0.4)
    assert cost["prices"] == [2, 2]


def test_few_runs_for_five_coefficients_are_said():
    rows = [
        {"params": n, "tokens": d, "loss": 1.8 + 480 * n**-0.35 + 2100 * d**-0.37}
        for n in (2e7, 1e8, 5e8)
        for d in (1e9, 8e9, 3e10)
    ]
    assert any(
        "9 runs for 5 coefficients" in note for note in fit_points(from_rows(rows), 3, 0)["notes"]
    )
