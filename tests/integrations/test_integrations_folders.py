"""Folders of the Trainer that were moved, are in use by another training, or hold what it did not write."""

import itertools
import json
import shutil

import pytest
import run_folders

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_integrations_transformers import StopAt, make_model, make_trainer, same, state_of

from adapterx.checkpoint import folder as files
from adapterx.errors import CheckpointError

BEST = {
    "eval_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "save_total_limit": 2,
}


def best_trainer(folder, model, *, first=0, **more):
    """A trainer whose first epoch is the best for certain."""
    trainer = make_trainer(folder, model, **BEST, **more)
    scores = itertools.chain(itertools.islice([0.9, 0.2, 0.3], first, None), itertools.repeat(0.1))
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    return trainer


@pytest.fixture
def cut(tmp_path):
    """A training that was stopped in its last epoch; the best state is that of its first."""
    with pytest.raises(KeyboardInterrupt):
        best_trainer(tmp_path / "cut", make_model(), callbacks=[StopAt(8)]).train()
    return tmp_path / "cut"


@pytest.mark.parametrize("how", ["moved", "named", "linked", "relative"])
def test_best_checkpoint_is_found_where_the_folder_stands(cut, tmp_path, monkeypatch, how):
    straight = make_model()
    best_trainer(tmp_path / "straight", straight).train()
    place, resume = tmp_path / "elsewhere", True
    if how == "linked":
        place.symlink_to(cut)
    else:
        cut.rename(place)
    if how == "named":
        place, resume = tmp_path / "new", str(place / "checkpoint-6")
    elif how == "relative":
        monkeypatch.chdir(place.parent)
        place = place.name
    model = make_model()
    best_trainer(place, model, first=2).train(resume_from_checkpoint=resume)
    assert same(state_of(straight), state_of(model))


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_lost_best_checkpoint_is_refused_before_training(cut, how):
    if how == "missing":
        shutil.rmtree(cut / "checkpoint-3")
    else:
        (cut / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    before = run_folders.content_of(cut)
    with pytest.raises(CheckpointError, match=r"^AdapterTrainer: .*checkpoint-3.*best checkpoint so far"):
        best_trainer(cut, make_model(), first=2).train(resume_from_checkpoint=True)
    assert run_folders.content_of(cut) == before


def test_best_checkpoint_that_is_damaged_in_the_end_is_refused(tmp_path):
    class Spoil(StopAt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                (tmp_path / "checkpoint-3" / "trainable_model.safetensors").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"checkpoint-3.*best checkpoint so far"):
        best_trainer(tmp_path, make_model(), callbacks=[Spoil(8)]).train()


def test_second_training_into_a_folder_is_refused(tmp_path):
    make_trainer(tmp_path, make_model(), num_train_epochs=1).train()
    before = run_folders.content_of(tmp_path)
    with run_folders.held_elsewhere(tmp_path):
        for resume in (True, None):
            with pytest.raises(CheckpointError, match=r"^AdapterTrainer: .* must not be in use"):
                make_trainer(tmp_path, make_model()).train(resume_from_checkpoint=resume)
        assert run_folders.content_of(tmp_path) == before
        make_trainer(tmp_path, make_model(), save_strategy="no", max_steps=1).train()  # it would write nothing
    make_trainer(tmp_path, make_model()).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", [*run_folders.KINDS, "unknown key", "wrong step"])
def test_state_that_the_trainer_did_not_write(tmp_path, kind, stopped_at_three):
    folder = shutil.copytree(stopped_at_three, tmp_path / "o") / "checkpoint-3"
    path = folder / "trainer_state.json"
    if kind in run_folders.KINDS:
        run_folders.replace_by(path, kind)
    else:
        changes = {"unknown key": {"surprise": 1}, "wrong step": {"global_step": "3"}}[kind]
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    files.seal(folder)  # whoever writes such a file can seal it too
    with pytest.raises(CheckpointError, match=r"trainer_state\.json"):
        make_trainer(folder.parent, make_model()).train(resume_from_checkpoint=str(folder))


@pytest.fixture(scope="module")
def stopped_at_three(tmp_path_factory):
    """The folder of a training of one epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "o"
    make_trainer(folder, make_model(), num_train_epochs=1).train()
    return folder
