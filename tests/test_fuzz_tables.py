"""Tables as people have them end in a fit of the law behind them, or in words."""

import re
import warnings

import pytest
from fuzz_tables import LAW, cases

from rlhf_jax import cli

SAID = ("left out", "passed over", "is not used", "Refused", "not UTF-8")
A = re.compile(r"^a +([\d.e+-]+)", re.MULTILINE)
G = re.compile(r"^(?:G) +([\d.e+-]+)", re.MULTILINE)


def outcome(path, data, argv, capsys):
    """What is wrong with how `fit` ends, or ""."""
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            code = cli.main(["fit", str(path), *argv])
        except SystemExit as e:
            code = e.code
    out, err = capsys.readouterr()
    if raised:
        return f"warned: {raised[0].message}"
    if code not in (0, 2) or "Traceback" in err:
        return f"exit code {code}"
    if code == 2:
        return "" if err.strip() and len(err) < 6000 else "exit 2 without a word"
    off = [x for x in map(float, A.findall(out)) if abs(x - LAW.a) > 0.03]
    off += [x for x in map(float, G.findall(out)) if not LAW.G / 4 < x < LAW.G * 4]
    if off and not any(word in out for word in SAID):
        return f"a or G is {off} and nothing is left out: {out[-1500:]}"
    return ""


def wrong(tmp_path, capsys, seed, n, approaches):
    found = []
    for k, (said, name, data, argv) in enumerate(cases(seed, n, approaches)):
        folder = tmp_path / str(k)
        folder.mkdir()
        if problem := outcome(folder / name, data, argv, capsys):
            found.append(f"case {k} of seed {seed}: {said}: {argv}: {problem}")
    return found


def test_150_tables_fit_their_law_or_end_in_words(tmp_path, capsys):
    assert wrong(tmp_path, capsys, 0, 150, ("2",)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_tables_fit_their_law_or_end_in_words(tmp_path, capsys, seed):
    assert wrong(tmp_path, capsys, seed, 1000, ("2", "2", "2", "3", "all")) == []
