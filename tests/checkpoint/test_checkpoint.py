import contextlib
import copy
import errno
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save
from tiny_models import build, inputs_for, plain_model, run

import adapterx
from adapterx import (
    AdapterConfig,
    CheckpointError,
    ConfigError,
    UnknownAdapterError,
    adapter_names,
    adapter_parameters,
    attach,
    build_head,
    load_adapter,
    load_head,
    restore_adapter,
    save_adapter,
    save_head,
    set_active,
    storage,
)
from adapterx.heads import SequenceClassifier

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), modules_to_save=("classifier",), scaling="learned")


def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def adapted_plain(seed=1):
    model = plain_model()
    attach(model, PLAIN)
    randomise(model, seed)
    return model


HIDDEN_STATES = torch.linspace(-1, 1, 24).view(3, 8)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_refused(folder, message, *, model=None, error=CheckpointError):
    """Loading raises, and the model is as it was."""
    model = plain_model() if model is None else model
    before, hooks = state_of(model), [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(error, match=message):
        load_adapter(model, folder)
    assert state_of(model).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture
def saved(tmp_path):
    save_adapter(adapted_plain(), tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder, **changes):
    """Change values of the JSON file; None removes one."""
    path = folder / CONFIG
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def rewrite(folder, change):
    """Change the tensors, hash and listing as a forger would."""
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    content = save(tensors)
    (folder / WEIGHTS).write_bytes(content)
    listed = {k: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for k, t in tensors.items()}
    edit(folder, sha256=hashlib.sha256(content).hexdigest(), tensors=listed)


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_load_undoes_save(name, placement, tmp_path):
    model = build(name)
    inputs = inputs_for(name, model)
    twin = copy.deepcopy(model)
    config = AdapterConfig(reduction_factor=8, placement=placement, scaling="learned_per_channel", layers=(1,))
    attach(model, config, "mine")
    randomise(model)
    save_adapter(model, tmp_path)
    before = torch.get_rng_state()
    report = load_adapter(twin, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (report.name, report.config) == ("mine", config)
    assert adapter_names(twin) == ("mine",)
    with torch.no_grad():
        assert torch.equal(run(twin, inputs), run(model, inputs))
    assert {n for n, p in twin.named_parameters() if p.requires_grad} == {n for n, _ in adapter_parameters(twin)}


def test_trained_copies_travel_with_the_adapter(saved):
    model = plain_model()
    load_adapter(model, saved)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))
    assert {"classifier.weight", "classifier.bias", "blocks.0.narrow.adapterx.scaling"} < load_file(
        saved / WEIGHTS
    ).keys()


def test_files_and_their_contents(tmp_path):
    model = build("bert")
    model.config._name_or_path = "organisation/tiny"
    model.config._commit_hash = "c0ffee"
    attach(model, AdapterConfig(bottleneck_dim=4), "mine")
    save_adapter(model, tmp_path, metadata={"accuracy": 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    document = json.loads((tmp_path / CONFIG).read_text())
    assert document["format_version"] == 1
    assert document["name"] == "mine"
    assert AdapterConfig.from_dict(document["config"]) == AdapterConfig(bottleneck_dim=4)
    assert document["adapterx_version"] == adapterx.__version__
    assert document["base_model"] == {
        "name": "organisation/tiny",
        "commit": "c0ffee",
        "model_type": "bert",
        "class": "BertModel",
    }
    assert document["metadata"] == {"accuracy": 0.5}
    assert document["modules"]["encoder.layer.0.output.dense"] == {
        "position": "feed_forward",
        "input_size": 32,
        "hidden_size": 32,
    }
    key = "encoder.layer.1.attention.output.dense.adapterx.down_proj.weight"
    assert document["tensors"][key] == {"dtype": "float32", "shape": [4, 32]}
    assert len(document["tensors"]) == 16
    assert document["sha256"] == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert load_file(tmp_path / WEIGHTS).keys() == document["tensors"].keys()


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("organisation/model", "organisation/model"),
        ("model", "model"),
        ("/secret/person/model", "model"),
        ("./secret/model/", "model"),
        ("~/secret/model", "model"),
        ("a/secret/model", "model"),
        ("C:\\secret\\model", "model"),
        ("", None),
    ],
)
def test_no_local_path_is_written(given, written, tmp_path):
    model = build("bert")
    model.config._name_or_path = given
    attach(model, AdapterConfig(bottleneck_dim=4))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model"]["name"] == written
    assert "secret" not in (tmp_path / CONFIG).read_text()


def test_an_existing_folder_is_a_local_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "model").mkdir(parents=True)
    model = build("bert")
    model.config._name_or_path = "secret/model"
    attach(model, AdapterConfig(bottleneck_dim=4))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model"]["name"] == "model"


def test_which_adapter(tmp_path):
    model = plain_model()
    config = AdapterConfig(bottleneck_dim=2, target_modules=("narrow",))
    with pytest.raises(UnknownAdapterError, match=r"name must be given.*attached are none"):
        save_adapter(model, tmp_path)
    attach(model, config, "a")
    attach(model, config, "b")
    save_adapter(model, tmp_path)  # the active one
    assert json.loads((tmp_path / CONFIG).read_text())["name"] == "b"
    set_active(model, ["a", "b"])
    with pytest.raises(UnknownAdapterError, match=r"name must be given.*attached are 'a', 'b'"):
        save_adapter(model, tmp_path)
    with pytest.raises(UnknownAdapterError, match="got 'c'"):
        save_adapter(model, tmp_path, "c")
    save_adapter(model, tmp_path, "a")
    twin = plain_model()
    load_adapter(twin, tmp_path)
    load_adapter(twin, tmp_path, "other", active=False)
    assert adapter_names(twin) == ("a", "other")
    assert adapterx.active_adapters(twin) == ("a",)


def test_a_taken_or_bad_name_is_refused(saved):
    model = plain_model()
    load_adapter(model, saved)
    before = state_of(model)
    with pytest.raises(ConfigError, match="load_adapter: name must be new, got 'default'"):
        load_adapter(model, saved)
    with pytest.raises(ConfigError, match="letters, digits"):
        load_adapter(model, saved, "a.b")
    assert state_of(model).keys() == before.keys()


def test_other_dtypes_are_converted(saved):
    model = plain_model().bfloat16()
    load_adapter(model, saved)
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.bfloat16}
    for (_, low), (_, full) in zip(adapter_parameters(model), adapter_parameters(adapted_plain()), strict=True):
        assert torch.equal(low, full.bfloat16())


def test_named_targets_survive_prefixes(tmp_path):
    config = build("bert").config
    for number, target in enumerate((r"encoder\.layer\.0\..*dense", ("bert.encoder.layer.0.output.dense",))):
        inner, outer = build("bert"), transformers.BertForMaskedLM(config).eval()
        source = inner if number == 0 else outer
        attach(source, AdapterConfig(bottleneck_dim=4, target_modules=target, modules_to_save=()))
        randomise(source)
        save_adapter(source, tmp_path / str(number))
        load_adapter(outer if number == 0 else inner, tmp_path / str(number))
        pairs = zip(adapter_parameters(inner), adapter_parameters(outer), strict=True)
        for (name, tensor), (outer_name, other) in pairs:
            assert outer_name == f"bert.{name}"
            assert torch.equal(tensor, other)
        save_adapter(outer, tmp_path / "again")  # what was loaded can be saved and loaded
        load_adapter(build("bert"), tmp_path / "again")


def test_prefix_of_wrappers_both_ways(tmp_path):
    config = build("bert").config
    base = build("bert")
    attach(base, AdapterConfig(bottleneck_dim=4, modules_to_save=("pooler",)))
    randomise(base)
    save_adapter(base, tmp_path / "base")
    classifier = SequenceClassifier(build("bert"), 3)
    load_adapter(classifier, tmp_path / "base")
    task = transformers.BertForSequenceClassification(config)
    load_adapter(task, tmp_path / "base")
    save_adapter(classifier, tmp_path / "wrapped")
    assert all(key.startswith("base_model.") for key in load_file(tmp_path / "wrapped" / WEIGHTS))
    again = build("bert")
    load_adapter(again, tmp_path / "wrapped")
    assert [name for name, _ in adapter_parameters(again)] == [name for name, _ in adapter_parameters(base)]
    for (_, one), (_, other) in zip(adapter_parameters(again), adapter_parameters(base), strict=True):
        assert torch.equal(one, other)


def test_restore_into_an_attached_adapter(saved, tmp_path):
    model = adapted_plain(seed=2)
    parameters = dict(adapter_parameters(model))
    restore_adapter(model, saved)
    assert all(parameters[name] is parameter for name, parameter in adapter_parameters(model))  # optimizers hold these
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))
    other = plain_model()
    attach(other, AdapterConfig(bottleneck_dim=3, positions=("feed_forward",)))
    before = state_of(other)
    with pytest.raises(CheckpointError, match=r"restore_adapter: .* holds an adapter of another configuration"):
        restore_adapter(other, saved)
    rewrite(saved, lambda tensors: {**tensors, "classifier.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"wrong shapes \['classifier.bias \[4\] instead of \[3\]'\]"):
        restore_adapter(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(other).items())
    with pytest.raises(UnknownAdapterError):
        restore_adapter(plain_model(), saved)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_another_model(saved):
    assert_refused(saved, r"model lacks: \['blocks.1.narrow'\]", model=plain_model(depth=1))
    assert_refused(saved, r"missing tensors \['blocks.2.narrow.adapterx.down_proj.bias'", model=plain_model(depth=3))
    assert_refused(saved, r"wrong shapes \[.*down_proj.weight \[2, 8\] instead of \[2, 6\]", model=plain_model(size=6))
    headless = plain_model()
    del headless.classifier
    assert_refused(saved, "modules_to_save must be qualified names", model=headless)
    assert_refused(saved, "model lacks", model=build("bert"))


def test_wrong_tensors(saved):
    key = "blocks.0.narrow.adapterx.up_proj.weight"
    original = {path.name: path.read_bytes() for path in saved.iterdir()}
    for change, message in (
        (lambda tensors: tensors.pop(key) is None, rf"missing tensors \['{key}'\]"),
        (lambda tensors: tensors.update(b=torch.ones(1), a=torch.ones(1)), r"unknown tensors \['a', 'b'\]"),
        (
            lambda tensors: tensors.update({key: torch.ones(2, 8)}),
            rf"wrong shapes \['{key} \[2, 8\] instead of \[8, 2\]",
        ),
        (lambda tensors: tensors.update({key: torch.ones(8, 2, dtype=torch.int64)}), rf"wrong dtypes \['{key}'\]"),
    ):
        rewrite(saved, change)
        assert_refused(saved, message)
        for name, content in original.items():
            (saved / name).write_bytes(content)
    load_adapter(plain_model(), saved)


def test_meta_models(saved):
    with torch.device("meta"):
        model = plain_model()
    with pytest.raises(CheckpointError, match="model is on the meta device, give it memory first"):
        load_adapter(model, saved)
    attach(model, PLAIN)
    with pytest.raises(CheckpointError, match="save_adapter: the model must hold real weights"):
        save_adapter(model, saved)
    load_adapter(plain_model(), saved)


# --- damaged and hostile files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 8, 100, -1])
def test_truncated_weights(saved, keep):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:keep])
    assert_refused(saved, "damaged or belongs to another checkpoint: its SHA-256")


@pytest.mark.parametrize("position", [0, 7, 9, 60, -1])
def test_flipped_bit(saved, position):
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[position] ^= 0x10
    (saved / WEIGHTS).write_bytes(content)
    assert_refused(saved, "damaged or belongs to another checkpoint")


def test_weights_of_another_checkpoint(saved, tmp_path):
    save_adapter(adapted_plain(seed=2), tmp_path / "other")
    (saved / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    assert_refused(saved, "damaged or belongs to another checkpoint")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"surplus",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
    ],
)
def test_hostile_weights_with_the_right_hash(saved, content):
    (saved / WEIGHTS).write_bytes(content)
    edit(saved, sha256=hashlib.sha256(content).hexdigest())
    assert_refused(saved, "is not a valid safetensors file")


def test_listing_and_tensors_must_agree(saved):
    listed = json.loads((saved / CONFIG).read_text())["tensors"]
    listed["classifier.bias"]["shape"] = [4]
    listed["surplus"] = {"dtype": "float32", "shape": []}
    edit(saved, tensors=listed)
    assert_refused(saved, r"disagree about \['classifier.bias', 'surplus'\]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("null", "must hold a JSON object, got NoneType"),
        ("{}", "format_version of .* must be 1, got None"),
        ('{"format_version": 1}', "must hold 'sha256' and 'tensors'"),
        ('{"format_version": 1, "format_version": 1}', "an object repeats a key"),
        ('{"format_version": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "is not valid JSON"),
        ('"\udcff"', "is not valid JSON"),
        (" " * (storage.MAX_DOCUMENT_BYTES + 1), "must not exceed 16777216 bytes"),
    ],
)
def test_bad_json(saved, text, message):
    (saved / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(saved, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version of .* must be 1, got 2; a newer adapterx may have written it"),
        ({"format_version": True}, "must be 1, got True"),
        ({"format_version": "1"}, "must be 1, got '1'"),
        ({"sha256": "0" * 63}, "must hold 'sha256'"),
        ({"sha256": "../../x" + "0" * 57}, "must hold 'sha256'"),
        ({"sha256": "0" * 64}, "damaged or belongs to another"),
        ({"tensors": []}, "must hold 'sha256' and 'tensors'"),
        ({"name": 5}, "must hold 'name', 'config' and 'modules'"),
        ({"modules": {}}, "must hold 'name', 'config' and 'modules'"),
        ({"modules": ["blocks.0"]}, "must hold 'name', 'config' and 'modules'"),
        ({"modules": {"": {}}}, r"chooses other modules: \['blocks.0.narrow', .*\] instead of \[''\]"),
        ({"config": None}, "no valid config: .*values must be a mapping, got NoneType"),
        ({"config": {"bottleneck_dim": 2, "evil": 1}}, "unknown keys: evil"),
        ({"config": {"bottleneck_dim": 0}}, "bottleneck_dim must be at least 1, got 0"),
        ({"config": {"bottleneck_dim": 2**40, "positions": ["feed_forward"]}}, "at most the hidden size"),
        ({"config": {"bottleneck_dim": 2, "positions": ["feed_forward"]}}, "unknown tensors"),
    ],
)
def test_bad_values(saved, changes, message):
    edit(saved, **changes)
    assert_refused(saved, message, error=(CheckpointError, ConfigError))


def test_missing_files(saved, tmp_path):
    assert_refused(tmp_path / "nowhere", "adapter_config.json does not exist")
    (saved / WEIGHTS).unlink()
    assert_refused(saved, "adapter_model.safetensors does not exist")
    (saved / CONFIG).unlink()
    (saved / CONFIG).mkdir()
    assert_refused(saved, "adapter_config.json does not exist")


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["ADAPTERX_TEST_FOLDER"]) / "executed"),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_adapter.bin"])
def test_pickle_files_are_refused_unread(tmp_path, name, monkeypatch):
    monkeypatch.setenv("ADAPTERX_TEST_FOLDER", str(tmp_path))
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    assert_refused(tmp_path, f"{name} will not be read, because a pickle file can run any program")
    assert not (tmp_path / "executed").exists()


def test_pickle_beside_a_valid_document_is_refused_in_words(saved):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    assert_refused(saved, "adapter_model.bin will not be read, because a pickle file can run any program")


def test_pickle_under_the_name_of_safetensors_is_not_executed(saved, monkeypatch):
    monkeypatch.setenv("ADAPTERX_TEST_FOLDER", str(saved))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil()))
    for content in (pickle.dumps(Evil()), archive.getvalue()):
        (saved / WEIGHTS).write_bytes(content)
        edit(saved, sha256=hashlib.sha256(content).hexdigest())
        assert_refused(saved, "is not a valid safetensors file")
    assert not (saved / "executed").exists()


# --- interrupted saves ------------------------------------------------------------------------------------------------


class NotReached(Exception):
    """The call that was to fail did not come."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be tidied up afterwards."""


STEPS = ("open", "write", "fsync", "chmod", "replace")


def run_killed(folder, model, step, count, monkeypatch):
    """Save, but stop dead just before the `count`-th call of one system function; tell whether it came to that."""
    calls = {"left": count, "dead": False}

    def guard(name, function):
        def guarded(*args, **kwargs):
            if calls["dead"]:
                raise Killed  # a dead process cleans nothing up
            if name == step:
                calls["left"] -= 1
                if calls["left"] == 0:
                    calls["dead"] = True
                    raise Killed
            return function(*args, **kwargs)

        return guarded

    class GuardedFile(io.FileIO):
        def write(self, content):
            half = guard("write", super().write)
            if step == "write" and calls["left"] == 1:
                super().write(bytes(content)[: len(content) // 2])  # torn in the middle
            return half(content)

    with monkeypatch.context() as patch:
        for name in ("fsync", "chmod", "replace", "unlink", "open"):
            patch.setattr(os, name, guard(name, getattr(os, name)))
        patch.setattr(os, "fdopen", lambda descriptor, mode: GuardedFile(descriptor, mode))
        patch.setattr(Path, "unlink", guard("unlink", Path.unlink))
        try:
            save_adapter(model, folder)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("first_time", [True, False])
def test_killed_at_any_moment(tmp_path, step, first_time, monkeypatch):
    old, new = adapted_plain(seed=1), adapted_plain(seed=2)
    expected = {seed: model(HIDDEN_STATES) for seed, model in ((1, old), (2, new))}
    seen, deaths = set(), 0
    for count in range(1, 20):
        folder = tmp_path / str(count)
        if not first_time:
            save_adapter(old, folder)
        died = run_killed(folder, new, step, count, monkeypatch)
        if not died:
            break
        deaths += 1
        model = plain_model()
        if first_time and not (folder / CONFIG).exists():
            with pytest.raises(CheckpointError, match="does not exist"):
                load_adapter(model, folder)
        else:
            load_adapter(model, folder)
            answer = [seed for seed in (1, 2) if torch.equal(model(HIDDEN_STATES), expected[seed])]
            assert len(answer) == 1
            seen.add(answer[0])
        save_adapter(old, folder)  # and the folder can be written again, which tidies it up
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
        model = plain_model()
        load_adapter(model, folder)
        assert torch.equal(model(HIDDEN_STATES), expected[1])
    assert not died
    assert deaths > 0
    if step == "replace":
        assert seen == ({2} if first_time else {1, 2})


def test_killed_twice_in_a_row(tmp_path, monkeypatch):
    """Between the two renames of one save, then anywhere in the next one: the committed pair stays readable."""
    middle, last = adapted_plain(seed=2), adapted_plain(seed=3)
    expected = {seed: adapted_plain(seed)(HIDDEN_STATES) for seed in (2, 3)}
    for again in (middle, last):
        for count in range(1, 4):
            folder = tmp_path / f"{again is last}-{count}"
            save_adapter(adapted_plain(seed=1), folder)
            assert run_killed(folder, middle, "replace", 3, monkeypatch)
            assert run_killed(folder, again, "replace", count, monkeypatch)
            model = plain_model()
            load_adapter(model, folder)
            committed = 3 if again is last and count == 3 else 2
            assert torch.equal(model(HIDDEN_STATES), expected[committed])


def test_an_error_while_repeating_an_interrupted_save(tmp_path, monkeypatch):
    """The same tensors again: the file that waits beside the old one is what the document relies on."""
    save_adapter(adapted_plain(seed=1), tmp_path)
    assert run_killed(tmp_path, adapted_plain(seed=2), "replace", 3, monkeypatch)
    calls = []

    def failing(source, target, function=os.replace):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        function(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(CheckpointError, match="Input/output error"):
            save_adapter(adapted_plain(seed=2), tmp_path)
    model = plain_model()
    load_adapter(model, tmp_path)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain(seed=2)(HIDDEN_STATES))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_errors_of_the_disk_leave_the_old_pair_and_no_litter(saved, number, step, monkeypatch):
    expected = adapted_plain()(HIDDEN_STATES)
    for count in range(1, 8):
        calls = {"left": count}

        def fail(function, calls=calls):
            def failing(*args, **kwargs):
                calls["left"] -= 1
                if calls["left"] == 0:
                    raise OSError(number, os.strerror(number))
                return function(*args, **kwargs)

            return failing

        class FullFile(io.FileIO):
            write = fail(io.FileIO.write)

        before = (saved / CONFIG).read_bytes()
        with monkeypatch.context() as patch:
            if step == "write":
                patch.setattr(os, "fdopen", lambda descriptor, mode, kind=FullFile: kind(descriptor, mode))
            else:
                patch.setattr(os, step, fail(getattr(os, step)))
            message = f"^save_adapter: cannot write to {saved}: {os.strerror(number)}$"
            with contextlib.suppress(NotReached), pytest.raises(CheckpointError, match=message):  # noqa: PT012
                save_adapter(adapted_plain(seed=2), saved)
                raise NotReached
        if calls["left"] > 0:
            break
        model = plain_model()
        load_adapter(model, saved)
        committed = (saved / CONFIG).read_bytes() != before
        if not committed:
            assert torch.equal(model(HIDDEN_STATES), expected)
            assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
        save_adapter(adapted_plain(), saved)
    assert calls["left"] > 0  # the last round came through


def test_a_real_full_disk(tmp_path):
    mount = tmp_path / "tiny"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no permission to mount a tmpfs")
    try:
        save_adapter(adapted_plain(), mount)
        big = plain_model(size=256, width=512)
        attach(big, AdapterConfig(bottleneck_dim=64, positions=("feed_forward",)))
        with pytest.raises(CheckpointError, match="No space left on device"):
            save_adapter(big, mount)
        assert sorted(path.name for path in mount.iterdir()) == [CONFIG, WEIGHTS]
        load_adapter(plain_model(), mount)
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    model = adapted_plain()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"save_adapter: cannot write to .*file: (File exists|Not a directory)"):
        save_adapter(model, tmp_path / "file")
    if os.geteuid() == 0:
        return  # root may write everywhere
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save_adapter(model, tmp_path / "new")


def test_metadata_must_be_json(saved):
    with pytest.raises(CheckpointError, match="metadata must be values that JSON can hold"):
        save_adapter(adapted_plain(seed=2), saved, metadata={"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="metadata must be values that JSON can hold"):
        save_adapter(adapted_plain(seed=2), saved, metadata={"x": float("nan")})
    model = plain_model()
    load_adapter(model, saved)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))


def test_other_files_stay_and_permissions_are_ordinary(saved):
    (saved / "notes.txt").write_text("mine")
    save_adapter(adapted_plain(seed=2), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (saved / "plain.txt").write_text("")
    assert (saved / CONFIG).stat().st_mode == (saved / "plain.txt").stat().st_mode


def test_non_finite_weights_are_kept_as_they_are(tmp_path):
    model = adapted_plain()
    with torch.no_grad():
        model.classifier.adapterx_copies["default"].bias.fill_(float("nan"))
    save_adapter(model, tmp_path)
    twin = plain_model()
    load_adapter(twin, tmp_path)
    assert twin.classifier.adapterx_copies["default"].bias.isnan().all()


def test_a_checkpoint_is_read_in_a_fresh_process(saved):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tiny_models import plain_model; import adapterx, torch;"
        "m = plain_model(); adapterx.load_adapter(m, sys.argv[2]); print(m(torch.ones(1, 8)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1] / "support"), str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == adapted_plain()(torch.ones(1, 8)).tolist()


# --- heads ------------------------------------------------------------------------------------------------------------


def test_heads_round_trip(tmp_path):
    classifier = SequenceClassifier(build("bert"), 3, pooling="cls", dropout=0.1)
    save_head(classifier, tmp_path, metadata={"labels": ["a", "b", "c"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head_config.json", "head_model.safetensors"]
    twin = SequenceClassifier(classifier.base_model, 3, pooling="cls")
    ids = torch.arange(10).view(2, 5)
    assert not torch.equal(twin.eval()(ids)["logits"], classifier.eval()(ids)["logits"])
    load_head(twin, tmp_path)
    assert torch.equal(twin(ids)["logits"], classifier(ids)["logits"])
    built = build_head(tmp_path)
    assert built.to_dict() == classifier.head.to_dict()
    assert torch.equal(built.linear.weight, classifier.head.linear.weight)
    document = json.loads((tmp_path / "head_config.json").read_text())
    assert (document["pooling"], document["metadata"]["labels"]) == ("cls", ["a", "b", "c"])


def test_heads_that_do_not_fit(tmp_path):
    save_head(SequenceClassifier(build("bert"), 3), tmp_path)
    other = SequenceClassifier(build("bert"), 2, pooling="cls")
    before = state_of(other.head)
    with pytest.raises(CheckpointError, match="num_labels 3 instead of 2, pooling 'mean' instead of 'cls'"):
        load_head(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(other.head).items())
    document = json.loads((tmp_path / "head_config.json").read_text())
    for changes, message in (({"num_labels": -1}, "does not describe a head"), ({"num_labels": 4}, "wrong shapes")):
        (tmp_path / "head_config.json").write_text(json.dumps(document | changes))
        with pytest.raises(CheckpointError, match=message):
            build_head(tmp_path)
    (tmp_path / "head_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"load_head: .*head_model.safetensors does not exist"):
        load_head(SequenceClassifier(build("bert"), 3), tmp_path)
