"""The role of each column of a table: from its name alone, or as the caller says.

A name is read as words: a noun of the role (`params`, `tokens`, `flops`, `loss`), words that may
stand beside it (`num`, `total`, `training`, ...), and a unit (`params_M`, `tokens (billions)`,
`flops_1e18`, `Compute (PF-days)`, `log10_flops`).

Order of preference, where several columns could have one role:
  params: all parameters, then trainable or active ones, then those without embeddings.
  tokens: tokens, then the size of a data set.
  flops: compute spent, then planned (`budget`, `target`), then PFLOPs and the like: maybe rates.
  loss: validation, then plain, then test, then the minimum; then perplexity, then bits.
Then the order is that of `ALIASES`, then of the table. A column that is empty in most rows comes
after one that is not. `notes` name the columns that are passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.laws.tables.numbers import (
    FLOP_SHORT,
    LONG,
    PF_DAYS,
    PREFIXED_FLOPS,
    SHORT,
    number_in,
    parse,
    straight,
)
from rlhf_jax.study.messages import suggest

SIZES = ("params", "tokens", "flops")  # any two give the third
# Names are compared without case, `_`, `-`, spaces and dots. A column of training loss is not
# among the losses: fits are to held-out loss, and a user who means it can say so.
ALIASES: dict[str, list[str]] = {
    "params": "params N n_params num_params total_params parameters size".split(),
    "tokens": (
        "tokens D n_tokens num_tokens train_tokens tokens_seen data_size dataset_size "
        "training_data_size"
    ).split(),
    "flops": "flops flop C compute train_flops training_flops total_flops".split(),
    "loss": (
        "val_loss validation_loss valid_loss eval_loss heldout_loss loss L final_loss test_loss"
    ).split(),
    "stderr": "stderr loss_stderr loss_se std_err standard_error sem se".split(),
    "unique_tokens": (
        "unique_tokens U n_unique num_unique unique n_unique_tokens num_unique_tokens "
        "tokens_unique train_unique_tokens"
    ).split(),
    "error": "error err error_rate downstream_error average_error avg_error top1_error".split(),
    "budget": "budget isoflop isoflop_group budget_name".split(),
    "label": "label run_name name run display_name model model_name".split(),
    "run_id": "run_id id uid uuid run_uuid".split(),
    "state": "state status run_state run_status job_state job_status".split(),
    "step": "step _step global_step steps train_step iteration iter".split(),
}
NUMERIC = (*SIZES, "loss", "stderr", "unique_tokens", "error")
COLUMNS = tuple(ALIASES)
# Columns of losses that are not the loss to fit.
ASIDE = re.compile(
    r"train|std|err|scale|_lo(?!ss)|_(hi|se)(?![a-z])|(?<![a-z])ema(?![a-z])", re.IGNORECASE
)
RATE = 6  # the kind of a column in PFLOPs and the like: of a run, or a second

_COUNT = "n nb num number no nr of the total all count counts in "
_SPLITS = "val valid validation eval evaluation heldout dev holdout "
_NOUNS = {
    "params": set("param params parameter parameters".split()),
    "tokens": set("token tokens tok toks".split()),
    "flops": set("flop flops flos compute".split()),
    "loss": set("loss nll xent perplexity ppl bpb bpc bpt bits entropy crossentropy".split()),
}
# Words that may stand beside a noun of the role.
_MODIFIERS = {
    "params": _COUNT + "model trainable non no embedding embeddings emb embed nonembedding nonemb "
    "noembed excluding excl without active activated size net network reported",
    "tokens": _COUNT + "train training trained pretrain pretraining seen processed consumed used "
    "data input dataset global cumulative on for d size",
    "flops": _COUNT + "train training pretrain pretraining achieved actual model measured "
    "estimated est approx theoretical used spent budget cumulative final exact target planned c",
    "loss": _COUNT + _SPLITS + "test held out final last end mean avg average lm language modeling "
    "modelling cross ce per token nats nat best min minimum lowest bits bit byte char character "
    "word l",
}
_ALLOWED = {role: _NOUNS[role] | set(text.split()) for role, text in _MODIFIERS.items()}
_BITS = set("bits bit bpb bpc bpt".split())
_PERPLEXITY = {"perplexity", "ppl"}
_LETTERS = {"n": "params", "d": "tokens", "c": "flops", "l": "loss"}
# Where W&B and MLflow put a name.
_PLACES = re.compile(
    r"^(config|summary|summary_metrics|metrics?|tags|hparams|data|attributes|params|parameters)"
    r"[./](?=.)|^throughput[./](?=total)",
    re.IGNORECASE,
)


class FitError(ValueError):
    """Data that no law can be fitted to: says which row and column, and what to do."""


@dataclass(frozen=True)
class Column:
    """A column and how its cells are read.

    Attributes:
      name: in the table. factor: of its numbers, from a unit in the name or from `NAME*FACTOR`.
      form: `log10` or `ln` of the quantity, `perplexity`, `bits`, or "".
      kind: the place in the order of preference. given: whether the caller named it.
    """

    name: str
    factor: float = 1.0
    form: str = ""
    kind: int = 0
    given: bool = False

    def value(self, cell: Any, decimal: str = "") -> float:
        """The quantity; ValueError where the cell is not a number."""
        number, own = parse(cell, decimal)
        if self.form in ("log10", "ln"):
            try:
                number = 10.0**number if self.form == "log10" else math.exp(number)
            except OverflowError:
                number = math.inf
        elif self.form == "perplexity":
            number = math.log(number) if number > 0 else math.nan
        elif self.form == "bits":
            number *= math.log(2)
        return number if own else number * self.factor

    def said(self) -> str:
        """How the numbers are read, or nothing."""
        said = {
            "log10": ", as log10 of it",
            "ln": ", as ln of it",
            "perplexity": ", as ln of a perplexity",
            "bits": ", times ln 2: bits to nats",
        }
        factor = f", times {self.factor:g}" if self.factor != 1 else ""
        return said.get(self.form, factor)


def assign(
    header: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    given: Mapping[str, str],
    where: str,
) -> tuple[dict[str, Column], dict[str, list[Column]], list[str]]:
    """(role -> column, role -> columns passed over, notes on what was recognised).

    What `given` names is taken at its word, `NAME*FACTOR` times a factor. Where it names two of
    params, tokens and flops, the third is taken only from a column of exactly that name: otherwise
    C = 6 N D is meant.

    Raises:
      FitError: a role or column that does not exist, or no loss.
    """
    notes: list[str] = []
    columns = {role: _given(role, text, header, where) for role, text in given.items()}
    used = [column.name for column in columns.values()]
    if twice := [name for name in used if used.count(name) > 1]:
        raise FitError(
            f"columns: {twice[0]!r} is given for two roles; each has a column of its own"
        )
    free = [name for name in header if name and name not in used]
    two_sizes = sum(role in given for role in SIZES) >= 2
    passed: dict[str, list[Column]] = {}
    for role in COLUMNS:
        found = [] if role in given else candidates(role, free, records)
        if role in SIZES and two_sizes and role not in given:
            passed[role] = [column for column in found if column.name != role]
            found = [column for column in found if column.name == role]
            notes += [f"column {c.name!r} is passed over for {role}" for c in passed[role]]
        if not found:
            continue
        columns[role], *passed[role] = found
        free.remove(found[0].name)
    if set(SIZES) <= set(columns) and "flops" not in given:
        name = columns["flops"].name
        if _numeric_share(name, records) < 0.5 <= _numeric_share(columns["tokens"].name, records):
            del columns["flops"]
            notes.append(
                f"column {name!r} is passed over for flops: most rows have no number there"
            )
    for role, column in columns.items():
        others = [c.name for c in passed.get(role, []) if c.name != column.name]
        over = f" (passed over: {', '.join(map(repr, others))})" if others else ""
        if column.said() or over or (column.name != role and not column.given):
            notes.append(f"column {column.name!r} taken as {role}{column.said()}{over}")
    if "loss" not in columns:
        raise FitError(_no_loss(header, records, where))
    return columns, passed, notes


def _given(role: str, text: str, header: Sequence[str], where: str) -> Column:
    if role not in COLUMNS:
        raise FitError(f"columns: {role!r} is not one of the roles.{suggest(role, COLUMNS)}")
    name, star, factor = text.rpartition("*")
    if text not in header and star and name.strip() in header:
        try:
            times = float(factor)
        except ValueError:
            times = math.nan
        if not (math.isfinite(times) and times > 0):
            raise FitError(f"columns: {text!r}: {factor!r} is not a positive factor, such as 1e6")
        return Column(name.strip(), times, "as is" if times == 1 else "", given=True)
    if text not in header:
        raise FitError(f"{where} has no column {text!r} (for {role}).{suggest(text, header)}")
    found = read_name(role, text) or Column(text)
    return Column(text, found.factor, found.form, given=True)


def candidates(
    role: str, names: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[Column]:
    """Columns whose names are those of the role, best first."""
    found = [column for name in names if (column := read_name(role, name))]
    if role in (*NUMERIC, "step"):  # a column of words cannot be meant
        share = {c.name: _numeric_share(c.name, records) for c in found}
        numeric = [c for c in found if share[c.name] > 0]
        if numeric or role not in (*SIZES, "loss"):  # those are refused later, with a reason
            found = numeric
    else:
        share = {c.name: _filled_share(c.name, records) for c in found}
    known = [plain_key(alias) for alias in ALIASES[role]]

    def order(column: Column) -> tuple:
        place = [*known, plain_key(column.name)].index(plain_key(column.name))
        return share[column.name] < 0.5, column.kind, column.name != role, place

    found.sort(key=order)
    if role == "loss" and not found:  # such as loss_c4_val, where it is the only one
        lossy = [n for n in _lossy(names, records) if not ASIDE.search(n)]
        if len(lossy) == 1:
            found = [Column(lossy[0], form="" if "loss" in plain_key(lossy[0]) else "perplexity")]
    return found


def _lossy(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of numbers whose names hold `loss` or a perplexity."""
    named = [n for n in names if "loss" in plain_key(n) or {"ppl", "perplexity"} & set(_words(n))]
    return [name for name in named if _numeric_share(name, records) > 0]


def _no_loss(header: Sequence[str], records: Sequence[Mapping[str, Any]], where: str) -> str:
    """The refusal of a table without a loss, with the columns that could be meant."""
    names = [name for name in header if name]
    lossy, has = _lossy(names, records), f"{where} has no column 'loss'"
    if any(name.endswith(("__MIN", "__MAX")) for name in lossy):
        return (
            f"{where} is the export of a chart, with a column of losses for each run "
            f"({listed(lossy, 4)}); export the table of runs, with params and tokens in its columns"
        )
    plain = [name for name in lossy if not ASIDE.search(name)]
    train = [name for name in lossy if "train" in name.casefold()]
    if plain:
        return (
            f"{has}, but several of losses ({listed(plain)}). Say which one to fit: --columns "
            f"loss=NAME, such as 'loss={plain[0]}'"
        )
    if train:
        return (
            f"{has}, only the training loss {train[0]!r}; fits are to held-out losses. To take it "
            f"all the same, --columns loss=NAME: 'loss={train[0]}'"
        )
    if sum(bool(re.fullmatch(r"[\d.eE+\-]+", name)) for name in names) > len(names) / 2:
        return f"{where} has numbers for column names ({listed(names)}): each run must be a row"
    return (
        f"{has}, nor another name known for it; it has {listed(names)}. Say which one it is: "
        "--columns loss=NAME"
    )


def listed(names: Sequence[str], most: int = 40) -> str:
    """Names by commas; of very many the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:80] for name in names[:most]) + more


def read_name(role: str, name: str) -> Column | None:
    """The column as that role, with the unit that its name has; None where the name says
    otherwise."""
    text = straight(name)
    while (short := _PLACES.sub("", text)) != text:
        text = short
    if plain_key(text) in map(plain_key, ALIASES[role]) and not (
        role == "flops" and plain_key(text) == "budget"
    ):
        return Column(name, kind=_kind(role, _words(text)))
    if role == "unique_tokens":
        words, own = _without_unit(_words(text), SHORT)
        rest = [word for word in words if word not in ("unique", "distinct")]
        return Column(name, own) if rest != words and _means("tokens", rest) else None
    if role not in _NOUNS:
        return None
    factor, form, kind = 1.0, "", 0
    if role == "flops":
        text = text.casefold()
        if not (found := PF_DAYS.search(text.replace("_", "-"))):
            found = re.search(rf"(?<![a-z])(?:{PREFIXED_FLOPS.pattern})(?![a-z])", text)
            kind = RATE if found else 0
        if found:
            factor = parse(f"1 {found[0]}")[0]
            text = f"{text[: found.start()]} flops {text[found.end() :]}"
    words = _words(text)
    if words[:1] in (["log10"], ["ln"]) or words[:2] == ["log", "10"]:
        form = "ln" if words[0] == "ln" else "log10"
        words = words[2:] if words[0] == "log" else words[1:]
    words = [part for word in words for part in _cut(word, role)]
    words, own = _without_unit(words, FLOP_SHORT if role == "flops" else SHORT)
    if (role == "loss" and own != 1) or not _means(role, words):
        return None
    if role == "loss" and not form:
        form = "perplexity" if _PERPLEXITY & set(words) else "bits" if _BITS & set(words) else ""
    return Column(name, factor * own, form, kind or _kind(role, words))


def _means(role: str, words: list[str]) -> bool:
    if not words:
        return False
    if set(words) in ({"model", "size"}, {"size"}):
        return role == "params"
    letters = [word for word in words if _LETTERS.get(word) == role]
    if letters and set(words) <= set(letters) | _NOUNS[role] | {"nats"}:
        return True
    nouns = _NOUNS[role] & set(words)
    if role == "loss" and {"cross", "ce"} & set(words):
        nouns |= {"ce"}
    if not nouns or not set(words) <= _ALLOWED[role]:
        return False
    embedded = any(word.startswith("emb") for word in words)
    return not embedded or bool({"non", "no", "excluding", "excl", "without"} & set(words))


def _kind(role: str, words: Sequence[str]) -> int:
    """The place of a column in the order of preference of its role, from its name's words."""
    said = set(words)
    if role == "params":
        if any("emb" in word for word in words):
            return 2
        return 1 if said & {"trainable", "active", "activated"} else 3 * (said == {"size"})
    if role == "flops":
        return int(bool(said & {"budget", "target", "planned"}))
    if role == "tokens":
        return int("size" in said)
    if role != "loss":
        return 0
    kinds = (_BITS, _PERPLEXITY, {"best", "min", "minimum", "lowest"}, {"test"})
    worse = next((5 - i for i, some in enumerate(kinds) if said & some), 0)
    held_out = said & set(_SPLITS.split()) or {"held", "out"} <= said
    return worse or int(not held_out)


def _words(text: str) -> list[str]:
    """Lower-case words; powers of ten as one word each."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold().replace("_", " ")
    pattern = r"10\s?(?:\^|\*\*)\s?\d+|\d+(?:\.\d+)?e\+?\d+|log10|[a-z]+\d*|\d+"
    return re.findall(pattern, re.sub(r"(?<![a-z])x\s?(?=\d)", " ", text))


def _cut(word: str, role: str) -> list[str]:
    """`mparams`, `btokens`: a unit before the noun."""
    return [word[0], word[1:]] if word[:1] in "kmbgt" and word[1:] in _NOUNS[role] else [word]


def _without_unit(words: list[str], short: Mapping[str, float]) -> tuple[list[str], float]:
    rest, factor, nouns = [], 1.0, set().union(*_NOUNS.values())
    for i, word in enumerate(words):
        if power := re.fullmatch(r"(?:10\s?(?:\^|\*\*)\s?|1?e\+?|1\.0e\+?)(\d+)", word):
            factor *= 10.0 ** min(int(power[1]), 300)
        elif word in LONG:
            factor *= LONG[word]
        elif (word in short and i and (words[i + 1 :] == [] or words[i + 1] in nouns)) or (
            word in ("k", "m", "b", "g", "t") and i == 0 and len(words) > 1
        ):
            factor *= short[word]
        else:
            rest.append(word)
    return rest, factor


def plain_key(name: str) -> str:
    """A column's name as names are compared: without case, spaces, `_`, `-` and dots."""
    return re.sub(r"[\s_.\-]", "", name).casefold()


def _numeric_share(name: str, records: Sequence[Mapping[str, Any]]) -> float:
    some = records[:: -(-len(records) // 2000) or 1]
    numbers = [number_in(record.get(name)) for record in some]
    return sum(x is not None and not math.isnan(x) for x in numbers) / max(len(some), 1)


def _filled_share(name: str, records: Sequence[Mapping[str, Any]]) -> float:
    return sum(r.get(name) not in (None, "") for r in records) / max(len(records), 1)
