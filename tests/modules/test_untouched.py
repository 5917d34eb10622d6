"""What a trial of a step changes is undone, and nothing else is touched."""

from collections import Counter, OrderedDict, defaultdict, deque

import pytest
import torch
from torch import nn
from torchmetrics import SumMetric

from coseg_lightning.modules.untouched import untouched


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.metric, self.net = SumMetric(), nn.Linear(2, 2)
        self.register_buffer("wide", torch.ones(1).expand(3))
        self.register_buffer("seen", torch.zeros(2))
        self.lazy = nn.LazyBatchNorm2d()
        self.mean = torch.ones(2)
        self.count = 0
        self.items = [1, 2]
        self.by_name = {"a": 1}
        self.others = [deque([1]), {3}, defaultdict(list, a=[1]), OrderedDict(b=2), Counter("aa")]
        self.queue, self.kinds, self.lists, self.order, self.counter = self.others


def state(module):
    values = [module.seen.tolist(), module.mean.tolist(), module.count, list(module.items)]
    values += [dict(module.by_name), list(module.queue), set(module.kinds), dict(module.lists)]
    return [
        *values,
        list(module.order.items()),
        dict(module.counter),
        float(module.metric.compute()),
    ]


def change(module):
    module.metric.update(5.0)
    module.seen += 1
    module.mean.mul_(3)
    module.count += 1
    module.items.append(3)
    module.by_name["b"] = 2
    module.queue.clear()
    module.kinds.add(4)
    module.lists["c"].append(1)
    module.order.move_to_end("b")
    module.order["a"] = 0
    module.counter.update("b")
    module.new = 1


def test_all_that_is_held_directly_is_put_back():
    module = Holds()
    module.metric.update(1.0)
    before, held = state(module), (module.items, module.seen, module.queue)
    with untouched(module, [module.net]):
        change(module)
        assert state(module) != before
    assert state(module) == before
    assert all(a is b for a, b in zip(held, (module.items, module.seen, module.queue), strict=True))
    assert not hasattr(module, "new")


def test_states_of_inference_mode_are_put_back():
    module = Holds()
    with torch.inference_mode():
        module.metric.update(1.0)
        module.mean = torch.ones(2)
    with untouched(module, [module.net]), torch.inference_mode():
        module.metric.update(1.0)
        module.mean += 1
    assert float(module.metric.compute()) == 1
    assert module.mean.tolist() == [1, 1]


def test_values_of_another_size_are_put_back():
    module = Holds()
    with untouched(module, [module.net]):
        module.mean.resize_(4)
        module.seen.data = torch.ones(2)
    assert (module.mean.tolist(), module.seen.tolist()) == ([1, 1], [0, 0])


def test_a_graph_that_is_open_is_not_disturbed():
    module = Holds()
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * module.seen).sum()
    with untouched(module, [module.net]):
        module.count += 1
    loss.backward()
    assert torch.equal(weight.grad, module.seen)


class Closed(dict):
    def clear(self):
        raise TypeError("it cannot be changed")


@pytest.mark.parametrize("raises", [True, False])
def test_containers_that_refuse_changes_are_left_alone(raises):
    module = Holds()
    module.closed = Closed(a=1)
    try:
        with untouched(module, [module.net]):
            module.count += 1
            if raises:
                raise RuntimeError("reached")
    except RuntimeError:
        assert raises
    assert module.count == 0
