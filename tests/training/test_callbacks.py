from types import SimpleNamespace

from mde.training.callbacks import Deadline


def test_the_deadline_counts_from_the_first_step_on(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mde.training.callbacks.time.monotonic", lambda: clock[0])
    decide = SimpleNamespace(reduce_boolean_decision=lambda late, all: late)
    trainer = SimpleNamespace(should_stop=False, strategy=decide)
    deadline = Deadline(minutes=1)
    clock[0] = 1000.0  # a teacher's time
    deadline.on_train_start(trainer)
    stopped = []
    for clock[0] in (1059.0, 1061.0):
        deadline.on_train_batch_end(trainer, None)
        stopped.append(trainer.should_stop)
    assert stopped == [False, True]
