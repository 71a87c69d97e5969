"""What can be read linearly from a language model's last hidden state, and does it come with the
loss?

    rlhf-jax run experiments/probe.py            two to four minutes
    rlhf-jax run experiments/probe.py --tiny     seconds

Three properties of each position, from the text up to it alone: which kind of token comes next,
how far into its sentence the position is, and whether the sentence so far is glad, sad or neither.
A linear classifier (ridge regression on one-hot labels; the penalty is chosen on a fifth of the
rows that it is fitted on) reads them from the state that predicts the next token, and is scored on
documents of another split. Beside its accuracy stand three that say what it is worth: of the most
frequent label, of the same classifier on shuffled labels, and on a model that was never trained.

Measured, three sizes at two budgets: the kind of the next token is read at 62% to 79% of positions,
the more the lower the loss (untrained models 52% to 56%, the most frequent label 49%); the distance
at 34% to 39% (31% to 36%, and 27%), and little more after eight times the training; the sentiment
of the sentence by none of these models more often than by its most frequent label.

This file is also the example of a kind of one's own: a dataclass, a result, a job and a section,
and nothing else. See `rlhf_jax.study.cell.Cell` for what more a kind can say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from small_models import SHAPES

from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import CorpusConfig, Study
from rlhf_jax.study.cell import Cell, Cost
from rlhf_jax.study.ranges import Count, Seed
from rlhf_jax.study.results import Headline

if TYPE_CHECKING:
    from rlhf_jax.kinds.context import Context
    from rlhf_jax.report.blocks import Section
    from rlhf_jax.report.study_results import StudyResults

BATCH = 32  # rows at once; no state depends on it
EVERY = 4  # positions of a row that are read, one in so many
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge regression, relative to the states' variance
SENTENCE_END = re.compile(r"[.!?]\s")
DISTANCES = (4, 8, 16)  # words into a sentence at which the next label begins


@dataclass(frozen=True)
class Reading:
    """Accuracy of the classifier on held-out rows, with a 95% interval over rows; and of what it
    has to be better than."""

    accuracy: float
    low: float
    high: float
    untrained: float
    shuffled: float
    majority: float


@dataclass(frozen=True)
class ProbeResult:
    next_token: Reading
    distance: Reading
    sentiment: Reading

    def headline(self) -> Headline:
        """What a cell list shows beside its name."""
        r = self.next_token
        return Headline("kind of the next token", r.accuracy, low=r.low, high=r.high, form=".3f")


@dataclass(frozen=True)
class Probe(Cell):
    """Linear classifiers on the last hidden state of a language model."""

    KIND = "probe"
    PARENTS = {"base": "language_model"}
    RESULT = ProbeResult
    base: str = "base"
    rows: Count = 256  # of the validation split, to fit on, at most
    heldout_rows: Count = 256  # of the test split, to score on, at most
    seed: Seed = 0  # of the untrained model and the shuffled labels

    def splits(self) -> Iterator[str]:
        yield from ("validation", "test")

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas

        c, rows = Formulas(study, self, accumulate), self.rows + self.heldout_rows
        return c.sampled(rows, 2 * rows * c.forward, 0.0, BATCH, 2)


# --- job -------------------------------------------------------------------------------------


def run(ctx: Context, cell: Probe) -> ProbeResult:
    import jax

    from rlhf_jax.model import init

    untrained = jax.jit(init, static_argnums=(0, 2))(
        ctx.model, jax.random.key(cell.seed), ctx.runtime.axes
    )
    models = {"trained": ctx.language_model(cell.base), "untrained": untrained}
    counts = {"validation": cell.rows, "test": cell.heldout_rows}
    texts = {s: np.array(ctx.corpus.rows(s)[:n], np.int32) for s, n in counts.items()}
    ctx.beat.progress(phase="hidden states")
    states = {
        n: [hidden_states(ctx, p, rows) for rows in texts.values()] for n, p in models.items()
    }
    ctx.beat.progress(phase="classifiers")
    fit, heldout = (all_labels(ctx, rows) for rows in texts.values())
    return ProbeResult(
        **{name: _read(states, fit[name], heldout[name], cell.seed) for name in LABELS}
    )


def hidden_states(ctx: Context, params: Any, rows_NT: np.ndarray) -> np.ndarray:
    """States (N, T', D) at one position in `EVERY` of packed rows (N, T+1)."""
    import jax
    import jax.numpy as jnp

    from rlhf_jax.data.packing import batch_of
    from rlhf_jax.model import forward
    from rlhf_jax.model.sharding import joined, map_rows

    run, batch = ctx.runtime, batch_of(rows_NT, ctx.corpus.token_bytes)
    inputs = {k: batch[k] for k in ("tokens", "segments", "positions")}

    @jax.jit
    def states(rows: dict[str, jax.Array]) -> jax.Array:
        tokens, segments, positions = (rows[k] for k in inputs)
        x_DBT, _ = forward(params, ctx.model, tokens, segments, positions, run.axes)
        return jnp.moveaxis(x_DBT, 0, -1)[:, EVERY - 1 :: EVERY].astype(jnp.float32)

    return joined(map_rows(states, inputs, BATCH, run.mesh))


def next_token(before: str, after: str) -> int:
    """0: the rest of a word, 1: the beginning of one, 2: a number or a sign, 3: a new line."""
    if after[:1] == "\n":
        return 3
    if not after.strip() or after.strip()[:1].isalpha():
        return int(after[:1].isspace() or not before[-1:].isalpha())
    return 2


def distance(before: str, after: str) -> int:
    """Words since the last sentence ended, by `DISTANCES`."""
    return int(np.searchsorted(DISTANCES, len(_sentence(before).split()), side="right"))


def sentiment(before: str, after: str) -> int:
    """0: more sad words than glad ones in the sentence so far, 2: more glad ones, 1: neither."""
    from rlhf_jax.data.annotators import sentiment as score

    return 1 + int(np.sign(score([""], [_sentence(before)])[0]))


LABELS: dict[str, Callable[[str, str], int]] = {
    "next_token": next_token,
    "distance": distance,
    "sentiment": sentiment,
}


def _sentence(text: str) -> str:
    return SENTENCE_END.split(text)[-1]


def all_labels(ctx: Context, rows_NT: np.ndarray) -> dict[str, np.ndarray]:
    """Labels (N, T') of the positions that `hidden_states` gives, by property; -1 where a row holds
    no text."""
    from rlhf_jax.data.tokenizer import FIRST_BYTE

    decode, T = ctx.corpus.tokenizer.decode, rows_NT.shape[1] - 1
    at = range(EVERY - 1, T, EVERY)
    found = {name: np.full((len(rows_NT), len(at)), -1) for name in LABELS}
    for i, row in enumerate(rows_NT):
        for j, t in enumerate(at):
            if row[t + 1] < FIRST_BYTE:  # the end of a document, or padding
                continue
            own = row[: t + 1]
            start = max(np.flatnonzero(own < FIRST_BYTE), default=0)
            before, after = decode(own[start:].tolist()), decode([int(row[t + 1])])
            for name, label in LABELS.items():
                found[name][i, j] = label(before, after)
    return found


def _read(
    states: dict[str, list[np.ndarray]], fit_NT: np.ndarray, heldout_NT: np.ndarray, seed: int
) -> Reading:
    def accuracy(model: str, labels_NT: np.ndarray) -> tuple[float, float, float]:
        fit_NTD, heldout_NTD = states[model]
        right = classified(fit_NTD, labels_NT, heldout_NTD) == heldout_NT
        return ratio(right, heldout_NT >= 0)

    known = fit_NT >= 0
    shuffled_NT = fit_NT.copy()
    shuffled_NT[known] = np.random.default_rng(seed).permutation(fit_NT[known])
    most = np.bincount(fit_NT[known]).argmax()
    return Reading(
        *accuracy("trained", fit_NT),
        untrained=accuracy("untrained", fit_NT)[0],
        shuffled=accuracy("trained", shuffled_NT)[0],
        majority=ratio(heldout_NT == most, heldout_NT >= 0)[0],
    )


def classified(x_NTD: np.ndarray, labels_NT: np.ndarray, other_NTD: np.ndarray) -> np.ndarray:
    """Labels of other states, by ridge regression on one-hot labels. The penalty is the one that
    does best on the last fifth of the rows; where labels are negative nothing is learned."""
    cut = max(1, len(x_NTD) * 4 // 5)
    inner, outer = (x_NTD[:cut], labels_NT[:cut]), (x_NTD[cut:], labels_NT[cut:])
    right = [(_ridge(*inner, outer[0], penalty) == outer[1]).sum() for penalty in PENALTIES]
    return _ridge(x_NTD, labels_NT, other_NTD, PENALTIES[int(np.argmax(right))])


def _ridge(
    x_NTD: np.ndarray, labels_NT: np.ndarray, other_NTD: np.ndarray, penalty: float
) -> np.ndarray:
    known = labels_NT >= 0
    x_nD = x_NTD[known].astype(np.float64)
    mean_D, scale = x_nD.mean(0), x_nD.std()
    x_nD = (x_nD - mean_D) / scale
    y_nK = np.eye(labels_NT.max() + 1)[labels_NT[known]]
    gram_DD = x_nD.T @ x_nD + penalty * len(x_nD) * np.eye(x_nD.shape[1])
    w_DK = np.linalg.solve(gram_DD, x_nD.T @ (y_nK - y_nK.mean(0)))
    return (((other_NTD - mean_D) / scale) @ w_DK + y_nK.mean(0)).argmax(-1)


def ratio(right_NT: np.ndarray, known_NT: np.ndarray) -> tuple[float, float, float]:
    """The share of known positions that are right, and its 95% interval: rows are drawn, and the
    positions of a row are not independent (linearised standard error of a ratio)."""
    n_N, right_N = known_NT.sum(1), (right_NT & known_NT).sum(1)
    share = right_N.sum() / n_N.sum()
    error = 1.96 * np.sqrt(np.square(right_N - share * n_N).sum()) / n_N.sum()
    return float(share), float(share - error), float(share + error)


# --- section ---------------------------------------------------------------------------------


TITLES = {
    "next_token": "kind of the next token",
    "distance": "distance into the sentence",
    "sentiment": "sentiment of the sentence so far",
}


def section(study: StudyResults) -> Section:
    from rlhf_jax.report.blocks import (
        Heading,
        Paragraph,
        Section,
        absent,
        columns,
        interval,
        reference,
        share,
    )

    cells = study.of("probe")
    if not cells:
        return Section("Linear probes", absent(study.of("probe", done=False), "probe"))
    blocks: list[Any] = [
        Paragraph(
            "Accuracy of linear classifiers on the last hidden state, on documents that they were "
            "not fitted on, with 95% intervals over rows."
        ),
        figure(study, cells),
    ]
    for name, title in TITLES.items():
        readings = [(cell, getattr(cell.result, name)) for cell in cells]
        table = columns(
            readings,
            ("model", lambda of: reference(of[0])),
            ("accuracy", lambda of: share(of[1].accuracy)),
            ("95% interval", lambda of: interval((of[1].low, of[1].high))),
            ("untrained model", lambda of: share(of[1].untrained)),
            ("shuffled labels", lambda of: share(of[1].shuffled)),
            ("most frequent label", lambda of: share(of[1].majority)),
        )
        blocks += [Heading(title.capitalize()), table]
    best = max(cells, key=lambda cell: cell.result.next_token.accuracy)
    reading = best.result.next_token
    said = (
        f"{best.name} tells the kind of the next token linearly in {share(reading.accuracy)} of "
        f"positions (untrained {share(reading.untrained)}, most frequent "
        f"{share(reading.majority)})."
    )
    return Section("Linear probes", blocks, said=[said])


def figure(study: StudyResults, cells: list[Any]) -> Any:
    """Accuracy of every property against the held-out loss of the model that is read."""
    from rlhf_jax.report.style import MUTED, SERIES, Plot, legend_above, panels, render, styled

    by_name = {cell.name: cell for cell in study.cells}
    losses = {}
    for cell in cells:
        heldout = by_name[cell.parents[0]].heldout
        assert heldout is not None
        losses[cell.name] = heldout.loss
    cells = sorted(cells, key=lambda cell: losses[cell.name])
    x, rows = [losses[cell.name] for cell in cells], list[tuple]()

    @styled
    def drawn() -> str:
        chart, axes = panels(1, len(TITLES), width=7.6, height=3.1)
        for ax, (name, title), colour in zip(axes, TITLES.items(), SERIES, strict=False):
            of = [getattr(cell.result, name) for cell in cells]
            error = [[r.accuracy - r.low for r in of], [r.high - r.accuracy for r in of]]
            ax.errorbar(x, [r.accuracy for r in of], error, fmt="o-", color=colour, label="trained")
            for control, dash in (("untrained", "--"), ("shuffled", ":"), ("majority", "-.")):
                ax.plot(x, [getattr(r, control) for r in of], dash, color=MUTED, label=control)
            ax.set(title=title, xlabel="held-out loss (nats/token)")
            rows.extend(
                (c.name, name, losses[c.name], r.accuracy, r.low, r.high)
                for c, r in zip(cells, of, strict=True)
            )
        axes[0].set_ylabel("accuracy (held out)")
        legend_above(chart, axes[0])
        return render(chart, "probe")

    svg, header = drawn(), ("cell", "property", "heldout_loss", "accuracy", "low", "high")
    return Plot("probe", svg, header, rows, "What is read linearly, by the loss of the model.")


# --- study -----------------------------------------------------------------------------------

CORPUS = CorpusConfig(sources=("shakespeare", "kjv"), vocab=512)
SIZES = {"d16": SHAPES[0], "d32": SHAPES[2], "d64": SHAPES[4]}


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = []
    for name, model in list(SIZES.items())[: 1 if tiny else None]:
        for tokens in (65_536,) if tiny else (131_072, 1_048_576):
            base = f"{name}-{tokens // 1024}k"
            cells.append(Pretrain(base, model=model, tokens=tokens, batch=8))
            few = {"rows": 16, "heldout_rows": 16} if tiny else {}
            cells.append(Probe(f"probe-{base}", base=base, **few))
    return Study(
        name="probe-tiny" if tiny else "probe",
        title="What can be read linearly from the last hidden state",
        corpus=CORPUS,
        cells=tuple(cells),
    )
