"""Tables recognised by their column names alone, and what is wrong with those that are refused."""

import hashlib
from pathlib import Path

import pytest

from rlhf_jax.laws.approaches import fit_file
from rlhf_jax.laws.points import FitError, from_rows, read_table

DATA = Path(__file__).parent / "data"
COLUMNS = {"params": "N", "tokens": "D", "loss": "loss"}


@pytest.mark.parametrize(
    "header",
    [
        "N,D,L",
        "n,d,l",
        "params,tokens,loss",
        "n_params,n_tokens,val_loss",
        "Model Size,Training Tokens,Validation Loss",
        "num-params,num-tokens,eval_loss",
        "parameters,train_tokens,test_loss",
        "params_total,D,final_loss",
        "size,tokens,loss_c4",
    ],
)
def test_names_alone_say_what_the_columns_are(tmp_path, header):
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n1e6,2e7,3.5\n2e6,4e7,3.25\n")
    table = read_table(path)
    assert table.params.tolist() == [1e6, 2e6]
    assert table.tokens.tolist() == [2e7, 4e7]
    assert table.loss.tolist() == [3.5, 3.25]
    assert table.flops.tolist() == [6 * 1e6 * 2e7, 6 * 2e6 * 4e7]
    taken = [note for note in table.notes if "taken as" in note]
    assert len(taken) == sum(n not in ("params", "tokens", "loss") for n in header.split(","))


@pytest.mark.parametrize("name", ["C", "compute", "train_flops", "budget_flops", "FLOPs"])
def test_compute_is_recognised_and_stands_in_for_the_missing_size(tmp_path, name):
    path = tmp_path / "t.csv"
    path.write_text(f"N,{name},loss\n1e6,6e15,3.5\n")
    assert read_table(path).tokens.tolist() == pytest.approx([1e9])


def test_public_tables_need_no_column_names():
    assert len(read_table(DATA / "kyo_takano.csv")) == 234
    constrained = read_table(DATA / "muennighoff2023.csv")
    assert constrained.unique_tokens is not None
    assert "column 'val_loss' taken as loss" in constrained.notes


def test_rare_roles_and_run_ids_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name,run_id,N,D,U,loss,stderr,error\na,r-1,1e6,2e7,1e7,3.5,0.01,0.6\n")
    table = read_table(path)
    assert [table.unique_tokens[0], table.stderr[0], table.error[0]] == [1e7, 0.01, 0.6]
    assert table.rows() == [
        {"label": "a", "run_id": "r-1", "params": 1e6, "tokens": 2e7, "flops": 1.2e14, "loss": 3.5}
    ]


def test_of_two_columns_for_one_role_the_preferred_is_taken_and_the_other_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("N,D,test_loss,val_loss\n1e6,2e7,3.6,3.5\n")
    table = read_table(path)
    assert table.loss.tolist() == [3.5]
    assert "column 'val_loss' taken as loss (passed over: 'test_loss')" in table.notes
    assert read_table(path, {"loss": "test_loss"}).loss.tolist() == [3.6]


def test_a_column_of_words_is_no_candidate_and_training_loss_no_guess(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("N,param_count,D,loss\n1e6,kaplan,2e7,3.5\n")
    assert read_table(path).params.tolist() == [1e6]
    path.write_text("N,D,train_loss\n1e6,2e7,3.5\n")
    with pytest.raises(FitError, match=r"no column 'loss'.*train_loss.*--columns loss=NAME"):
        read_table(path)


def test_two_named_sizes_mean_c_is_6nd_whatever_else_the_table_has(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("C,N,D,loss\n9e15,1e6,1e9,3.5\n")
    assert read_table(path, COLUMNS).flops.tolist() == [6e15]
    assert read_table(path).flops.tolist() == [9e15]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("N,D,los\n1,2,3\n", COLUMNS, r"no column 'loss' \(for loss\). Did you mean 'los'"),
        ("N,D,loss\n1e6,x,3\n", COLUMNS, r"t.csv:2, column 'D': tokens is 'x', not a number"),
        (
            "N,D,loss\n1e6,2e7,nan\n",
            {},
            r"t.csv:2, column 'loss': loss is nan; it must be positive",
        ),
        ("N,D,loss\n1e6,2e7,-3\n", {}, r"t.csv:2, column 'loss'"),
        ("N,D,loss\n1e6,2e7,\n", {}, r"t.csv:2, column 'loss': loss is '', not a number"),
        ("N,D,loss\n1,2\n", {}, r"t.csv:2 does not have 3 fields"),
        ("N,D,loss\n1,2,3,4\n", {}, r"t.csv:2 does not have 3 fields .* but 4"),
        ("N,loss\n1e6,2\n", {"params": "N"}, "two of them are needed"),
        (
            "N,D,loss\n1,2,3\n",
            {"parms": "N"},
            "'parms' is not one of the roles. Did you mean 'params'",
        ),
        ("N,D,loss\n", {}, "no rows"),
        ("", {}, "t.csv is empty"),
        ("N,N,D,loss\n1e6,1e6,2e7,3\n", {}, "header has 'N' twice"),
        ("1e6,2e7,3.5\n1e6,4e7,3.4\n", {}, "is not a header"),
        ("N,D,loss\n1e6,2e7,3\n1e6,3e7,3.1\n", {}, "at least 6 runs, not 2"),
        ("N,D,loss\n" + "".join(f"1e6,2e7,3.{i}\n" for i in range(9)), {}, "have 1 and 1"),
        ("N,D,loss\n" + "".join(f"{i}e6,{i}e7,3\n" for i in range(1, 9)), {}, "all 8 losses are 3"),
        ("N,D,loss\n17,2e7,3\n30,3e7,3.1\n", {}, r"column 'N': 2 of 2 .*'params=N\*1e6'"),
        ("N,D,loss\n1e7,9.8,3\n2e7,8.1,3.1\n", {}, r"column 'D': 2 of 2 .*'tokens=D\*1e9'"),
        (
            "N,D,C,loss\n1e7,1e9,60,3\n2e7,1e9,120,3.1\n",
            {},
            r"column 'C': 2 of 2 .*'flops=C\*1e18'",
        ),
        (
            "N,D,C,loss\n1e7,1e9,6e13,3\n2e7,1e9,1.2e14,3.1\n",
            {},
            r"0.001 times 6 N D .*'flops=C\*1e3'",
        ),
        ("N,C,loss\n1e7,6e20,3\n2e7,6e8,3.1\n3e7,6e8,3.1\n", {}, "tokens a parameter by C = 6 N D"),
        ("N,D,loss\n1e7,1e9,20.1\n2e7,1e9,19.1\n", {}, "half of the losses are above 12.5"),
        ("N,D,loss\n1e7,1e3,3\n2e7,1e3,3.1\n", {}, "column 'D': 2 of 2"),
        ("N D loss\n1e6 1e7\n", {}, "the separators , ; tab and | are known"),
        (
            'name,N,D,loss\n"a,1e6,2e7,3.5\nb,1e6,3e7,3.4\n',
            {},
            "t.csv:2: a quote is opened and never",
        ),
        (
            'name,N,D,loss\n"a,1e6,2e7,3.5\n"b",1e6,3e7,3.4\n',
            {},
            "t.csv:2: a quote is opened and not closed",
        ),
    ],
)
def test_bad_tables_are_refused_naming_row_and_column(tmp_path, text, columns, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(FitError, match=message):
        fit_file(path, columns, approach=3, resamples=0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_any_encoding_and_end_of_line_is_read(tmp_path, encoding):
    path = tmp_path / "t.csv"
    text = "N,D,loss,note\n1e6,2e7,3.5,caf\u00e9\n\n2e6,4e7,3.25,\n"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(text.replace("\n", end).encode(encoding))
        table = read_table(path)
        assert table.labels == ("t.csv:2", "t.csv:4")
        assert table.loss.tolist() == [3.5, 3.25]


def test_the_third_of_params_tokens_flops_follows_and_is_said(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"params": 1e6, "flops": 6e15, "val": 3.0, "id": "r-1"}\n')
    table = read_table(path, {"loss": "val", "label": "id"})
    assert table.tokens[0] == pytest.approx(1e9)
    assert table.labels == ("r-1",)
    assert table.notes == ("tokens computed as C / (6 N)",)


def test_a_fit_says_which_file_and_which_runs_it_is_of(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes((DATA / "kyo_takano.csv").read_bytes())
    fit = fit_file(path, approach=2, resamples=0)
    assert fit["file"] == "runs.csv"
    assert fit["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(fit["points"]) == 234
    assert fit["points"][0]["label"] == "runs.csv:2"


def test_rows_may_carry_run_ids():
    rows = [{"params": 1e6, "tokens": 1e7, "loss": 3.0, "label": "a", "run_id": "a-1"}]
    assert from_rows(rows).run_ids == ("a-1",)
    assert from_rows([{**rows[0], "run_id": None}]).run_ids is None
