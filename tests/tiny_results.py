"""Results of every kind, from as little as a test says of them."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

# What `heldout_loss` gives.
HELDOUT: dict[str, Any] = {
    "loss": 1.0,
    "stderr": 0.1,
    "bits_per_byte": 1.0,
    "bits_per_byte_stderr": 0.1,
    "tokens": 64,
}


def whole(cls: Any, given: dict) -> Any:
    """JSON of a result class from a part of it; what is not given is 0, empty or None."""

    def value(hint: Any, given: Any) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if is_dataclass(hint):
            return whole(hint, given or {})
        if type(None) in args:
            return given and value(args[0], given)
        if origin is tuple and args[-1] is ...:
            return [value(args[0], x) for x in given or ()]
        if origin is tuple:
            return given or [value(a, None) for a in args]
        if origin is dict and args:
            return {k: value(args[1], v) for k, v in (given or {}).items()}
        return hint() if given is None else given

    hints, made, left = get_type_hints(cls), {}, dict(given)
    for f in fields(cls):
        suffix, key = f.metadata.get("suffix"), f.metadata.get("key", f.name)
        if suffix is not None:
            ending = {k: left.pop(k) for k in given if k.endswith(suffix)}
            side = whole(hints[f.name], {k.removesuffix(suffix): v for k, v in ending.items()})
            made |= {f"{k}{suffix}": v for k, v in side.items()}
        elif f.metadata.get("rest"):
            continue
        elif key in left or (f.default is MISSING and f.default_factory is MISSING):
            made[key] = value(hints[f.name], left.pop(key, None))
    return made | left
