"""Tables as people have them end in a fit of the law behind them, or in words."""

import re
import warnings

import pytest
from fuzz_commands import outcome
from fuzz_tables import LAW, cases

SAID = ("left out", "passed over", "is not used", "Refused", "not UTF-8")
A = re.compile(r"^a +([\d.e+-]+)", re.MULTILINE)
G = re.compile(r"^(?:G) +([\d.e+-]+)", re.MULTILINE)


def problem_of(code, printed):
    """What is wrong with how `fit` ended, or ""."""
    if code not in (0, 2) or "Traceback" in printed or "Warning" in printed:
        return f"exit code {code}: {printed[-1500:]}"
    if code == 2:
        return "" if printed.strip() and len(printed) < 6000 else "exit 2 without a word"
    off = [x for x in map(float, A.findall(printed)) if abs(x - LAW.a) > 0.03]
    off += [x for x in map(float, G.findall(printed)) if not LAW.G / 4 < x < LAW.G * 4]
    if off and not any(word in printed for word in SAID):
        return f"a or G is {off} and nothing is left out: {printed[-1500:]}"
    return ""


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
