from diou_jax.training.watch import FROZEN_ROWS, Watch


def messages(rows, history=()):
    watch = Watch(history)
    return [watch.sign_of_collapse(row) for row in rows]


def ap(*values):
    return [{"eval/AP": value} for value in values]


def test_a_fall_of_ap_is_reported_each_time():
    found = messages(ap(0.1, 0.3, 0.2, 0.14, 0.0, 0.31))
    assert [bool(message) for message in found] == [False, False, False, True, True, False]
    assert "0.140 from 0.300" in found[3]


def test_data_sets_are_compared_with_themselves():
    rows = [{"eval/AP": value, "dataset": name} for value, name in ((0.5, "a"), (0.1, "b"), (0.5, "a"), (0.1, "b"))]
    assert not any(messages(rows))


def test_an_evaluation_with_other_options_is_no_measure():
    own = {"eval/AP": 0.2, "dataset": "a"}
    assert not any(messages([own], history=[{**own, "eval/AP": 0.9, "options": {"test.soft_nms.enabled": True}}]))
    assert messages([own], history=[{**own, "eval/AP": 0.9}])[0]


def test_early_noise_is_no_collapse():
    assert not any(messages(ap(0.01, 0.001, 0.015, 0.0)))


def test_what_was_before_a_resume_counts():
    assert messages(ap(0.1), history=ap(0.4))[0]


def test_a_loss_that_never_moves_is_reported_once():
    found = messages([{"loss": 0.7}] * (2 * FROZEN_ROWS))
    assert [i for i, message in enumerate(found) if message] == [FROZEN_ROWS - 1]
    assert not any(messages([{"loss": 0.7 + i % 2} for i in range(20)]))
    assert not any(messages([{"loss": None}] * 20))


def test_rows_without_a_loss_stand_between_equal_losses_without_a_trace():
    rows = [{"loss": 0.7}, {"best/AP": 0.1, "best/step": 2}] * FROZEN_ROWS
    assert sum(bool(message) for message in messages(rows)) == 1
