"""Numbers as people write them in tables: units, thousands, powers of ten, decimal commas."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_PREFIXES = {
    "k": 1e3, "kilo": 1e3, "m": 1e6, "mega": 1e6, "g": 1e9, "giga": 1e9, "t": 1e12, "tera": 1e12,
    "p": 1e15, "peta": 1e15, "e": 1e18, "exa": 1e18, "z": 1e21, "zetta": 1e21, "y": 1e24,
    "yotta": 1e24,
}  # fmt: skip
LONG = {
    "thousand": 1e3, "thousands": 1e3, "mn": 1e6, "mio": 1e6, "mil": 1e6, "mln": 1e6,
    "million": 1e6, "millions": 1e6, "bn": 1e9, "bil": 1e9, "mrd": 1e9, "mld": 1e9,
    "billion": 1e9, "billions": 1e9, "tn": 1e12, "tr": 1e12, "trillion": 1e12, "trillions": 1e12,
    "quadrillion": 1e15, "quintillion": 1e18,
}  # fmt: skip
SHORT = {"k": 1e3, "m": 1e6, "mm": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
FLOP_SHORT = {**SHORT, "p": 1e15, "e": 1e18, "z": 1e21}
_PREFIX = "|".join(sorted(_PREFIXES, key=len, reverse=True))
# `PF-days`, `petaflop/s-days`, `pfs_day`: FLOP/s times a time.
PF_DAYS = re.compile(rf"\b({_PREFIX})[\s\-]?f(?:lops?)?[\s_/\-]*(?:s|sec)?[\s_\-]*(day|hour)s?\b")
PREFIXED_FLOPS = re.compile(rf"({_PREFIX})[\s\-]?flops?")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_POWER = re.compile(r"(?:(.+?)\s*[x*]\s*)?10\s*(?:\^|\*\*)\s*[({]?([+-]?\d{1,3})[)}]?(.*)")
_MANTISSA = re.compile(r"([+-]?[\d.,][\d.,_' ]*?(?:[eE][+-]?\d+)?)\s*([a-zA-Z%][a-zA-Z%/ .\-]*)?")
_COUNTED = set("params param parameters parameter tokens token tok flop flops nats nat".split())


def straight(text: str) -> str:
    """The text with raised exponents as ^, other scripts' digits, spaces and signs as ASCII has
    them."""
    text = re.sub(r"10([⁰¹²³⁴-⁹⁺⁻]+)", lambda m: "10^" + m[1].translate(_SUPERSCRIPT), text)
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"(?<=[\d\s])[×·∙⋅]|[×·∙⋅](?=[\d\s])", "x", text.translate({0x2212: "-"}))
    return re.sub(r"\s+", " ", text.replace("\u2019", "'")).strip()


def parse(value: Any, decimal: str = "") -> tuple[float, bool]:
    """(number, whether it had a unit of its own, such as 125M).

    Args:
      value: a number, or the text of one. decimal: "," where the table's decimal separator is a
          comma.

    Raises:
      ValueError: it is not a number.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError("not a number")
    if not isinstance(value, str):
        try:
            return float(value), False
        except (TypeError, OverflowError):
            raise ValueError("not a number") from None
    if decimal != "," and _PLAIN.fullmatch(value):
        return float(value), False
    text = straight(value).lstrip("~≈'\"= ").rstrip("'\"")
    text = re.split(r"\s*(?:±|\+/-|\+-)", text)[0]
    if _PLAIN.fullmatch(text) and not (decimal == "," and re.fullmatch(r"\d{1,3}\.\d{3}", text)):
        return float(text), False
    if re.fullmatch(r"[+-]?(nan|inf(inity)?)", text, re.IGNORECASE):
        return float(text), False
    if power := _POWER.fullmatch(text):
        mantissa = _mantissa(power[1], decimal) if power[1] else 1.0
        return mantissa * 10.0 ** int(power[2]) * _unit(power[3].strip())[0], False
    found = _MANTISSA.fullmatch(text)
    if not found:
        raise ValueError("not a number")
    factor, own = _unit(found[2] or "")
    return _mantissa(found[1], decimal) * factor, own


def number_in(value: Any) -> float | None:
    """The number of `parse`, or None."""
    try:
        return parse(value)[0]
    except ValueError:
        return None


def _unit(text: str) -> tuple[float, bool]:
    """(factor, whether it is a unit) of what follows a number."""
    text = text.strip().casefold()
    if found := PF_DAYS.fullmatch(text):
        return _PREFIXES[found[1]] * {"day": 86400.0, "hour": 3600.0}[found[2]], True
    if found := PREFIXED_FLOPS.fullmatch(text):
        return _PREFIXES[found[1]], True
    if text == "%":
        return 0.01, True
    words = [word for word in text.split() if word not in _COUNTED]
    if not words:
        return 1.0, bool(text)
    factor = {**SHORT, **LONG}.get(words[0])
    if factor is None or len(words) > 1:
        raise ValueError("not a number")
    return factor, True


def _mantissa(text: str, decimal: str) -> float:
    text, _, exponent = text.strip().casefold().partition("e")
    if re.fullmatch(r"[+-]?\d{1,3}(([ '_])\d{3})(\2\d{3})*([.,]\d+)?", text):
        text = re.sub(r"[ '_]", "", text)
    elif re.fullmatch(r"[+-]?\d+(_\d+)+", text):
        text = text.replace("_", "")
    commas, dots = text.count(","), text.count(".")
    if commas and dots:  # the last one is the decimal separator
        thousands = "," if text.rfind(".") > text.rfind(",") else "."
        text = _ungroup(text, thousands).replace(",", ".")
    elif commas > 1 or (commas == 1 and decimal != "," and _grouped(text, ",")):
        text = _ungroup(text, ",")
    elif dots > 1 or (dots == 1 and decimal == "," and _grouped(text, ".")):
        text = _ungroup(text, ".")
    number = text.replace(",", ".") + (f"e{exponent}" if exponent else "")
    if not _PLAIN.fullmatch(number):
        raise ValueError("not a number")
    return float(number)


def _grouped(text: str, mark: str) -> bool:
    """Whether the marks can only be those of thousands: 1,400 but not 0,400 or 3,14."""
    return bool(re.fullmatch(rf"[+-]?[1-9]\d{{0,2}}(\{mark}\d{{3}})+(?:[.,]\d+)?", text))


def _ungroup(text: str, mark: str) -> str:
    if not _grouped(text, mark):
        raise ValueError("not a number")
    return text.replace(mark, "")


def decimal_mark(values: Iterable[Any], separator: str) -> str:
    """ "," if the decimal separator of these cells is a comma, else "".

    Args:
      separator: between the table's fields. Where it is not a comma, `3,141` is a little over 3.
    """
    commas = dots = either = 0
    for value in values:
        if not isinstance(value, str):
            continue
        text = straight(value)
        if re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?\s*[a-zA-Z]*", text):
            either += 1
            commas += not _grouped(re.split("[a-zA-Z ]", text)[0], ",")
        dots += bool(re.fullmatch(r"[+-]?\d*\.(\d{1,2}|\d{4,})([eE][+-]?\d+)?", text))
    if commas > dots or (either and not dots and separator not in ("", ",")):
        return ","
    return ""
