import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pixpod_tools.tiny import training
from pixpod_tools.tiny.training import Course, train


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_INTERVAL_S", 0)
    return Course(
        minutes=math.inf, learning_rate=1e-2, batch_size=4, checkpoint=tmp_path / "checkpoint"
    )


class Interrupted(Exception):
    pass


def run(course, *, until=math.inf, steps=6):
    """Train a layer whose loss depends on both random generators; return its weights and data."""
    torch.manual_seed(1)
    layer = nn.Linear(3, 1)
    seen: list[tuple[int, int]] = []

    def batch_loss(rng):
        if len(seen) == until:
            raise Interrupted
        if len(seen) == steps:
            raise StopIteration
        seen.append((rng.integers(1000), int(torch.randint(1000, (1,)))))
        inputs = torch.tensor(seen[-1] * 2, dtype=torch.float32)[:3] / 1000
        return layer(inputs).square().sum()

    return layer, seen, batch_loss


def test_interrupted_training_goes_on_with_the_same_data_and_weights(course):
    layer, whole, batch_loss = run(course)
    with pytest.raises(StopIteration):
        train(layer, course, batch_loss)
    expected = [each.detach().clone() for each in layer.parameters()]
    course.checkpoint.unlink()

    first, before, batch_loss = run(course, until=2)
    with pytest.raises(Interrupted):
        train(first, course, batch_loss)
    second, after, batch_loss = run(course, steps=4)
    with pytest.raises(StopIteration):
        train(second, course, batch_loss)
    assert before + after == whole
    for found, wanted in zip(second.parameters(), expected, strict=True):
        assert torch.equal(found, wanted)


def test_finished_course_is_not_run_again(course):
    course = replace(course, minutes=0.001)
    layer, _, batch_loss = run(course, steps=10**6)
    train(layer, course, batch_loss)
    again, seen, batch_loss = run(course)
    train(again, course, batch_loss)
    assert seen == []
    assert torch.equal(again.weight, layer.weight)
