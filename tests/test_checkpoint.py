import contextlib
import dataclasses
import itertools
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import slow
from test_optimizer import RULES

from diou_jax.checkpoint import storage
from diou_jax.checkpoint.checkpoints import ABANDONED, Checkpoints
from diou_jax.errors import UserError
from diou_jax.optimization.ema import Ema
from diou_jax.optimization.optimizer import make_optimizer
from diou_jax.optimization.state import create_state

NAMES = ("loss", "loss_cls", "grad_norm")


def random_state(seed, width=5, kind="SGD", affine=True, parts=("fc",)):
    keys = jax.random.split(jax.random.key(seed), 4)
    part = {"kernel": jax.random.normal(keys[0], (3, width)), "bias": jax.random.normal(keys[1], (width,))}
    params = {name: jax.tree.map(lambda x, number=number: x + number, part) for number, name in enumerate(parts)}
    scales = {parts[0]: {"scale": jax.random.normal(keys[2], (4,))}}
    variables = {"params": params} | ({"affine": scales} if affine else {})
    rules = dataclasses.replace(RULES, type=kind)
    optimizer = make_optimizer(lambda step: 0.1, frozen=lambda path: False, rules=rules)
    state = create_state(variables, optimizer, NAMES)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(seed + 1, x.dtype), state.opt_state)
    window = {name: jnp.float32(1 / (index + 3)) for index, name in enumerate(NAMES)}
    return state.replace(opt_state=opt_state, window=window, step=jnp.int32(seed))


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(("kind", "affine"), [("SGD", True), ("Adam", False)])
def test_what_is_restored_is_what_was_saved(tmp_path, kind, affine):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for seed in (1, 2, 3):
            checkpoints.save(random_state(seed, kind=kind, affine=affine), seed, {"seed": seed})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 3
        wanted = random_state(3, kind=kind, affine=affine)
        same_bits(checkpoints.restore(random_state(0, kind=kind, affine=affine)), wanted)
        same_bits(checkpoints.restore_variables(random_state(0, kind=kind, affine=affine).variables), wanted.variables)
        assert checkpoints.metadata() == {"seed": 3}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_state_replicated_by_pmap_is_saved_once(tmp_path):
    state = random_state(1)
    count = jax.local_device_count()
    step = jax.pmap(
        lambda state, x: jax.tree.map(lambda leaf: leaf + x.astype(leaf.dtype), state), in_axes=(None, 0), out_axes=None
    )
    replicated = step(state, jnp.ones(count))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(replicated, 2, {})
    with Checkpoints(tmp_path) as checkpoints:
        same_bits(checkpoints.restore(random_state(0)), jax.device_get(replicated))


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    state = random_state(4)
    wanted = jax.device_get(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 4, {})
        jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state))
    with Checkpoints(tmp_path) as checkpoints:
        same_bits(checkpoints.restore(random_state(0)), wanted)


@pytest.mark.parametrize("suffix", [".orbax-checkpoint-tmp", ".orbax-checkpoint-tmp-17"])
def test_an_unfinished_save_is_ignored_and_can_be_repeated(tmp_path, suffix):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(random_state(1), 1, {})
    leftover = tmp_path / "checkpoints" / f"2{suffix}"
    leftover.mkdir()
    (leftover / "variables").write_text("half")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 1
        same_bits(checkpoints.restore(random_state(0)), random_state(1))
        checkpoints.save(random_state(2), 2, {})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        same_bits(checkpoints.restore(random_state(0)), random_state(2))


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no checkpoint"):
        checkpoints.restore(random_state(1))


def save_steps(folder, *steps):
    with Checkpoints(folder, keep=len(steps)) as checkpoints:
        for step in steps:
            checkpoints.save(random_state(step), step, {"step": step})


def files_of(folder, step):
    return sorted(path for path in (folder / "checkpoints" / str(step)).rglob("*") if path.is_file())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, empty, change_a_byte, pathlib.Path.unlink])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, harm):
    save_steps(tmp_path, 3, 5)
    largest = max(files_of(tmp_path, 5), key=lambda path: path.stat().st_size)
    harm(largest)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.latest() == 3
        assert (tmp_path / "checkpoints" / "5").exists()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 3
        same_bits(checkpoints.restore(random_state(0)), random_state(3))
        assert checkpoints.metadata() == {"step": 3}
        assert not (tmp_path / "checkpoints" / "5").exists()
        assert [path.name.split("_")[0] for path in (tmp_path / "checkpoints.damaged").iterdir()] == ["5"]
        checkpoints.save(random_state(6), 5, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 5


def test_every_file_of_a_checkpoint_is_watched(tmp_path):
    save_steps(tmp_path, 5)
    for path in files_of(tmp_path, 5):
        content = path.read_bytes()
        if content:
            change_a_byte(path)
            with Checkpoints(tmp_path, create=False) as checkpoints, pytest.raises(UserError, match="is whole"):
                checkpoints.latest()
            path.write_bytes(content)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.latest() == 5


def test_no_run_starts_anew_where_all_checkpoints_are_damaged(tmp_path):
    save_steps(tmp_path, 3)
    empty(max(files_of(tmp_path, 3), key=lambda path: path.stat().st_size))
    for words in ("none of the checkpoints", "holds damaged checkpoints"):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=words):
            checkpoints.latest()


def test_a_checkpoint_without_a_seal_counts_if_it_can_be_read(tmp_path):
    """The process was killed between the last byte and the seal."""
    save_steps(tmp_path, 3, 5)
    for file in (tmp_path / "checkpoints.sealed").iterdir():
        file.unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 5
    assert [file.name for file in (tmp_path / "checkpoints.sealed").iterdir()] == ["5.json"]
    (tmp_path / "checkpoints.sealed" / "5.json").write_text("{ cut off")
    empty(max(files_of(tmp_path, 5), key=lambda path: path.stat().st_size))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 3


def test_a_reader_beside_a_run_follows_its_checkpoints(tmp_path):
    like = random_state(0).variables
    with Checkpoints(tmp_path, keep=1) as run:
        run.save(random_state(1), 1, {"seed": 1})
        run.finish()
        with Checkpoints(tmp_path, create=False) as reader:
            assert reader.metadata() == {"seed": 1}
            run.save(random_state(2), 2, {"seed": 2})
            run.finish()
            assert not (tmp_path / "checkpoints" / "1").exists()
            same_bits(reader.restore_variables(like), random_state(2).variables)
            assert (reader.metadata(), reader.latest()) == ({"seed": 2}, 2)
    assert not (tmp_path / "checkpoints.damaged").exists()


CRITERION = {"dataset": "val", "metric": "eval/AP"}


def evaluated(value, **others):
    return {"best_by": CRITERION, "evaluation": [{"dataset": "val", "eval/AP": value}], **others}


def save_evaluated(folder, values, keep=1):
    """A checkpoint for each step of `values`, which holds its AP; None: it was not evaluated."""
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step, value in values.items():
            metadata = {"best_by": CRITERION} if value is None else evaluated(value)
            checkpoints.save(random_state(step), step, metadata | {"step": step})


def present(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def best_of(folder):
    with Checkpoints(folder, which="best", create=False) as checkpoints:
        same_bits(
            checkpoints.restore_variables(random_state(0).variables), random_state(checkpoints.chosen()).variables
        )
        assert checkpoints.metadata()["step"] == checkpoints.chosen()
        return checkpoints.chosen()


@pytest.mark.parametrize(
    ("values", "keep", "left", "best"),
    [
        ({1: 0.1, 2: 0.5, 3: 0.2, 4: None, 5: 0.3}, 1, [2, 5], 2),
        slow({1: 0.1, 2: 0.5, 3: 0.2, 4: None, 5: 0.3}, 2, [2, 4, 5], 2),
        slow({1: 0.5, 2: 0.5, 3: None}, 1, [1, 3], 1),
        slow({1: float("nan"), 2: 0.0, 3: float("nan"), 4: None}, 1, [2, 4], 2),
        slow({1: 0.1, 2: 0.2, 3: 0.3}, 1, [3], 3),
    ],
)
def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path, values, keep, left, best):
    save_evaluated(tmp_path, values, keep)
    assert present(tmp_path) == left and best_of(tmp_path) == best
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.chosen() == checkpoints.latest() == left[-1]
    # Its own metadata tell a run that goes on which one is the best.
    save_evaluated(tmp_path, {7: None, 8: None}, keep)
    assert present(tmp_path) == sorted({best, *[*left, 7, 8][-keep:]}) and best_of(tmp_path) == best


def test_without_a_metric_the_newest_alone_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(random_state(3), 3, {})
    assert present(tmp_path) == [3]
    with pytest.raises(UserError, match=r"has no best checkpoint, as none was evaluated .*; there are 3 \(last\)"):
        best_of(tmp_path)


def test_a_damaged_best_one_is_set_aside_and_the_next_best_takes_its_place(tmp_path):
    save_evaluated(tmp_path, {1: 0.4, 2: 0.5, 3: 0.2}, keep=3)
    change_a_byte(max(files_of(tmp_path, 2), key=lambda path: path.stat().st_size))
    assert best_of(tmp_path) == 1
    save_evaluated(tmp_path, {4: 0.3}, keep=3)
    assert present(tmp_path) == [1, 3, 4]  # the damaged one is none of the newest three
    save_evaluated(tmp_path, {5: None}, keep=1)
    assert present(tmp_path) == [1, 5] and list((tmp_path / "checkpoints.damaged").iterdir())


def test_a_kill_before_the_old_best_one_is_deleted_leaves_both(tmp_path, monkeypatch):
    save_evaluated(tmp_path, {1: 0.4, 2: 0.1})

    def killed(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="killed"):
        patch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", killed)  # the new one has its final name by now
        save_evaluated(tmp_path, {3: 0.9})
    assert present(tmp_path) == [1, 2, 3] and best_of(tmp_path) == 3
    save_evaluated(tmp_path, {4: 0.5})
    assert present(tmp_path) == [3, 4]


def test_a_better_one_that_cannot_be_written_leaves_the_best_one(tmp_path, monkeypatch, caplog):
    save_evaluated(tmp_path, {1: 0.4, 2: 0.1})

    async def full(*_, **__):
        raise OSError("No space left on device")

    with Checkpoints(tmp_path, keep=1, strict=False) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.StandardCheckpointHandler, "async_save", full)
            checkpoints.save(random_state(3), 3, evaluated(0.9))
            checkpoints.finish()
        assert "No space left" in caplog.text and present(tmp_path) == [1, 2]
        checkpoints.save(random_state(4), 4, evaluated(0.2, step=4))
    assert present(tmp_path) == [1, 4] and best_of(tmp_path) == 1


def test_a_checkpoint_is_chosen_by_its_step_and_others_are_refused_with_the_list(tmp_path):
    save_evaluated(tmp_path, {3: 0.5, 6: 0.2}, keep=2)
    with Checkpoints(tmp_path, which="6", create=False) as checkpoints:
        assert checkpoints.chosen() == 6
        same_bits(checkpoints.restore_variables(random_state(0).variables), random_state(6).variables)
    with (
        Checkpoints(tmp_path, which="5", create=False) as checkpoints,
        pytest.raises(UserError, match=r"no undamaged checkpoint of step 5; there are 3 \(best\), 6 \(last\)"),
    ):
        checkpoints.metadata()
    with pytest.raises(UserError, match="it must be best, last or the step"):
        Checkpoints(tmp_path, which="newest", create=False)


def with_ema(state, decay=0.9):
    params = jax.tree.map(lambda x: x / 2, state.params)
    return state.replace(ema=Ema(params, decay))


def test_with_a_moving_average_both_weights_are_kept_and_readers_get_the_average(tmp_path):
    wanted, like = with_ema(random_state(1)), with_ema(random_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(wanted, 1, {})
    with Checkpoints(tmp_path) as checkpoints:
        same_bits(checkpoints.restore(like), wanted)
        same_bits(checkpoints.restore_variables(like.variables), wanted.averaged)
        same_bits(checkpoints.stored_variables(), wanted.averaged)
        same_bits(checkpoints.restore_variables(like.variables, averaged=False), wanted.variables)
    (tmp_path / "checkpoints.sealed" / "1.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1  # without a seal it is read as a whole
    # A program that knows no average must not train it.
    assert '"format": 3' in (tmp_path / "checkpoints" / "1" / "metadata" / "metadata").read_text()


def test_without_an_average_nothing_is_new_in_a_checkpoint(tmp_path):
    save_steps(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "1"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"variables", "training", "metadata"}
    assert '"format": 2' in (folder / "metadata" / "metadata").read_text()
    with Checkpoints(tmp_path) as checkpoints:
        like = random_state(0).variables
        same_bits(checkpoints.restore_variables(like, averaged=False), random_state(1).variables)
        with pytest.raises(UserError, match="this config's raw: fc/bias is absent there"):
            checkpoints.restore(with_ema(random_state(0)))


def seals_of(folder):
    return sorted(file.stem for file in (folder / "checkpoints.sealed").glob("*.json"))


def wait_for_seals(folder, steps, timeout=20):
    end = time.monotonic() + timeout
    while seals_of(folder) != steps and time.monotonic() < end:
        time.sleep(0.02)
    assert seals_of(folder) == steps


@pytest.fixture
def full_disk(monkeypatch):
    """A function whose context lets no checkpoint be written."""

    @contextlib.contextmanager
    def full():
        async def fail(*_, **__):
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(ocp.StandardCheckpointHandler, "async_save", fail)
            yield

    return full


def test_after_a_failed_write_the_next_checkpoints_are_sealed_at_once(tmp_path, full_disk):
    with Checkpoints(tmp_path, keep=5, strict=False) as checkpoints:
        checkpoints.save(random_state(1), 1, {})
        wait_for_seals(tmp_path, ["1"])
        with full_disk():
            checkpoints.save(random_state(2), 2, {})
            checkpoints.finish()
        checkpoints.save(random_state(3), 3, {})
        wait_for_seals(tmp_path, ["1", "3"])


def test_what_a_failed_write_left_is_removed_before_the_next_one(tmp_path, full_disk):
    folder = tmp_path / "checkpoints"
    with Checkpoints(tmp_path, strict=False) as checkpoints:
        checkpoints.save(random_state(1), 1, {})
        with full_disk():
            checkpoints.save(random_state(2), 2, {})
            checkpoints.finish()
        fresh, old = folder / "2.orbax-checkpoint-tmp", folder / "0.orbax-checkpoint-tmp"
        for partial in (fresh, old):
            partial.mkdir(exist_ok=True)
        os.utime(old, (time.time() - ABANDONED - 1,) * 2)
        checkpoints.save(random_state(3), 3, {})
        checkpoints.finish()
        assert fresh.exists() and not old.exists()  # threads of orbax may still be at work in the fresh one


@pytest.mark.parametrize("suffix", [".orbax-checkpoint-tmp", ".orbax-checkpoint-tmp-17"])
def test_what_a_killed_write_left_is_removed_by_the_owner_and_by_no_reader(tmp_path, suffix):
    save_steps(tmp_path, 1)
    leftover = tmp_path / "checkpoints" / f"2{suffix}"
    (leftover / "variables").mkdir(parents=True)
    (leftover / "variables" / "half").write_text("half")
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.latest() == 1 and leftover.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert not leftover.exists() and checkpoints.latest() == 1


def test_a_seal_of_a_checkpoint_that_is_gone_does_not_condemn_its_successor(tmp_path):
    """The damaged checkpoint is written again; once the process is killed before the new seal."""
    save_steps(tmp_path, 1, 2)
    stale = (tmp_path / "checkpoints.sealed" / "2.json").read_text()
    change_a_byte(max(files_of(tmp_path, 2), key=lambda path: path.stat().st_size))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest() == 1
        assert seals_of(tmp_path) == ["1"]  # that of the damaged one went with it
        (tmp_path / "checkpoints.sealed" / "2.json").write_text(stale)  # as earlier versions left it
        checkpoints._inspector.seal_when_complete = lambda step: None
        checkpoints.save(random_state(2), 2, {})
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest() == 2
        same_bits(checkpoints.restore(random_state(0)), random_state(2))


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_reader_looks_again_if_its_only_checkpoint_has_just_been_replaced(tmp_path, which):
    with Checkpoints(tmp_path, keep=1) as run:
        run.save(random_state(1), 1, evaluated(0.1))
        run.finish()
        with Checkpoints(tmp_path, create=False, which=which) as reader:
            assert reader.steps() == [1]
            run.save(random_state(2), 2, evaluated(0.2))
            run.finish()
            assert present(tmp_path) == [2]
            assert reader.chosen() == 2


@pytest.mark.parametrize("after", [False, True], ids=["before its metadata are read", "after its metadata are read"])
@pytest.mark.parametrize("times", [1, 99])
def test_a_reader_looks_again_if_its_checkpoint_is_replaced_while_it_reads(tmp_path, monkeypatch, after, times):
    like, check, steps = random_state(0).variables, storage.check_format, itertools.count(2)
    save_steps(tmp_path, 1)
    with Checkpoints(tmp_path, keep=1) as run, Checkpoints(tmp_path, create=False) as reader:

        def replaced(manager, step):
            found = check(manager, step) if after else None
            if (number := next(steps)) < times + 2:
                monkeypatch.setattr(storage, "check_format", check)
                run.save(random_state(number), number, {})
                run.finish()
                monkeypatch.setattr(storage, "check_format", replaced)
            return found if after else check(manager, step)

        monkeypatch.setattr(storage, "check_format", replaced)
        if times == 1:
            same_bits(reader.restore_variables(like), random_state(2).variables)
        else:
            with pytest.raises(UserError, match="are replaced faster than they can be read"):
                reader.restore_variables(like)


def test_the_best_checkpoint_stays_while_nothing_is_evaluated_and_goes_if_none_is_wanted(tmp_path):
    save_evaluated(tmp_path, {1: 0.9, 2: 0.1})
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # test.every=0: no word on a criterion
        checkpoints.save(random_state(3), 3, {"step": 3})
        checkpoints.save(random_state(4), 4, {"step": 4})
    assert present(tmp_path) == [1, 4] and best_of(tmp_path) == 1
    with Checkpoints(tmp_path, keep=1, keep_best=False) as checkpoints:  # checkpoint.best=""
        checkpoints.save(random_state(5), 5, {})
    assert present(tmp_path) == [5]
