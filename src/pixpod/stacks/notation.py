"""Reads stacks as PIXPOD_STACKS has them, such as `sdxl+canny+loras`."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import combinations

from pixpod.catalog import Catalog, ModelSpec
from pixpod.errors import InvalidSettings
from pixpod.extras import LORAS, Extras, ExtraSpec, extras_for
from pixpod.stacks.presets import PRESETS, Presets
from pixpod.stacks.stack import USUAL_RANK, Stack
from pixpod.stacks.usage import USAGES, can_be_named


def parse_stacks(
    entries: Sequence[str],
    models: Catalog,
    extras: Extras,
    *,
    source: str = "PIXPOD_STACKS",
    presets: Presets = PRESETS,
) -> tuple[Stack, ...]:
    """Return the stacks that entries stand for, each once.

    `models` are those that are served, and `extras` those that they are served with. Raises
    InvalidSettings, which names `source`.
    """
    found: list[Stack] = []
    for entry in entries:
        if preset := presets.get(entry):
            found += (preset.stack_of(spec, extras_for(spec, extras)) for spec in models.values())
        else:
            found.append(_parse(entry, models, extras, f"{source}: {entry}", presets))
    return tuple(dict.fromkeys(stack for stack in found if stack.parts))


def _parse(entry: str, models: Catalog, extras: Extras, where: str, presets: Presets) -> Stack:
    name, *parts = [part.strip() for part in entry.split("+")]
    if name not in models:
        if not parts:
            raise _unknown(where, name, "a preset or a served model", (*presets, *models))
        raise _unknown(where, name, "a served model", models)
    spec = models[name]
    if not parts:
        raise InvalidSettings(f"{where}: expected {name} and what must fit beside it, got no part")
    fitting = {each.name: each for each in extras_for(spec, extras) if can_be_named(each)}
    loras = [part for part in parts if part.partition("=")[0] == LORAS]
    named = [part for part in parts if part not in loras]
    for part in named:
        if part not in fitting:
            known = (*fitting, LORAS) if spec.family.lora else fitting
            raise _unknown(where, part, f"a part that {name} is served with", known)
    if len(set(named)) < len(named) or len(loras) > 1:
        raise InvalidSettings(f"{where}: expected each part once")
    _check_together([fitting[part] for part in named], spec, where)
    rank = _parse_rank(loras[0], spec, where) if loras else 0
    return Stack(model=name, extras=tuple(named), lora_rank=rank)


def _check_together(named: Sequence[ExtraSpec], spec: ModelSpec, where: str) -> None:
    for kind, usage in USAGES.items():
        most = usage.most(spec.family) if usage else 0
        of_kind = [extra for extra in named if extra.kind is kind]
        if len(of_kind) > most:
            count = len(of_kind)
            raise InvalidSettings(f"{where}: expected at most {most} of kind {kind}, got {count}")
        for one, other in combinations(of_kind, 2):
            if usage and not usage.go_together(one, other):
                got = f"{one.name} and {other.name}"
                raise InvalidSettings(f"{where}: expected extras that one job may use, got {got}")


def _parse_rank(part: str, spec: ModelSpec, where: str) -> int:
    _, equals, rank = part.partition("=")
    lora = spec.family.lora
    if lora is None:
        raise InvalidSettings(f"{where}: expected no {LORAS}: {spec.family.title} takes none")
    if not equals:
        return USUAL_RANK
    if rank not in map(str, lora.ranks):
        accepted = ", ".join(map(str, lora.ranks))
        raise InvalidSettings(f"{where}: expected {LORAS}= and one of {accepted}, got {part!r}")
    return int(rank)


def _unknown(where: str, name: str, accepted: str, known: Collection[str]) -> InvalidSettings:
    close = get_close_matches(name, known, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(known) or "none"
    return InvalidSettings(f"{where}: expected {accepted} ({listed}), got {name!r}{hint}")
