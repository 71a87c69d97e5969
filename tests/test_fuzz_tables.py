"""Tables as people have them end in a fit of the law behind them, or in words."""

import warnings

import pytest
from fuzz_commands import outcome
from fuzz_tables import cases, problem_of


def wrong(tmp_path, seed, n, approaches):
    found = []
    for k, (said, name, data, argv) in enumerate(cases(seed, n, approaches)):
        folder = tmp_path / str(k)
        folder.mkdir()
        (folder / name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code, printed = outcome(["fit", str(folder / name), *argv])
        if problem := problem_of(code, printed):
            found.append(f"case {k} of seed {seed}: {said}: {argv}: {problem}")
    return found


def test_150_tables_fit_their_law_or_end_in_words(tmp_path):
    assert wrong(tmp_path, 0, 150, ("2",)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_tables_fit_their_law_or_end_in_words(tmp_path, seed):
    assert wrong(tmp_path, seed, 1000, ("2", "2", "2", "3", "all")) == []
