"""The cost of training a model, and the optimum of each published law for the same compute."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rlhf_jax.cost.flops import CONVENTIONS, all_conventions, six_nd
from rlhf_jax.cost.hardware import Hardware, chip_hours, find_hardware
from rlhf_jax.cost.presets import PRESETS, Preset, Training, preset
from rlhf_jax.laws.inference import inference_optimal
from rlhf_jax.laws.points import FitError
from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.laws.tables.selection import TOKENS_PER_PARAM
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.ranges import Range

DEFAULT_HARDWARE = "h100"
DEFAULT_MFU = 0.4
ASSUMED_MFU = (
    "assumed; published ones run from 0.21 (GPT-3) to 0.46 (PaLM): Chowdhery 2022, table 3"
)


def training_cost(
    name: str | None = None,
    params: float | None = None,
    tokens: float | None = None,
    hardware: str | None = None,
    mfu: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """The cost of one training run as JSON values.

    Dollars = C / (peak x MFU x 3600) x price. C follows the convention of PaLM's appendix B, which
    published MFUs use; for a bare `params` it is 6 N D.

    Args:
      name: a preset; or params: a bare number. tokens: trained on. mfu: in (0, 1]. hardware: a name
        of `HARDWARE`. price: dollars a chip-hour. Defaults: the preset's published values; else
        h100, 0.4, and the hardware's list prices, low and high.

    Returns (where the name does not say it):
      flops: by convention; `convention` is the priced one. ideal: of the FLOPs at that MFU, without
      losses. campaign: see `_campaign`. laws: see `compare_laws`. prices, dollars: [low, high].

    Raises:
      ConfigError: both or neither of name and params; an unknown name; a value out of its range.
    """
    if (name is None) == (params is None):
        given = "both" if name is not None else "neither"
        raise ConfigError(f"{given} of a preset and a number of parameters given; give one of them")
    known = preset(name) if name is not None else None
    n = known.params if known else _positive("params", params)
    trained = known.training if known else None
    d = _tokens(name, trained, n, tokens)
    published = (trained and trained.hardware) or DEFAULT_HARDWARE
    chip = find_hardware(published if hardware is None else hardware)
    prices = [chip.low, chip.high] if price is None else [_positive("price", price)] * 2
    share, said = _mfu(mfu, trained, chip)
    convention = "palm" if known else "6nd"
    flops = all_conventions(known.model, known.seq_len, d) if known else {"6nd": six_nd(n, d)}
    hours = chip_hours(flops[convention], chip, share)
    return {
        "model": name,
        "params": n,
        "tokens": d,
        "seq_len": known.seq_len if known else None,
        "tokens_per_param": d / n,
        "flops": flops,
        "convention": convention,
        # Without what only `aot` needs of a TPU.
        "hardware": {k: v for k, v in asdict(chip).items() if k not in ("link_bandwidth", "ring")},
        "mfu": share,
        "mfu_source": said,
        "prices": prices,
        "price_source": chip.price_source if price is None else "given",
        "ideal": {"chip_hours": hours, "dollars": [hours * p for p in prices]},
        "campaign": _campaign(trained, d, chip, flops[convention], prices),
        "laws": compare_laws(n, d),
        "sources": _sources(known, flops),
    }


def _sources(known: Preset | None, flops: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {"flops": {key: CONVENTIONS[key] for key in flops}}
    if known:
        found |= {"model": known.source, "model_differs": known.differs}
        if known.training:
            found["training"] = known.training.source
    return found


RANGES = {"params": Range(1e3, 1e15), "tokens": Range(1e3, 1e21), "price": Range(1e-6, 1e6)}


def _positive(what: str, value: float | None) -> float:
    """`value`, refused outside `RANGES`: a wrong unit."""
    allowed = RANGES[what]
    if value is None or allowed.problem(float(value)):
        raise ConfigError(
            f"{what} is {value}; it must be from {allowed.low:g} to {allowed.high:g} (70 billion "
            "is 70e9)"
        )
    return float(value)


def _tokens(
    name: str | None, trained: Training | None, params: float, tokens: float | None
) -> float:
    if tokens is not None:
        d = _positive("tokens", tokens)
    elif trained:
        d = trained.tokens
    else:
        raise ConfigError(
            f"no published number of training tokens for {name or 'a bare number of parameters'}; "
            "give --tokens"
        )
    low, high = TOKENS_PER_PARAM
    if not low <= d / params <= high:
        raise ConfigError(
            f"{d:g} tokens for {params:g} parameters are {d / params:.3g} a parameter; it must be "
            f"from {low:g} to {high:g}: check the units of both (70B is 70e9)"
        )
    return d


def _mfu(given: float | None, trained: Training | None, chip: Hardware) -> tuple[float, str]:
    """(MFU, its source)."""
    if given is not None:
        return given, "given"
    if trained and trained.hardware == chip.name and trained.mfu is not None:
        return trained.mfu, "published"
    return DEFAULT_MFU, ASSUMED_MFU


def _campaign(
    run: Training | None, tokens: float, chip: Hardware, flops: float, prices: list[float]
) -> dict[str, Any] | None:
    """The published chip-hours with restarts and other losses, their price, and the published
    estimates of that price; None for another run than the published one."""
    if run is None or run.chip_hours is None:
        return None
    if run.hardware != chip.name or run.tokens != tokens:
        return None
    return {
        "chip_hours": float(run.chip_hours),
        "effective_mfu": flops / (run.chip_hours * 3600.0 * chip.flops),
        "dollars": [run.chip_hours * p for p in prices],
        "estimate": list(run.dollars) if run.dollars else None,
        "estimate_prices": [x / run.chip_hours for x in run.dollars] if run.dollars else None,
    }


def compare_laws(params: float, tokens: float) -> list[dict[str, Any]]:
    """A run against the optimum of every published law, with C = 6 N D and N all parameters.

    Returns a row for each law: law, source, a (exponent of N* in C);
      tokens_wanted, flops_wanted: D* and C* at which N is optimal; tokens_ratio: D / D*, below 1
      when undertrained; params_best, tokens_best: N* and D* for the run's C;
      loss, loss_best: nats a token of the run and of (N*, D*); loss_gap: their difference;
      compute_needed: share of C with which the optimum reaches the run's loss. These four are None
      for a law without a loss.
    """
    flops = six_nd(params, tokens)
    rows = []
    for name, frontier in FRONTIERS.items():
        wanted = frontier.tokens(params)
        n_star, d_star = frontier.compute_optimal(flops)
        row: dict[str, Any] = {
            "law": name,
            "source": frontier.source,
            "a": frontier.a,
            "tokens_wanted": wanted,
            "flops_wanted": six_nd(params, wanted),
            "tokens_ratio": tokens / wanted,
            "params_best": n_star,
            "tokens_best": d_star,
            **dict.fromkeys(("loss", "loss_best", "loss_gap", "compute_needed")),
        }
        if frontier.law:
            loss = float(frontier.law.loss(params, tokens))
            best = float(frontier.law.loss(n_star, d_star))
            needed = frontier.same_loss(loss)
            row |= {
                "loss": loss,
                "loss_best": best,
                "loss_gap": loss - best,
                "compute_needed": needed / flops if needed else None,
            }
        rows.append(row)
    return rows


def undertrained_table() -> list[dict[str, Any]]:
    """Every preset with published training tokens, from the fewest tokens a parameter to the most.

    Returns rows of model, params, tokens, tokens_per_param, flops (6 N D), source, and `ratios`: D
    over the D* that each law wants for that many parameters; below 1 is undertrained.
    """
    rows = []
    for name, known in PRESETS.items():
        if known.training is None:
            continue
        n, d = known.params, known.training.tokens
        rows.append(
            {
                "model": name,
                "params": n,
                "tokens": d,
                "tokens_per_param": d / n,
                "flops": six_nd(n, d),
                "source": known.training.source,
                "ratios": {law: d / f.tokens(n) for law, f in FRONTIERS.items()},
            }
        )
    return sorted(rows, key=lambda row: row["tokens_per_param"])


def serving(params: float, tokens: float, inference_tokens: float) -> dict[str, Any]:
    """The model of the same loss that is cheapest to train and then serve (Sardana 2023), under
    every published law that has a loss.

    Returns {"tokens": D_inf, "laws": [{law, loss, params, tokens, flops, given_flops, saving}]},
    FLOPs as 6 N D + 2 N D_inf, `saving` as a share of the given model's.

    Raises:
      ConfigError: inference_tokens is negative, not finite or over 1e24.
    """
    if inference_tokens > 1e24:
        raise ConfigError(f"inference_tokens is {inference_tokens:g}; it must be 1e24 at most")
    rows = []
    given = 6.0 * params * tokens + 2.0 * params * inference_tokens
    for name, frontier in FRONTIERS.items():
        if frontier.law is None:
            continue
        loss = float(frontier.law.loss(params, tokens))
        try:
            best = inference_optimal(frontier.law, inference_tokens, loss=loss)
        except FitError as e:
            raise ConfigError(str(e)) from None
        rows.append(
            {
                "law": name,
                "loss": loss,
                "params": best.params,
                "tokens": best.tokens,
                "flops": best.flops,
                "given_flops": given,
                "saving": 1 - best.flops / given,
            }
        )
    return {"tokens": inference_tokens, "laws": rows}
