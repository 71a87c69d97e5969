"""Which rows of a table count, and how their numbers are read: nothing is left out in silence."""

import gzip
import json

import numpy as np
import pytest
from fuzz_tables import BUDGETS, LAW

from rlhf_jax import cli
from rlhf_jax.laws.points import FitError, read_table
from rlhf_jax.laws.tables.columns import read_name
from rlhf_jax.laws.tables.numbers import decimal_mark, parse

RUNS = [
    (c, n, c / (6 * n), float(LAW.loss(n, c / (6 * n))))
    for c in BUDGETS
    for n in LAW.compute_optimal(c)[0] * np.geomspace(0.25, 4, 7)
]


def table(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path)


def fit(capsys, path, *words):
    assert cli.main(["fit", str(path), "--resamples", "0", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("125M", 125e6),
        ("1.4e9", 1.4e9),
        ("1,400,000,000", 1.4e9),
        ("3e+17", 3e17),
        ("1.5T", 1.5e12),
        ("10^18", 1e18),
        ("6×10¹⁸", 6e18),
        ("6 * 10**18", 6e18),
        ("3,14", 3.14),
        ("1\u202f400\u202f000", 1.4e6),
        ("1\u00a0400", 1400),
        ("1'400'000", 1.4e6),
        ("16.863.713", 16863713),
        ("1.400.000,5", 1400000.5),
        ("1,400.5", 1400.5),
        ("70 B", 70e9),
        ("1.5 trillion", 1.5e12),
        ("3e17 FLOPs", 3e17),
        ("2 EFLOPs", 2e18),
        ("3.5 PF-days", 3.5 * 1e15 * 86400),
        ("2 petaflop/s-days", 2e15 * 86400),
        ("12%", 0.12),
        ("3.14±0.01", 3.14),
        ("−3", -3),
        ("1_000_000", 1e6),
        ("0,140", 0.14),
        (7, 7),
    ],
)
def test_a_number_is_read_in_any_spelling(text, number):
    assert parse(text)[0] == pytest.approx(number)


@pytest.mark.parametrize(
    "text", ["", "x", "1.2.3", "1,2,3", "12:30", True, None, "0x10", "3 apples", "1e5e5", []]
)
def test_what_is_no_number_is_none(text):
    with pytest.raises(ValueError, match="not a number"):
        parse(text)


def test_the_decimal_mark_is_the_tables_own():
    assert decimal_mark(["3,14", "2,7"], ";") == ","
    assert decimal_mark(["3,141", "2,718"], ";") == ","  # thousands would need no semicolons
    assert decimal_mark(["3,141", "2,718"], ",") == ""
    assert decimal_mark(["1,400", "3.14"], ";") == ""
    assert parse("9.883", ",")[0] == 9883
    assert parse("9.883")[0] == 9.883


@pytest.mark.parametrize(
    ("name", "role", "factor"),
    [
        ("params_M", "params", 1e6),
        ("params (M)", "params", 1e6),
        ("tokens_B", "tokens", 1e9),
        ("tokens (billions)", "tokens", 1e9),
        ("flops_1e18", "flops", 1e18),
        ("FLOPs (×10¹⁸)", "flops", 1e18),
        ("C (EFLOPs)", "flops", 1e18),
        ("compute_pf_days", "flops", 8.64e19),
        ("Training FLOP", "flops", 1),
        ("Training Compute (FLOP)", "flops", 1),
        ("achieved_flops", "flops", 1),
        ("Model Size", "params", 1),
        ("config.n_params", "params", 1),
        ("summary/eval/loss", "loss", 1),
        ("validation loss", "loss", 1),
        ("nParams", "params", 1),
        ("Reported Parameters (M)", "params", 1e6),
        ("unique_tokens_B", "unique_tokens", 1e9),
    ],
)
def test_a_name_says_the_role_and_the_unit(name, role, factor):
    assert read_name(role, name).factor == pytest.approx(factor)


@pytest.mark.parametrize(
    "name",
    [
        "d_model",
        "n_layers",
        "batch_tokens",
        "tokens_per_sec",
        "flops_per_token",
        "Embedding Parameters",
        "train_loss",
        "loss_stderr",
        "seq_len",
        "mfu",
        "compute_hours",
        "tokens per parameter",
    ],
)
def test_a_name_of_something_else_is_no_candidate(name):
    assert not any(read_name(role, name) for role in ("params", "tokens", "flops", "loss"))


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        ("params_M,tokens_B,loss", (1e6, 1e9, 1)),
        ("N (billions),D (T),L", (1e9, 1e12, 1)),
        ("log10_N,log10 D,loss", None),
    ],
)
def test_units_in_names_scale_the_numbers_also_of_columns_that_are_given(tmp_path, header, scale):
    rows = [[n, d, loss] for _, n, d, loss in RUNS]
    rows = [
        [np.log10(r[0]), np.log10(r[1]), r[2]] if scale is None else np.divide(r, scale)
        for r in rows
    ]
    text = header + "\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    found = table(tmp_path, text)
    assert found.params == pytest.approx([r[1] for r in RUNS])
    assert found.tokens == pytest.approx([r[2] for r in RUNS])
    names = dict(zip(("params", "tokens", "loss"), header.split(","), strict=True))
    assert read_table(tmp_path / "t.csv", names).params == pytest.approx([r[1] for r in RUNS])


def test_a_factor_is_given_with_the_column_and_one_takes_numbers_as_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("N,D,loss\n17,9.8,3.5\n30,5.4,3.25\n")
    given = {"params": "N*1e6", "tokens": "D*1e9", "loss": "loss"}
    assert read_table(path, given).params.tolist() == [17e6, 30e6]
    path.write_text("N,D,loss\n170,98000,3.5\n300,54000,3.25\n")
    assert read_table(path, {"params": "N*1"}).params.tolist() == [170, 300]
    with pytest.raises(FitError, match="not a positive factor"):
        read_table(path, {"params": "N*x"})


def test_perplexities_and_bits_become_nats(tmp_path):
    found = table(tmp_path, "N,D,val_perplexity\n1e6,2e7,20\n2e6,4e7,10\n")
    assert found.loss == pytest.approx(np.log([20, 10]))
    found = table(tmp_path, "N,D,bits_per_byte\n1e6,2e7,1.5\n2e6,4e7,1.25\n")
    assert found.loss == pytest.approx(np.log(2) * np.array([1.5, 1.25]))
    assert any("bits to nats" in note for note in found.notes)


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("state", "finished", "crashed"),
        ("State", "finished", "running"),
        ("run_state", "finished", "killed"),
        ("status", "FINISHED", "FAILED"),
        ("State", "COMPLETED", "CANCELLED by 1000"),
        ("JobState", "COMPLETED", "OUT_OF_ME+"),
        ("status", "done", "TIMEOUT"),
        ("finished", "True", "False"),
        ("is_diverged", "0", "1"),
        ("diverged", "no", "yes"),
        ("ExitCode", "0:0", "137:0"),
    ],
)
def test_runs_that_say_that_they_did_not_finish_are_left_out_and_named(
    tmp_path, capsys, column, good, bad
):
    rows = [
        f"r{i},{bad if i % 5 == 0 else good},{n},{d},{loss}"
        for i, (_, n, d, loss) in enumerate(RUNS)
    ]
    (tmp_path / "t.csv").write_text("\n".join([f"name,{column},N,D,loss", *rows, ""]))
    found = read_table(tmp_path / "t.csv")
    assert [label for label, _ in found.left_out] == [f"r{i}" for i in range(0, 35, 5)]
    assert all(f"{column} is {bad!r}" in reason for _, reason in found.left_out)
    assert found.notes[0].startswith("7 of 35 rows are left out: r0: ")
    assert "r30" in found.notes[0]
    said = fit(capsys, tmp_path / "t.csv", "--approach", "3")
    assert said["n"] == 28
    assert [row["label"] for row in said["left_out"]] == [f"r{i}" for i in range(0, 35, 5)]


def test_a_state_that_says_neither_is_kept_and_said(tmp_path):
    found = table(tmp_path, "N,D,loss,state\n1e6,2e7,3.5,finished\n2e6,4e7,3.25,shiny\n")
    assert len(found) == 2
    assert any("'shiny' (1 rows)" in note for note in found.notes)


def test_steps_of_one_run_count_once_by_the_last(tmp_path):
    text = "run_id,N,tokens,loss\n" + "".join(
        f"{run},1e6,{k}e7,{4 - k / 10 - run}\n" for run in (0, 1) for k in (3, 1, 2)
    )
    found = table(tmp_path, text)
    assert found.tokens.tolist() == [3e7, 3e7]
    assert found.loss == pytest.approx([3.7, 2.7])
    assert len(found.left_out) == 4
    assert (
        "the same run at tokens 1e+07 as t.csv:2 (tokens 3e+07), which counts"
        in found.left_out[0][1]
    )


def test_copies_count_once_and_seeds_and_model_names_are_no_copies(tmp_path):
    found = table(tmp_path, "N,D,loss\n1e6,2e7,3.5\n2e6,4e7,3.25\n1e6,2e7,3.5\n")
    assert len(found) == 2
    assert found.left_out == (("t.csv:4", "a copy of t.csv:2"),)
    seeds = "run,N,D,loss\n1,1e6,2e7,3.5\n2,1e6,2e7,3.5\n1,1e6,4e7,3.4\n"
    assert len(table(tmp_path, seeds)) == 3
    assert len(table(tmp_path, "model,N,D,loss\na,1e6,2e7,3.5\na,1e6,4e7,3.4\n")) == 2


def test_one_bad_row_of_each_kind_is_left_out_with_its_line_and_reason(tmp_path, capsys):
    bad = [
        "x,1e9,3",
        "1e7,,3",
        "1e7,1e9,nan",
        "1e7,1e9,-inf",
        "1e7,1e9",
        "1e7,1e9,3,4",
        "1e200,1e9,3",
        "1e7,1e9,31",
    ]
    good = [f"{n},{d},{loss}" for _, n, d, loss in RUNS]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["N,D,loss", *bad[:4], *good, *bad[4:7], ""]))
    found = read_table(path)
    assert len(found) == 35
    assert len(found.left_out) == 7
    assert "7 of 42 rows are left out: " in found.notes[0]
    assert "t.csv:2, column 'N': params is 'x', not a number" in found.notes[0]
    path.write_text("\n".join(["N,D,loss", *good, *bad, ""]))
    assert len(fit(capsys, path, "--approach", "3")["left_out"]) == 8


def test_budgets_that_scatter_and_spellings_of_a_number_are_one_budget(tmp_path, capsys):
    wobble = np.random.default_rng(0).uniform(0.95, 1.05, len(RUNS))
    path = tmp_path / "t.csv"
    path.write_text(
        "C,N,loss\n"
        + "".join(
            f"{c * w},{n},{LAW.loss(n, c * w / 6 / n)}\n"
            for (c, n, _, _), w in zip(RUNS, wobble, strict=True)
        )
    )
    two = fit(capsys, path, "--approach", "2")
    assert [len(budget["points"]) for budget in two["budgets"]] == [7] * 5
    assert two["a"] == pytest.approx(LAW.a, abs=0.03)
    rows = [
        f"{f'{c:g}' if i % 2 else repr(c)},{n},{d},{loss}\n"
        for i, (c, n, d, loss) in enumerate(RUNS)
    ]
    path.write_text("budget,N,D,loss\n" + "".join(rows))
    assert len(fit(capsys, path, "--approach", "2")["budgets"]) == 5


def test_every_separator_and_format_gives_the_same_table(tmp_path):
    rows = [[f"{n:.0f}", f"{d:.0f}", f"{loss:.6f}"] for _, n, d, loss in RUNS]
    want = np.array(rows, float).T
    header = ["N", "D", "loss"]
    records = [dict(zip(header, map(float, row), strict=True)) for row in rows]
    files = {
        f"{ord(mark)}.csv": "\n".join(mark.join(row) for row in [header, *rows]).encode()
        for mark in ",;\t|"
    } | {
        "comma.csv": "\n".join(";".join(row).replace(".", ",") for row in [header, *rows]).encode(),
        "words.txt": ("# N D loss\n" + "\n".join(" ".join(row) for row in rows)).encode(),
        "sep.csv": ("sep=;\n" + "\n".join(";".join(row) for row in [header, *rows])).encode(),
        "names.csv": (
            "N,D,loss\n" + "\n".join(",".join([str(i + 1), *row]) for i, row in enumerate(rows))
        ).encode(),
        "t.json": json.dumps({"runs": records}).encode(),
        "columns.json": json.dumps({k: [r[k] for r in records] for k in header}).encode(),
        "wandb.json": json.dumps(
            [
                {
                    "config": {"N": {"value": r["N"]}},
                    "summary": {"D": r["D"], "eval/loss": r["loss"]},
                }
                for r in records
            ]
        ).encode(),
        "t.jsonl": "\n".join(
            json.dumps({"note": "a\u2028b\u0085c", **r}, ensure_ascii=False) for r in records
        ).encode(),
        "spread.jsonl": ",\n".join(json.dumps(r, indent=1) for r in records).encode(),
        "packed.csv": gzip.compress("\n".join(map(",".join, [header, *rows])).encode()),
        "t.csv.gz": gzip.compress("\n".join(",".join(row) for row in [header, *rows]).encode()),
        "huge.csv": (
            "N,D,loss,config\n" + "\n".join(f"{','.join(row)},{'x' * 200_000}" for row in rows)
        ).encode(),
    }
    for name, data in files.items():
        found = table(tmp_path, data, name)
        assert np.array([found.params, found.tokens, found.loss]) == pytest.approx(want), name


def test_parquet_is_read(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"N": [1e6, 2e6], "D": [2e7, 4e7], "loss": [3.5, 3.25]}), tmp_path / "t.parquet"
    )
    assert read_table(tmp_path / "t.parquet").loss.tolist() == [3.5, 3.25]
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FitError, match="not readable as parquet"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"PK\x03\x04....", "a spreadsheet or zip archive"),
        ("t.csv", bytes(range(256)) * 9, "is not text"),
        ("t.csv.gz", gzip.compress(b"N,D,loss\n", mtime=0)[:15], "t.csv.gz: damaged gzip file"),
        ("t.xlsx", b"x", "save it as CSV"),
        ("t.json", b"[" * 100_000, "nested too deeply"),
        ("t.json", b"3", "without a list of runs"),
        ("t.jsonl", b"{\n", "t.jsonl:1 is not JSON"),
        ("t.csv", b"# only\n", "only comments"),
    ],
)
def test_what_is_no_table_is_refused_in_words(tmp_path, name, data, message):
    with pytest.raises(FitError, match=message):
        table(tmp_path, data, name)


def test_a_rate_is_no_compute_and_columns_passed_over_are_named(tmp_path):
    rows = [f"{n},{d},{loss},151.2" for _, n, d, loss in RUNS]
    found = table(tmp_path, "\n".join(["N,D,loss,tflops", *rows]))
    assert found.flops == pytest.approx(6 * found.params * found.tokens)
    assert any("'tflops' is passed over" in note for note in found.notes)
    rows = [f"{0.7 * n},{n},{c},{2 * c},{loss}" for c, n, _, loss in RUNS]
    found = table(
        tmp_path,
        "\n".join(["non_embedding_params,total_params,achieved_flops,flops_budget,loss", *rows]),
    )
    assert found.params == pytest.approx([n for _, n, _, _ in RUNS])
    assert found.flops == pytest.approx([c for c, _, _, _ in RUNS])
    assert (
        "column 'total_params' taken as params (passed over: 'non_embedding_params')" in found.notes
    )


def test_the_window_is_an_option_and_none_takes_every_run(tmp_path, capsys):
    """Without a window the parabola is numpy's polyfit of all runs of a budget."""
    wide = [
        (c, n) for c in BUDGETS for n in LAW.compute_optimal(c)[0] * np.geomspace(1 / 12, 12, 9)
    ]
    path = tmp_path / "t.csv"
    path.write_text("C,N,loss\n" + "".join(f"{c},{n},{LAW.loss(n, c / 6 / n)}\n" for c, n in wide))
    every = fit(capsys, path, "--approach", "2", "--window", "none")
    stars = []
    for c in BUDGETS:
        n = np.array([size for budget, size in wide if budget == c])
        x = np.log(n)
        c2, c1, _ = np.polyfit(x - x.mean(), LAW.loss(n, c / 6 / n), 2)
        stars.append(x.mean() - c1 / (2 * c2))
    assert every["a"] == pytest.approx(np.polyfit(np.log(BUDGETS), stars, 1)[0], abs=1e-9)
    assert every["left_out"] == []
    four, default = (
        fit(capsys, path, "--approach", "2", *words) for words in (["--window", "4"], [])
    )
    assert four["a"] == default["a"] != every["a"]
    assert len(default["left_out"]) == sum(len(b["outside"]) for b in default["budgets"]) == 20
    assert "beyond 4x of their budget's N*" in default["left_out"][0]["reason"]
    assert any(default["left_out"][-1]["label"] in note for note in default["notes"])


@pytest.mark.parametrize(
    "words",
    [
        ["--seed", "-1"],
        ["--seed", "5000000000"],
        ["--seed", "x"],
        ["--resamples", "200000"],
        ["--window", "1"],
        ["--window", "nan"],
        ["--window", "inf"],
        ["--window", "4", "--approach", "3"],
    ],
)
def test_options_out_of_range_are_refused_in_words(tmp_path, capsys, words):
    path = tmp_path / "t.csv"
    path.write_text("N,D,loss\n1e6,2e7,3.5\n")
    try:
        code = cli.main(["fit", str(path), *words])
    except SystemExit as e:
        code = e.code
    assert code == 2
    said = capsys.readouterr().err
    assert words[0].strip("-") in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--columns", "loss=loss", "loss=N"], "names loss twice"),
        (["--columns", "params=N", "tokens=N"], "'N' is given for two roles"),
        (["--plot", "t.csv"], "--plot t.csv is a file; give a folder"),
        (["--plot", "/proc/none", "--approach", "2"], "/proc/none: No such file or directory"),
        (["--law", "over_training"], "all 35 values of loss are 3: nothing to fit"),
        (["--law", "data_constrained"], "--columns unique_tokens=NAME"),
        ([], "all 35 losses are 3"),
    ],
)
def test_wrong_commands_and_flat_tables_end_in_words(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    flat = "over_training" in words or not words
    rows = [f"{n},{d},{3 if flat else loss}\n" for _, n, d, loss in RUNS]
    (tmp_path / "t.csv").write_text("N,D,loss\n" + "".join(rows))
    assert cli.main(["fit", "t.csv", "--resamples", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_one_size_alone_is_refused_by_every_law_in_words(tmp_path, capsys):
    rows = [f"1e8,{d},{LAW.loss(1e8, d)}\n" for d in np.geomspace(1e9, 1e11, 12)]
    (tmp_path / "t.csv").write_text("N,D,loss\n" + "".join(rows))
    for law in ("over_training", "kaplan"):
        assert cli.main(["fit", str(tmp_path / "t.csv"), "--law", law, "--resamples", "3"]) == 0
        assert "Refused: " in capsys.readouterr().out


def test_a_name_too_long_for_a_file_is_no_traceback(capsys):
    assert cli.main(["fit", "x" * 5000 + ".csv"]) == 2
    assert "File name too long" in capsys.readouterr().err
