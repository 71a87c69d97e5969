"""Guarantees of `rlhf_jax.data.layouts`. The rows are written here, in the form of public data
sets."""

import gzip
import json

import pytest

from rlhf_jax.data.feedback import Comparison, Correction, Demonstration, write
from rlhf_jax.data.layouts import LAYOUTS, Layout, load
from rlhf_jax.study.config import ConfigError

ASK = "\n\nHuman: Name a fish.\n\nAssistant: Trout.\n\nHuman: Another?\n\nAssistant:"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a fish."},
    {"role": "assistant", "content": "Trout."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Pike."},
    {"role": "user", "content": "Thanks."},
]
LATER = "\n\nSystem: Be brief." + ASK


def rows_in(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def only(tmp_path, row):
    loaded = load(rows_in(tmp_path / "one.jsonl", [row]))
    return loaded.layout, loaded.records[0]


def test_transcript_pairs_share_the_prompt_before_the_last_turn(tmp_path):
    got = only(tmp_path, {"chosen": ASK + " Pike.", "rejected": ASK + " A cow."})
    assert got == ("pairs", Comparison(ASK, (" Pike.", " A cow."), (1, 2)))


UNUSABLE = [
    {"chosen": ASK + " Pike.", "rejected": ASK.replace("fish", "bird") + " Owl."},
    {"chosen": ASK + " Pike.", "rejected": ASK + " Pike."},
    {"chosen": ASK + " Pike.\n\nHuman: Thanks.", "rejected": ASK + " Cow.\n\nHuman: No."},
    {"chosen": "Pike.", "rejected": "A cow."},
]


def test_unusable_pairs_are_counted_or_refused_with_their_row(tmp_path):
    good = {"chosen": ASK + " Pike.", "rejected": ASK + " A cow."}
    path = rows_in(tmp_path / "hh.jsonl", [*UNUSABLE, good])
    loaded = load(path)
    assert (len(loaded.records), loaded.rows, loaded.skipped) == (1, [5], 4)
    assert loaded.left_out.first == (1, "chosen and rejected differ before the last turn")
    with pytest.raises(ConfigError, match="no usable rows, 4 left out"):
        load(rows_in(path, UNUSABLE))


def test_pairs_with_a_prompt_of_their_own(tmp_path):
    texts = {"prompt": "Name a fish.", "chosen": "Pike.", "rejected": "Cow."}
    expected = Comparison("Name a fish.", ("Pike.", "Cow."), (1, 2))
    assert only(tmp_path, texts) == ("pairs", expected)
    whole = {
        k: [MESSAGES[1], {"role": "assistant", "content": texts[k]}] for k in ("chosen", "rejected")
    }
    expected = Comparison("\n\nHuman: Name a fish.\n\nAssistant:", (" Pike.", " Cow."), (1, 2))
    assert only(tmp_path, texts | whole)[1] == only(tmp_path, whole)[1] == expected
    last = {k: v[1:] for k, v in whole.items()} | {"prompt": MESSAGES[1:2]}
    assert only(tmp_path, last)[1] == expected
    assert only(tmp_path, last | {"prompt": "Name a fish."})[1] == expected


@pytest.mark.parametrize(
    ("fields", "ranking"),
    [
        ({"responses": ["a", "b", "c"], "ranking": [2, 1, 2]}, (2, 1, 2)),
        ({"answers": ["a", "b", "c"], "ranks": [0, 5, 3]}, (1, 3, 2)),
        ({"completions": ["a", "b", "c"], "scores": [0.5, 7, 0.5]}, (2, 1, 2)),
        (
            {"answers": [{"answer": t, "rank": r} for t, r in zip("abc", (2, 1, 3), strict=True)]},
            (2, 1, 3),
        ),
        (
            {"outputs": [{"text": t, "score": r} for t, r in zip("abc", (-2, 1, 3), strict=True)]},
            (3, 2, 1),
        ),
    ],
)
def test_scores_descend_to_ranks_and_ties_stay(tmp_path, fields, ranking):
    expected = ("kwise", Comparison("p", ("a", "b", "c"), ranking))
    assert only(tmp_path, {"prompt": "p", **fields}) == expected


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n\n1, 2"),
        ({"instruction": "Add 1, 2.", "input": "", "output": "3"}, "Add 1, 2."),
        ({"prompt": "1 + 2", "completion": "3"}, "1 + 2"),
        ({"prompt": "1 + 2", "response": "3", "source": "me"}, "1 + 2"),
        ({"question": "1 + 2?", "answer": "3"}, "1 + 2?"),
    ],
)
def test_instruction_sets_are_demonstrations(tmp_path, fields, prompt):
    assert only(tmp_path, fields) == ("instructions", Demonstration(prompt, "3"))


def test_the_last_assistant_turn_of_a_chat_is_the_response(tmp_path):
    assert only(tmp_path, {"messages": MESSAGES}) == ("chat", Demonstration(LATER, " Pike."))
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in MESSAGES]
    turns.insert(0, {"from": "gpt", "value": "Hello."})
    assert only(tmp_path, {"conversations": turns}) == ("chat", Demonstration(LATER, " Pike."))


def test_chats_without_an_answer_or_with_a_marker_inside_are_left_out(tmp_path):
    rows = [
        {"messages": MESSAGES},
        {"messages": MESSAGES[:2]},
        {"messages": MESSAGES[2:3]},
        {"messages": [{"role": "user", "content": "x\n\nHuman: y"}, MESSAGES[4]]},
    ]
    assert load(rows_in(tmp_path / "c.jsonl", rows)).skipped == 3


def test_lists_lines_and_compressed_files_hold_the_same(tmp_path):
    rows = [{"question": "q", "answer": str(i)} for i in range(3)]
    lines = rows_in(tmp_path / "a.jsonl", rows)
    expected = load(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    for name in ("a.json", "a.json.gz", "a.jsonl.gz"):
        assert load(tmp_path / name) == expected


def test_own_records_are_a_layout(tmp_path):
    records = [Demonstration("p", "r"), Correction("p", "a", "b")]
    write(tmp_path / "r.jsonl", records)
    assert load(tmp_path / "r.jsonl")[:3] == (records, [1, 2], "records")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "fields text is in no known layout"),
        ({"prompt": "p", "responses": ["a"], "ranking": [1]}, "1 responses"),
        ({"prompt": "p", "responses": list("abcdefghij"), "ranking": [1] * 10}, "10 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "scores: 1 numbers for 2"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, None]}, "expected a number"),
        ({"responses": ["a", "b"], "scores": [1, 2]}, "prompt = None"),
        ({"question": "q", "answer": 3}, "answer = 3"),
        ({"messages": "hello"}, "messages = 'hello'; expected a list"),
        (
            {"messages": [MESSAGES[0], {"role": "tool", "content": ""}]},
            "message 2 has role = 'tool'",
        ),
        ({"chosen": 1, "rejected": "x"}, "chosen = 1"),
        ({"kind": "comparison", "version": 2}, "expected 'version': 1"),
    ],
)
def test_malformed_rows_are_refused_with_their_number(tmp_path, row, message):
    with pytest.raises(ConfigError, match=rf"bad\.jsonl, row 1: .*{message}"):
        load(rows_in(tmp_path / "bad.jsonl", [row]))


def test_a_new_layout_is_one_entry_of_the_table(tmp_path, monkeypatch):
    new = Layout((("ask", "reply"),), lambda row, found: Demonstration(row["ask"], row["reply"]))
    monkeypatch.setitem(LAYOUTS, "asked", new)
    row = {"Ask": "q", "reply": "a", "by": "me"}
    loaded = load(rows_in(tmp_path / "a.jsonl", [row, row | {"split": "test"}]))
    assert loaded.records == [Demonstration("q", "a")] and loaded.layout == "asked"
    assert loaded.unread == ["by"] and loaded.skipped == 1


def usable(tmp_path, *rows, name="f.jsonl"):
    """Records, rows left out, and why."""
    loaded = load(rows_in(tmp_path / name, rows))
    return loaded.records, loaded.skipped, str(loaded.left_out)


GOOD = {"prompt": "1 + 2", "completion": "3"}
ANSWER = Demonstration("1 + 2", "3")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": False}, "label is false"),
        ({"label": "False"}, "label is false"),
        ({"label": 0}, "label is false"),
        ({"label": "perhaps"}, "label = 'perhaps'; expected true or false"),
        ({"deleted": True}, "deleted = True"),
        ({"is_deleted": "true"}, "is_deleted"),
        ({"status": "discarded"}, "status = 'discarded'"),
        ({"split": "test"}, "split = 'test'"),
        ({"split": "Validation"}, "split = 'Validation'"),
        ({"weight": 0}, "weight = 0"),
        ({"weight": 0.5}, "weight = 0.5"),
        ({"weight": "heavy"}, "weight = 'heavy'"),
        ({"tools": [{"name": "search"}]}, "tools are not supported"),
        ({"image": "a.png"}, "images are not supported"),
        ({"system": ["Be brief."]}, "expected a string"),
        ({"system": "a\n\nHuman: b"}, "opens a turn"),
    ],
)
def test_a_field_that_changes_what_a_row_means_is_never_ignored(tmp_path, change, reason):
    fine = GOOD | ({"label": True} if "label" in change else {})
    records, skipped, why = usable(tmp_path, GOOD | change, fine)
    assert (records, skipped) == ([ANSWER], 1)
    assert reason in why and "(row 1)" in why


@pytest.mark.parametrize(
    "change",
    [
        {"label": True},
        {"label": "1"},
        {"deleted": False},
        {"is_deleted": "false"},
        {"split": "train"},
        {"weight": 1},
        {"weight": "1.0"},
        {"status": "submitted"},
        {"tools": []},
        {"system": ""},
        {"system": None},
        {"label": None},
        {"category": "sums", "id": 7},
    ],
)
def test_fields_that_change_nothing_leave_the_row_as_it_is(tmp_path, change):
    assert usable(tmp_path, GOOD | change)[:2] == ([ANSWER], 0)


def test_answers_without_a_label_are_left_out_where_others_have_one(tmp_path):
    records, skipped, why = usable(tmp_path, GOOD | {"label": True}, GOOD | {"prompt": "x"})
    assert (records, skipped) == ([ANSWER], 1) and "no label or score" in why and "(row 2)" in why


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"score_chosen": 3.0, "score_rejected": 8}, "score_chosen is below score_rejected"),
        (
            {"score_chosen": 3.0, "score_rejected": 3},
            "score_chosen and score_rejected are the same",
        ),
        ({"chosen_rating": "?", "rejected_rating": 3}, "chosen_rating = '?'; expected a number"),
        ({"margin": -1}, "margin is below 0"),
        (
            {"rm_score_chosen": 1, "rm_score_rejected": 2},
            "rm_score_chosen is below rm_score_rejected",
        ),
        ({"chosen_rank": 2, "rejected_rank": 1}, "chosen_rank is above rejected_rank"),
        ({"scores": [1, 5]}, "scores = [1, 5], of which the first is not the higher"),
    ],
)
def test_pairs_whose_scores_contradict_them_are_left_out(tmp_path, scores, message):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    right = {"score_chosen": -1, "score_rejected": -8.5, "margin": 0}
    records, skipped, why = usable(tmp_path, pair | scores, pair | right)
    assert (len(records), skipped) == (1, 1) and message in why


def test_a_system_text_stands_in_the_prompt_of_every_layout(tmp_path):
    system, asked = "\n\nSystem: Be brief.", "\n\nHuman: 1 + 2\n\nAssistant:"
    expected = Demonstration(system + asked, " 3")
    turns = [{"from": "human", "value": "1 + 2"}, {"from": "gpt", "value": "3"}]
    brief = {"system": "Be brief."}
    for row in (
        GOOD | brief,
        {"instruction": "1 + 2", "input": "", "output": "3", "system_prompt": "Be brief."},
        {"conversations": turns} | brief,
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "1 + 2"},
                {"role": "assistant", "content": "3"},
            ]
        }
        | brief,
    ):
        assert usable(tmp_path, row)[0] == [expected]
    pair = Comparison(system + asked, (" 3", " 4"), (1, 2))
    assert usable(tmp_path, {"question": "1 + 2", "chosen": "3", "rejected": "4"} | brief)[0] == [
        pair
    ]
    ranked = {"prompt": "1 + 2", "responses": ["3", "4"], "scores": [0, -1]} | brief
    assert usable(tmp_path, ranked)[0] == [pair]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "tool", "content": "12"}, "message 2 has role = 'tool'"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "message 2 calls a tool"),
        ({"role": "assistant", "content": None}, "message 2 has content of type NoneType"),
        ({"role": "assistant", "content": "no", "weight": 0}, "message 2 has weight = 0"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "a"}]},
            "parts that are not text",
        ),
        ({"from": "observation", "value": "12"}, "message 2 has from = 'observation'"),
        ("12", "message 2 is '12'"),
    ],
)
def test_turns_that_cannot_be_learned_leave_their_row_out(tmp_path, message, reason):
    turns = [MESSAGES[1], message, MESSAGES[1], MESSAGES[4]]
    records, skipped, why = usable(tmp_path, {"messages": MESSAGES}, {"messages": turns})
    assert (records, skipped) == ([Demonstration(LATER, " Pike.")], 1)
    assert reason in why and "(row 2)" in why


def test_content_in_parts_of_text_is_read(tmp_path):
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a fish."}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": ["Trout."]}]
    expected = Demonstration("\n\nHuman: Name a fish.\n\nAssistant:", " Trout.")
    assert usable(tmp_path, {"messages": messages})[0] == [expected]
    assert usable(tmp_path, {"prompt": messages[:1], "completion": messages[1:]})[0] == [expected]


def test_a_stripped_transcript_is_the_same_transcript(tmp_path):
    pair = {"chosen": ASK + " Pike.", "rejected": ASK + " A cow."}
    stripped = {k: v.strip() for k, v in pair.items()}
    assert usable(tmp_path, pair)[0] == usable(tmp_path, stripped)[0]
    given = {"prompt": ASK.strip(), "chosen": "Pike.", "rejected": "A cow."}
    assert usable(tmp_path, given)[0] == usable(tmp_path, pair)[0]


def test_what_an_instruction_is_about_follows_it(tmp_path):
    dolly = {"instruction": "Sum.", "context": "1, 2", "response": "3", "category": "closed_qa"}
    squad = {"question": "Sum.", "context": "1, 2", "answer": "3"}
    for row in (dolly, squad):
        assert usable(tmp_path, row)[0] == [Demonstration("Sum.\n\n1, 2", "3")]
    history = dolly | {"context": "", "history": [["Hello.", "Hi."]]}
    asked = "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: Sum.\n\nAssistant:"
    assert usable(tmp_path, history)[0] == [Demonstration(asked, " 3")]


def test_rows_with_a_score_each_become_comparisons_of_their_prompts(tmp_path):
    def row(prompt, response, **score):
        return {"prompt": prompt, "response": response, **score}

    rows = [
        row("p", "a", score=-2),
        row("q", "b", score=1),
        row("p", "c", score=-1),
        row("p", "d", score=-2),
        row("r", "e", score=0),
        row("r", "f", score=0),
        row("s", "g", score="high"),
    ]
    records, skipped, why = usable(tmp_path, *rows)
    assert records == [Comparison("p", ("a", "c", "d"), (2, 1, 2))]
    assert skipped == 4 and "one response alone" in why and "the same score" in why
    ranked = [row("p", "a", rank=2), row("p", "b", rank=1)]
    assert usable(tmp_path, *ranked)[0] == [Comparison("p", ("a", "b"), (2, 1))]


def test_equal_texts_with_different_ranks_are_left_out(tmp_path):
    ranked = {"prompt": "p", "responses": ["a", "b", "a"]}
    records, skipped, why = usable(
        tmp_path,
        ranked | {"ranks": [1, 2, 3]},
        ranked | {"ranks": [1, 2, 1]},
        ranked | {"ranks": [-1, 1, -1]},
    )
    assert records == [Comparison("p", ("a", "b", "a"), (1, 2, 1))]
    assert skipped == 2 and "same text and have different ranks" in why and "not negative" in why


def test_one_bad_row_stops_nothing_and_is_named(tmp_path):
    junk = [
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b"\xe9",
        b'{"a": 1}',
        b"[" * 9000,
        b"1" * 5000,
        b'{"prompt": "a", "completion": "\\ud800"}',
        b'{"prompt": null, "completion": 1}',
    ]
    line = json.dumps(GOOD).encode()
    for bad in junk:
        path = tmp_path / "junk.jsonl"
        path.write_bytes(b"\n".join([line, bad, line, b""]))
        loaded = load(path)
        assert (loaded.rows, loaded.skipped) == ([1, 3], 1) and "(row 2)" in str(loaded.left_out)


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "u.jsonl"
    texts = ["a\u2028b", "a\u0085b", "a\x0cb"]
    path.write_bytes(
        b"\xef\xbb\xbf"
        + b"\r\n".join(
            json.dumps({"prompt": t, "completion": t}, ensure_ascii=False).encode() for t in texts
        )
    )
    assert load(path).records == [Demonstration(t, t) for t in texts]


def test_parquet_and_csv_hold_what_lines_hold(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    table = pa.Table.from_pylist([pair, {**pair, "rejected": None}])
    parquet.write_table(table, tmp_path / "p.parquet")
    parquet.write_table(table, tmp_path / "train-00000")
    for name in ("p.parquet", "train-00000"):
        loaded = load(tmp_path / name)
        assert loaded.records == [Comparison("p", ("a", "b"), (1, 2))] and loaded.skipped == 1
    (tmp_path / "d.csv").write_text('instruction,input,output\n"Sum, now.",,3\nAdd.,"1\n2",3\nx\n')
    loaded = load(tmp_path / "d.csv")
    assert loaded.records == [Demonstration("Sum, now.", "3"), Demonstration("Add.\n\n1\n2", "3")]
    assert loaded.skipped == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 999)[:-30],
            "damaged gzip.*[0-9]+ bytes .* row [0-9]+",
        ),
        ('{"a": 1}\n'.encode("utf-16"), "UTF-16.*iconv"),
        ('{"a": 1}\n'.encode("utf-16-le"), "UTF-16.*iconv"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"PAR1....", "not readable as parquet"),
        (b"", "no usable rows"),
        (b'[{"prompt": "a"},', "not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, content, message):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"odd\.jsonl.*{message}"):
        load(path)


def test_a_row_that_is_labelled_or_scored_as_bad_is_left_out_in_every_layout(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for row in (GOOD, {"messages": MESSAGES}, pair):
        for mark in ({"label": False}, {"score": -1}, {"split": "test"}):
            if row is not GOOD or "score" not in mark:
                label = {"label": True} if "label" in mark else {}
                assert usable(tmp_path, row | mark, row | label)[1] == 1


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    "change",
    [
        {"is_safe": False},
        {"correct": "false"},
        {"accepted": 0},
        {"review_result": False},
        {"toxic": True},
        {"Label": False},
        {" Split ": "test"},
        {"split": "holdout"},
        {"subset": "test"},
        {"sample_weight": 0},
        {"verdict": "bad"},
        {"thumbs_up": False},
        {"deleted_at": "2024-01-01"},
        {"edited": "5"},
        {"revision": "5"},
    ],
)
def test_answers_that_are_marked_as_bad_by_any_name_are_left_out(tmp_path, change):
    fine = GOOD | {k: True for k in change if k == "Label"}
    assert usable(tmp_path, GOOD | change, fine)[:2] == ([ANSWER], 1)


@pytest.mark.parametrize("change", [{"is_safe": True}, {"correct": "4, not 3"}, {"toxic": False}])
def test_answers_that_are_marked_as_good_stay(tmp_path, change):
    assert usable(tmp_path, GOOD | change)[:2] == ([ANSWER], 0)


@pytest.mark.parametrize(
    "change",
    [
        {"is_tie": True},
        {"winner_tie": 1},
        {"flip": True},
        {"preferred": "rejected"},
        {"winner": "tie"},
    ],
)
def test_a_field_that_turns_a_pair_around_is_never_ignored(tmp_path, change):
    kept, skipped, why = usable(tmp_path, PAIR | change, PAIR | dict.fromkeys(change, False))
    assert (len(kept), skipped) == (1, 1) and f"{next(iter(change))} = " in why


def test_answers_of_a_chat_that_are_not_to_be_learned_leave_it_out(tmp_path):
    for mark in ({"weight": 0}, {"loss": False}, {"train": False}):
        turns = [MESSAGES[1], MESSAGES[2] | mark, *MESSAGES[3:5]]
        kept, skipped, why = usable(tmp_path, {"messages": turns}, {"messages": MESSAGES})
        assert (len(kept), skipped) == (1, 1) and f"message 2 has {next(iter(mark))}" in why
    asked = [MESSAGES[1] | {"weight": 0}, MESSAGES[2]]
    assert usable(tmp_path, {"messages": asked})[1] == 0  # what is asked is never learned


def test_fields_that_nothing_reads_are_named(tmp_path):
    rows = [GOOD | {"origin": "web"}, GOOD | {"Grade": 3, "label": None}]
    assert load(rows_in(tmp_path / "f.jsonl", rows)).unread == ["grade", "origin"]
    assert load(rows_in(tmp_path / "f.jsonl", [GOOD])).unread == []
    for row, names in (
        (GOOD | {"response": "4", "input": "x"}, ["input", "response"]),
        (PAIR | {"response": "a", "winner": "model_b"}, ["response", "winner"]),
        (
            {"messages": MESSAGES, "prompt": "x", "rejected_response": "y"},
            ["prompt", "rejected_response"],
        ),
        (PAIR | {"score_chosen": 2, "score_rejected": 1, "margin": 1}, []),
        ({"instruction": "a", "input": "b", "output": "c", "history": []}, []),
    ):
        assert load(rows_in(tmp_path / "f.jsonl", [row])).unread == names, row


@pytest.mark.parametrize(
    "row",
    [
        {"Prompt": "1 + 2", "Completion": "3"},
        {"question": "1 + 2", "response": "3"},
        {"query": "1 + 2", "response": "3"},
        {"input": "1 + 2", "output": "3"},
    ],
)
def test_questions_and_answers_by_other_names_are_read(tmp_path, row):
    assert usable(tmp_path, row)[0] == [ANSWER]


def test_two_fields_of_one_name_are_refused(tmp_path):
    assert "'label'" in usable(tmp_path, GOOD | {"Label": 1, "label": 0}, GOOD)[2]
    (tmp_path / "f.csv").write_text("prompt,completion,completion\n1 + 2,3,4\n")
    with pytest.raises(ConfigError, match="two columns are called 'completion'"):
        load(tmp_path / "f.csv")


def test_lists_written_as_text_are_lists(tmp_path):
    whole = only(tmp_path, {"messages": MESSAGES})
    assert only(tmp_path, {"messages": json.dumps(MESSAGES)}) == whole
    assert only(tmp_path, {"messages": repr(MESSAGES)}) == whole
    kwise = {"prompt": "p", "responses": '["a", "b"]', "scores": "[0, 1]"}
    assert only(tmp_path, kwise)[1] == Comparison("p", ("a", "b"), (2, 1))
    listed = {"prompt": "List three.", "completion": "[1, 2, 3]"}
    assert only(tmp_path, listed)[1].response == "[1, 2, 3]"
    printed = "[{'role': 'user', 'content': 'x'}\n {'role': 'assistant', 'content': 'y'}]"
    _, skipped, why = usable(tmp_path, PAIR | {"chosen": printed}, PAIR)
    assert skipped == 1 and "chosen is a list of messages printed as text" in why


@pytest.mark.parametrize(
    "write",
    [
        lambda rows: "".join(json.dumps(r) for r in rows),
        lambda rows: "\n".join(json.dumps(r, indent=2) for r in rows),
        lambda rows: ",\n".join(json.dumps(r) for r in rows),
        lambda rows: "\r".join(json.dumps(r) for r in rows),
        lambda rows: "\n\n" + json.dumps(rows),
    ],
)
def test_objects_need_not_stand_in_a_line_each(tmp_path, write):
    rows = [GOOD | {"prompt": f"{i} + 1"} for i in range(5)]
    (tmp_path / "f.jsonl").write_text(write(rows), newline="")
    loaded = load(tmp_path / "f.jsonl")
    assert [r.prompt for r in loaded.records] == [r["prompt"] for r in rows]
    assert (loaded.rows, loaded.skipped) == ([1, 2, 3, 4, 5], 0)


def test_tables_have_any_separator_and_name_a_quote_that_does_not_close(tmp_path):
    (tmp_path / "f.csv").write_text("prompt; completion\n1 + 2;3\n")
    assert load(tmp_path / "f.csv").records == [ANSWER]
    (tmp_path / "f.csv").write_text('prompt,completion\n1 + 2,3\n4,"5\n6,7\n8,9\n')
    loaded = load(tmp_path / "f.csv")
    assert loaded.records == [ANSWER]
    assert str(loaded.left_out) == (
        "1 row left out: a quote does not close: 3 lines up to the end (row 2)"
    )


def test_suffixes_may_have_capitals_and_a_file_of_no_objects_says_what_is_expected(tmp_path):
    (tmp_path / "f.CSV").write_text("prompt,completion\n1 + 2,3\n")
    assert load(tmp_path / "f.CSV").records == [ANSWER]
    for text in ("<html>", "[1, 2]", '"a"', "[{]", '{"train": []}'):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(ConfigError, match=r"one list of objects|fields train is in no known"):
            load(tmp_path / "f.json")
