"""Tags of words and the entities that they mark: schemes, spans, scores. The standard library only."""

__all__ = ["Entity", "entities", "entity_scores", "scheme_of"]

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapterx.errors import DataError

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_SAME = {"L": "E", "U": "S"}  # BILOU's letters for what IOBES calls E and S


@dataclass(frozen=True, order=True)
class Entity:
    """A span of words.

    Args:
        type: what it is, such as `"PER"`.
        start: position of its first word.
        end: position behind its last word.
    """

    type: str
    start: int
    end: int


def scheme_of(sequences: Iterable[Sequence[str]]) -> str | None:
    """Return by which scheme tags mark entities.

    - `"IOB2"`: every entity begins with `B-`.
    - `"IOB1"`: `B-` only where an entity of the same type ends right before.
    - `"IOBES"`: the last word has `E-` and a single one `S-` (or `L-` and `U-`, as in BILOU).

    Args:
        sequences: the tags of each text, in order.

    Returns:
        The scheme; None where tags mark no entities, such as parts of speech.
    """
    tags, begins_inside = set(), False
    for sequence in sequences:
        tags.update(sequence)
        for before, tag in zip([OUTSIDE, *sequence], sequence, strict=False):
            (_, kind_before), (letter, kind) = _parts(before), _parts(tag)
            begins_inside = begins_inside or (letter == "I" and kind_before != kind)
    marks = tags - {OUTSIDE}
    if not marks or not all(map(_TAG.fullmatch, marks)):
        return None
    if any(tag[0] in "ESLU" for tag in marks):
        return "IOBES"
    return "IOB1" if begins_inside else "IOB2"


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that tags of IOB1, IOB2, IOBES or BILOU mark.

    What is not well formed, as models predict it, is read as the CoNLL evaluation reads it: `I-` or `E-` begins an
    entity where none of its type goes on.

    Args:
        tags: of the words of one text; what is no tag of a scheme is outside.

    Returns:
        The entities in order.
    """
    found, start, before, kind_before = [], 0, OUTSIDE, None
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, kind = _parts(tag)
        goes_on = before in ("B", "I") and letter in ("I", "E") and kind == kind_before
        if not goes_on:
            if before != OUTSIDE:
                found.append(Entity(str(kind_before), start, place))
            start = place
        before, kind_before = letter, kind
    return found


def _parts(tag: str) -> tuple[str, str | None]:
    matched = _TAG.fullmatch(tag)
    if matched is None:
        return OUTSIDE, None
    return _SAME.get(matched[1], matched[1]), matched[2]


def entity_scores(
    predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float | int | None]]]:
    """Return precision, recall and F1 of whole entities, over all types and for each one.

    An entity is right when its type, its first and its last word are.

    Args:
        predictions: for each text the tags that were predicted.
        labels: for each text the tags that are right.

    Returns:
        `{"precision": ..., "recall": ..., "f1": ...}`, 0 where there is nothing to count, and by type the same (None
        where there is nothing to count) with `"examples"`, the number of its entities in `labels`.

    Raises:
        DataError: a text has other words than tags.
    """
    if [len(tags) for tags in predictions] != [len(tags) for tags in labels]:
        raise DataError("entity_scores: predictions and labels must have a tag for each word of each text")
    guessed, right, hits = Counter(), Counter(), Counter()
    for guess, truth in zip(predictions, labels, strict=True):
        mine, theirs = set(entities(guess)), set(entities(truth))
        guessed.update(entity.type for entity in mine)
        right.update(entity.type for entity in theirs)
        hits.update(entity.type for entity in mine & theirs)
    each = {
        kind: _scores(hits[kind], guessed[kind], right[kind]) | {"examples": right[kind]}
        for kind in sorted(guessed.keys() | right.keys())
    }
    whole = _scores(hits.total(), guessed.total(), right.total())
    return {name: value or 0.0 for name, value in whole.items()}, each


def _scores(hits: int, guessed: int, right: int) -> dict[str, float | int | None]:
    return {
        "precision": hits / guessed if guessed else None,
        "recall": hits / right if right else None,
        "f1": 2 * hits / (guessed + right) if guessed + right else None,
    }
