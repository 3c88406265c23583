"""The teacher that follows: built fresh, never trained, moved by name; schedules end where they should."""

import copy

import pytest
import torch
from torch import nn

from vitral.objectives.teacher import EMATeacher, cosine


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def moved(student: nn.Module) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in student.buffers():
            buffer.add_(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_a_step_is_the_weighted_mean_and_buffers_are_copied(momentum: float, dtype: torch.dtype) -> None:
    student = network(0).to(dtype)
    teacher = EMATeacher(student, network(1).to(dtype))
    before = copy.deepcopy(teacher.module.state_dict())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items()), "starts as a copy"
    moved(student)
    teacher.update(momentum)
    for name, value in student.state_dict().items():
        mine = teacher.module.state_dict()[name]
        if name.split(".")[-1] in ("weight", "bias"):
            torch.testing.assert_close(mine, momentum * before[name] + (1 - momentum) * value)
            if momentum in (0.0, 1.0):
                assert torch.equal(mine, (before[name], value)[momentum == 0.0])
        else:
            assert torch.equal(mine, value), name


def test_a_step_that_was_not_finite_moves_nothing() -> None:
    student = network(0)
    teacher = EMATeacher(student, network(1))
    before = copy.deepcopy(teacher.module.state_dict())
    moved(student)
    teacher.update(0.5, torch.tensor(1.0))
    assert all(torch.equal(before[name], value) for name, value in teacher.module.state_dict().items())
    teacher.update(0.5, torch.tensor(0.0))
    assert not torch.equal(before["0.weight"], teacher.module.state_dict()["0.weight"])


def test_it_is_no_alias_takes_no_gradient_and_is_never_random() -> None:
    student = network(0)
    teacher = EMATeacher(student, network(1))
    holder = nn.ModuleDict({"student": student, "teacher": teacher})
    holder.train()
    assert student.training
    assert not any(module.training for module in teacher.modules()), "dropout is off whatever train() says"
    theirs = {id(parameter) for parameter in student.parameters()}
    assert not theirs & {id(parameter) for parameter in teacher.parameters()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert len(list(holder.parameters())) == 2 * len(theirs), "the student is not inside its teacher"
    x = torch.randn(6, 4, requires_grad=True)
    first = teacher(x)
    assert torch.equal(first, teacher(x))
    assert not first.requires_grad
    assert not torch.equal(student(x), student(x))


def test_a_teacher_of_other_names_is_refused() -> None:
    with pytest.raises(RuntimeError):
        EMATeacher(network(0), nn.Sequential(nn.Linear(4, 8)))


def test_the_cosine_starts_and_ends_exactly() -> None:
    assert cosine(0, 100, 0.996, 1.0) == pytest.approx(0.996, abs=1e-15)
    assert cosine(99, 100, 0.996, 1.0) == 1.0
    assert cosine(0, 1, 0.996, 1.0) == pytest.approx(0.996, abs=1e-15)
    assert cosine(500, 100, 0.0, 1.0) == 1.0
    values = [cosine(step, 100, 0.2, 0.7) for step in range(100)]
    assert values == sorted(values)
    assert values[0] + values[99] == pytest.approx(values[30] + values[69]), "symmetric about the middle"
