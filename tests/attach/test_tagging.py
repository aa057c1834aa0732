"""Entities from tags, against seqeval; which scheme tags follow."""

import random

import pytest

from adapterx.errors import DataError
from adapterx.tagging import Entity, entities, entity_scores, scheme_of

TAGS = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC", "MISC-X"))]


def drawn(seed, letters="BIES"):
    draw = random.Random(seed)
    allowed = [tag for tag in TAGS if tag == "O" or tag[0] in letters]
    return [draw.choices(allowed, k=draw.randint(1, 12)) for _ in range(40)]


@pytest.mark.parametrize("letters", ["BI", "BIES", "I"])
@pytest.mark.parametrize("seed", range(8))
def test_any_tags_are_read_and_scored_as_by_seqeval(seed, letters):
    metrics = pytest.importorskip("seqeval.metrics")
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    truth, guessed = drawn(seed, letters), drawn(seed, letters)
    draw = random.Random(seed)
    for tags in guessed:
        for i in range(len(tags)):
            if draw.random() < 0.2:
                tags[i] = draw.choice(TAGS)
    for tags in guessed + truth:
        expected = [Entity(kind, start, end + 1) for kind, start, end in labeling.get_entities(tags)]
        assert entities(tags) == expected
    whole, each = entity_scores(guessed, truth)
    assert whole["precision"] == pytest.approx(metrics.precision_score(truth, guessed))
    assert whole["recall"] == pytest.approx(metrics.recall_score(truth, guessed))
    assert whole["f1"] == pytest.approx(metrics.f1_score(truth, guessed))
    report = metrics.classification_report(truth, guessed, output_dict=True, zero_division=0)
    for kind, scores in each.items():
        assert scores["examples"] == report[kind]["support"]
        assert (scores["f1"] or 0.0) == pytest.approx(report[kind]["f1-score"])


def test_schemes():
    entity = [Entity("PER", 0, 2), Entity("PER", 2, 3), Entity("LOC", 4, 5)]
    written = {
        "IOB2": ["B-PER", "I-PER", "B-PER", "O", "B-LOC"],
        "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC"],
        "IOBES": ["B-PER", "E-PER", "S-PER", "O", "S-LOC"],
    }
    for scheme, tags in written.items():
        assert scheme_of([tags]) == scheme
        assert entities(tags) == entity
    bilou = ["B-PER", "L-PER", "U-PER", "O", "U-LOC"]
    assert scheme_of([bilou]) == "IOBES"
    assert entities(bilou) == entity
    assert scheme_of([["O", "B-X", "I-Y"]]) == "IOB1"  # an entity of another type begins with I
    for tags in (["NOUN", "VERB"], ["O", "O"], ["B-PER", "X"], ["B-", "O"]):
        assert scheme_of([tags]) is None


def test_nothing_to_count():
    whole, each = entity_scores([["O", "O"]], [["O", "O"]])
    assert whole == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert each == {}
    _, each = entity_scores([["B-X", "O"]], [["O", "O"]])
    assert each == {"X": {"precision": 0.0, "recall": None, "f1": 0.0, "examples": 0}}
    with pytest.raises(DataError, match="a tag for each word of each text"):
        entity_scores([["O"]], [["O", "O"]])
