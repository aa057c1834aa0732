"""Heads on any Hugging Face encoder or decoder: classifiers that are trained, saved and exported."""

__all__ = [
    "ClassificationHead",
    "HeadedModel",
    "SequenceClassifier",
    "TokenClassificationHead",
    "TokenClassifier",
    "check_labels",
    "pool",
]

from adapterx.heads.labels import check_labels
from adapterx.heads.pooled import POOLINGS as POOLINGS
from adapterx.heads.pooled import ClassificationHead, pool
from adapterx.heads.sequence import SequenceClassifier
from adapterx.heads.tokens import TokenClassificationHead, TokenClassifier
from adapterx.heads.wrapper import HeadedModel
