"""Adapters on the Hugging Face hub: pushed with a model card made from what was trained, pulled by name and revision.

A repository holds what a folder of `save_adapter`, `save_fusion` or `adapterx train` holds, and a `README.md`. Every
file is checked before it goes, and none is a pickle. huggingface_hub is needed, which transformers brings along.
"""

from adapterx.integrations.hub.card import model_card
from adapterx.integrations.hub.pulling import from_hub
from adapterx.integrations.hub.pushing import push_to_hub

__all__ = ["from_hub", "model_card", "push_to_hub"]
