"""The hub: what was pushed comes back bit for bit, with a card that loads it; what cannot be right is refused."""

import json

import fake_hub
import pytest
import torch
from saved_adapters import adapted_plain
from tiny_models import plain_model

import adapterx
from adapterx import AdapterConfig, CheckpointError, ConfigError

constants = pytest.importorskip("huggingface_hub").constants
from adapterx.integrations.hub import from_hub, model_card, push_to_hub  # noqa: E402

# huggingface_hub 2.4 uploads by a way of httpx that this calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of this machine, and an account that may write to it."""
    with fake_hub.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        for name, value in (
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_HUB_DISABLE_PROGRESS_BARS", True),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server


def files_of(server, name, revision="main"):
    return server.repositories[name].files(revision)[1]


def test_an_adapter_comes_back(hub, tmp_path):
    model = adapted_plain()
    address = push_to_hub(model, "me/sentiment", license="mit")
    assert address.startswith(hub.address)
    assert set(files_of(hub, "me/sentiment")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    other = plain_model()
    adapterx.load_adapter(other, from_hub("me/sentiment"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_what_is_in_the_cache_needs_no_hub(hub, monkeypatch):
    push_to_hub(adapted_plain(), "me/cached")
    first = from_hub("me/cached")
    asked = len(hub.asked)
    assert from_hub("me/cached", local_files_only=True) == first
    assert len(hub.asked) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert from_hub("me/cached") == first
    with pytest.raises(CheckpointError, match=r"me/other .*cannot be reached|not in the cache"):
        from_hub("me/other")


def test_revisions(hub):
    push_to_hub(adapted_plain(1), "me/revised")
    old = hub.repositories["me/revised"].branches["main"]
    push_to_hub(adapted_plain(2), "me/revised", revision="second", message="again")
    assert hub.repositories["me/revised"].branches["main"] == old
    weights = {
        r: (from_hub("me/revised", revision=r) / "adapter_model.safetensors").read_bytes()
        for r in ("main", "second", old)
    }
    assert weights["main"] == weights[old] != weights["second"]
    with pytest.raises(CheckpointError, match="from_hub: me/revised has no such revision"):
        from_hub("me/revised", revision="third")


def test_a_proposal_changes_nothing(hub):
    push_to_hub(adapted_plain(1), "me/proposed")
    before = dict(files_of(hub, "me/proposed"))
    address = push_to_hub(adapted_plain(2), "me/proposed", create_pr=True)
    assert address.endswith("/discussions/1")
    assert files_of(hub, "me/proposed") == before
    assert files_of(hub, "me/proposed", "refs/pr/1")["adapter_model.safetensors"] != before["adapter_model.safetensors"]


def test_files_of_an_earlier_push_go(hub, tmp_path):
    """A head that is no longer pushed would be loaded with an adapter that it was not trained with."""
    classifier = adapterx.SequenceClassifier(plain_model(), 2, hidden_size=8)
    adapterx.attach(classifier.base_model, AdapterConfig(bottleneck_dim=2))
    adapterx.save_adapter(classifier.base_model, tmp_path / "a")
    adapterx.save_head(classifier, tmp_path / "a")
    push_to_hub(tmp_path / "a", "me/headed")
    hub.repositories["me/headed"].files("main")[1]["notes.txt"] = b"mine"
    assert "head_model.safetensors" in files_of(hub, "me/headed")
    push_to_hub(adapted_plain(), "me/headed")
    assert set(files_of(hub, "me/headed")) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "notes.txt",
    }


def test_a_card_that_somebody_wrote_is_kept(hub):
    push_to_hub(adapted_plain(1), "me/written")
    hub.repositories["me/written"].files("main")[1]["README.md"] = b"# My own"
    push_to_hub(adapted_plain(2), "me/written")
    assert files_of(hub, "me/written")["README.md"] == b"# My own"


def test_several_adapters_and_their_fusion(hub, tmp_path):
    model = plain_model()
    for name in ("a", "b"):
        adapterx.attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)), name)
        adapterx.save_adapter(model, tmp_path / "both" / name, name)
    adapterx.add_fusion(model, ["a", "b"])
    adapterx.save_fusion(model, tmp_path / "both")
    push_to_hub(tmp_path / "both", "me/both", base_model="me/tiny")
    other = plain_model()
    for name in ("a", "b"):
        adapterx.load_adapter(other, from_hub("me/both", subfolder=name))
        assert (
            json.loads((from_hub("me/both", subfolder=name) / "adapter_config.json").read_text())["base_model"]["name"]
            == "me/tiny"
        )
    adapterx.load_fusion(other, from_hub("me/both"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    card = files_of(hub, "me/both")["README.md"].decode()
    assert 'subfolder="b"' in card
    assert "load_fusion" in card


def test_what_is_no_adapter_is_not_downloaded(hub):
    hub.repositories["me/base"] = repository = fake_hub.Repository(private=False)
    repository.branches["main"] = repository.commit({"config.json": b"{}", "model.safetensors": b"x" * 1000})
    with pytest.raises(
        CheckpointError, match="from_hub: me/base must hold an adapter, a fusion or a run, it holds none"
    ):
        from_hub("me/base")
    assert not any("model.safetensors" in line for line in hub.asked)
    repository.branches["main"] = repository.commit({"x/adapter_config.json": b'{"format": "adapterx"}'})
    with pytest.raises(CheckpointError, match="there are some in the subfolders x"):
        from_hub("me/base")


def test_pickles_stay_away(hub):
    push_to_hub(adapted_plain(), "me/mixed")
    hub.repositories["me/mixed"].files("main")[1]["evil.bin"] = b"pickle"
    folder = from_hub("me/mixed")
    assert not (folder / "evil.bin").exists()


@pytest.mark.parametrize("token", ["hf_reader", "hf_unknown", False])
def test_tokens_that_may_not_write(hub, token):
    with pytest.raises(
        CheckpointError, match=r"^push_to_hub: (the hub refused me/refused|me/refused .* token)"
    ) as raised:
        push_to_hub(adapted_plain(), "me/refused", token=token)
    assert "hf_" not in str(raised.value).replace("hf auth", "")
    assert "me/refused" not in hub.repositories


def test_private_repositories(hub, monkeypatch):
    push_to_hub(adapted_plain(), "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert from_hub("me/secret", token="hf_reader").is_dir()
    with pytest.raises(CheckpointError, match="from_hub: me/absent does not exist, or is private and needs a token"):
        from_hub("me/absent")


@pytest.mark.parametrize("name", ["a/b/c", "with space", "", "..", "x" * 200])
def test_names_that_are_none(hub, name, tmp_path):
    for call in (lambda: from_hub(name), lambda: push_to_hub(adapted_plain(), name)):
        with pytest.raises((ConfigError, CheckpointError), match="hub"):
            call()
    assert not hub.repositories


def test_damaged_folders_do_not_go(hub, tmp_path):
    adapterx.save_adapter(adapted_plain(), tmp_path / "good")
    for folder in (tmp_path / "absent", tmp_path / "good" / "adapter_config.json"):
        with pytest.raises(CheckpointError, match="push_to_hub: folder must hold an adapter, a fusion or a run"):
            push_to_hub(folder, "me/none")
    content = bytearray((tmp_path / "good" / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "good" / "adapter_model.safetensors").write_bytes(content)
    for folder in (tmp_path / "good", tmp_path):  # an adapter of several, too
        with pytest.raises(CheckpointError, match=r"push_to_hub: .*damaged"):
            push_to_hub(folder, "me/none")
    with pytest.raises(TypeError, match="name must be given with a model only"):
        push_to_hub(tmp_path / "good", "me/none", "good")
    assert not hub.repositories


def test_a_licence_that_the_hub_does_not_know(hub):
    with pytest.raises(CheckpointError, match=r"push_to_hub: the hub refused me/licensed: .*license"):
        push_to_hub(adapted_plain(), "me/licensed", license="my own")
    assert "adapter_config.json" not in files_of(hub, "me/licensed")


def test_folders_of_others_do_not_go(hub, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match="PEFT"):
        push_to_hub(tmp_path, "me/none")
    assert not hub.repositories


# --- cards


def test_the_card_of_an_adapter(tmp_path):
    adapterx.save_adapter(adapted_plain(), tmp_path)
    card = model_card(tmp_path, repo_id="me/x", base_model="me/plain", license="mit", dataset="me/data", language="en")
    _, head, body = card.split("---\n", 2)
    import yaml

    assert yaml.safe_load(head) == {
        "base_model": "me/plain",
        "base_model_relation": "adapter",
        "datasets": "me/data",
        "language": "en",
        "library_name": "adapterx",
        "license": "mit",
        "tags": ["adapterx", "bottleneck-adapter"],
    }
    assert 'adapterx.load_adapter(model, from_hub("me/x"))' in body
    assert "| bottleneck dim | 2 |" in body
    assert "| dropout | 0 |" in body  # a number that was set, not what stands for nothing
    assert "Its author has named no licence" in model_card(tmp_path)


def test_a_card_tells_nothing_of_this_machine(tmp_path):
    adapterx.save_adapter(adapted_plain(), tmp_path)
    assert str(tmp_path) not in model_card(tmp_path)
