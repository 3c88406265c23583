"""Measure compute and memory of a module, per submodule, by one run on the meta device.

Counted are multiply-accumulates of matrix products and convolutions (torch's formulas, two operations each), the bytes
that autograd keeps for the backward pass, each storage once and parameters left out, and all others that are alive. The
meta device has neither fused attention, nor autocast, nor CUDA's dropout, so these three are put in their place here.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from vitral.models.network import Network

P = ParamSpec("P")
T = TypeVar("T")

Precision = Literal["float32", "bfloat16", "bfloat16_params"]
Device = Literal["cpu", "cuda"]

# What autocast computes in bfloat16; and, on CUDA alone, what in float32.
_PRODUCTS = {
    F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__,
}  # fmt: skip
_WIDE_ON_CUDA = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, Tensor.softmax, Tensor.log_softmax}


def cached(size: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that keeps the last so many results of a function of configurations, which are frozen."""
    return lambda function: cast("Callable[P, T]", lru_cache(maxsize=size)(function))


class Kept(NamedTuple):
    """Bytes kept for the backward pass: before the blocks, by each block, by each block's input alone (all that a
    checkpointed block keeps), after the blocks. passing: the most that is alive beside them in the backward pass
    (gradients in flight). peak: the most that is alive in the forward pass."""

    stem: int
    blocks: tuple[int, ...]
    inputs: tuple[int, ...]
    head: int
    passing: int
    peak: int

    def total(self, checkpointed: int = 0) -> int:
        """At the end of the forward pass, the first so many blocks checkpointed."""
        return self.stem + sum(self.inputs[:checkpointed]) + sum(self.blocks[checkpointed:]) + self.head

    def nothing(self) -> Kept:
        """Zeros of the same shape."""
        none = (0,) * len(self.blocks)
        return Kept(0, none, none, 0, 0, 0)

    def between(self, other: Kept, share: float) -> Kept:
        """Linear interpolation: this at share 0, the other at 1."""

        def mix(mine: Any, theirs: Any) -> Any:
            if isinstance(mine, tuple):
                return tuple(map(mix, mine, theirs))
            return max(round(mine + share * (theirs - mine)), 0)

        return Kept(*map(mix, self, other))


class Recorder(TorchDispatchMode):
    """What `Measurement` is made of, while a module runs. `here` is the innermost module that runs, by its name; macs,
    saved and shapes are counted for each name."""

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.stack, self.macs, self.shapes = [""], Counter[str](), dict[str, tuple[int, ...]]()
        self.saved, self.stem, self.head = Counter[str](), 0, 0
        self.blocks, self.inputs = [0] * len(blocks), [0] * len(blocks)
        self.passing = self.peak = 0
        self._alive, self._kept, self._total = dict[int, int](), set[int](), [0, 0]  # passing, kept
        self._numbers = {id(block): number for number, block in enumerate(blocks)}
        self._block: int | None = None
        self._entered = self._is_backward = False
        own = [*module.parameters(), *module.buffers()]
        self._own = {tensor.untyped_storage()._cdata for tensor in own}  # pyright: ignore[reportPrivateUsage]

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Storages that exist before, like the batch's."""
        self._own |= {tensor.untyped_storage()._cdata for tensor in tensors}  # pyright: ignore[reportPrivateUsage]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, adds up its work and remembers what it made."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry and not self._is_backward:
            self.macs[self.stack[-1]] += flop_registry[packet](*args, **kwargs, out_val=out) // 2
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key in self._alive or key in self._own:
            return
        self._alive[key] = storage.nbytes()
        self._total[0] += storage.nbytes()
        weakref.finalize(storage, self._gone, key).atexit = False
        if self._is_backward:
            self.passing = max(self.passing, self._total[0])
        else:
            self.peak = max(self.peak, sum(self._total))

    def _gone(self, key: int) -> None:
        self._total[key in self._kept] -= self._alive.pop(key)
        self._kept.discard(key)

    def keep(self, tensor: Tensor) -> Tensor:
        """A hook on what autograd saves."""
        key = tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
        if key in self._own or key in self._kept:
            return tensor
        self._see(tensor)
        self._kept.add(key)
        count = self._alive[key]
        self._total[0] -= count
        self._total[1] += count
        self.saved[self.stack[-1]] += count
        if self._block is not None:
            self.blocks[self._block] += count
        elif self._entered:
            self.head += count
        else:
            self.stem += count
        return tensor

    def enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A hook in front of a module."""
        self.stack.append(name)
        self.shapes.setdefault(name, ())
        number = self._numbers.get(id(module))
        if number is not None and torch.is_grad_enabled():
            self._block, self._entered = number, True
            self.inputs[number] += inputs[0].numel() * inputs[0].element_size()

    def leave(self, name: str, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """A hook behind it."""
        self.stack.pop()
        if id(module) in self._numbers:
            self._block = None
        if isinstance(out, Tensor) and not self.shapes[name]:
            self.shapes[name] = tuple(out.shape[1:])

    def backward(self, loss: Tensor) -> None:
        """The backward pass; a gradient is gone as soon as it is complete."""
        self._is_backward = True
        loss.backward()

    def kept(self) -> Kept:
        """All of it, for the memory of a step."""
        return Kept(self.stem, tuple(self.blocks), tuple(self.inputs), self.head, self.passing, self.peak)


def record_step(
    module: nn.Module, model: Network, loss: Callable[[], Tensor], given: Sequence[Tensor], precision: Precision,
    device: Device, place: str = "meta",
) -> Recorder:  # fmt: skip
    """Record a forward and a backward pass of `module`, in which `model` learns. given: tensors that are there before.
    place: see `recording`.

    What a checkpointed block keeps is found by a second forward pass: some blocks, as those that reduce tokens, are
    never computed twice.
    """
    blocks = model.checkpointable
    with recording(module, blocks, precision, device, place) as recorder:
        recorder.ignore(given)
        recorder.backward(loss())
    model.checkpointed = len(blocks)
    with recording(module, blocks, precision, device, place) as again:
        again.ignore(given)
        loss()
    model.checkpointed = 0
    few = zip(again.blocks, recorder.blocks, recorder.inputs, strict=True)
    recorder.inputs = [min(kept + size, whole) if kept < whole else whole for kept, whole, size in few]
    return recorder


@contextmanager
def recording(
    module: nn.Module, blocks: Sequence[nn.Module] = (), precision: Precision = "float32", device: Device = "cpu",
    place: str = "meta",
) -> Generator[Recorder]:  # fmt: skip
    """Record what a module on the device `place` computes in here. blocks: those that may be checkpointed. With
    bfloat16_params the module has such parameters already; device: whose kernels are imitated. place="cpu", where it
    computes in earnest: for kernels that keep what only they know, such as oneDNN's recurrent layers."""
    recorder = Recorder(module, blocks)
    handles: list[Any] = []
    for name, part in module.named_modules():
        if not isinstance(part, nn.Identity | nn.ModuleList | nn.ModuleDict) and name:
            handles.append(part.register_forward_pre_hook(partial(recorder.enter, name)))
            handles.append(part.register_forward_hook(partial(recorder.leave, name)))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    handles += [parameter.register_post_accumulate_grad_hook(_forget) for parameter in trained]
    hooks = torch.autograd.graph.saved_tensors_hooks(recorder.keep, lambda tensor: tensor)
    try:
        with torch.device(place), _Kernels(recorder, precision, device), recorder, hooks:
            yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _Kernels(TorchFunctionMode):
    """Fused attention, autocast and dropout as the device has them."""

    def __init__(self, recorder: Recorder, precision: Precision, device: Device) -> None:
        super().__init__()
        self.recorder, self.device, self.casts = recorder, device, precision == "bfloat16"
        self.copies: dict[int, Tensor] = {}  # of parameters, as autocast's cache

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function as it is, or what stands in for it."""
        kwargs = kwargs or {}
        if self.casts and func in _PRODUCTS:
            args, kwargs = tree_map_only(Tensor, self._low, (args, kwargs))
        elif self.casts and self.device == "cuda" and func in _WIDE_ON_CUDA:
            args = tree_map_only(Tensor, Tensor.float, args)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.ctc_loss and args[0].is_meta:
            return _CTC.apply(args[0], args[1])
        if func is F.dropout and self.device == "cuda" and kwargs["training"] and kwargs["p"]:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]  # the mask is of bytes
        return func(*args, **kwargs)

    def _low(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not tensor.is_leaf or not tensor.requires_grad:
            return tensor.bfloat16()
        if id(tensor) not in self.copies:
            self.copies[id(tensor)] = tensor.bfloat16()
        return self.copies[id(tensor)]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        if attn_mask is not None and attn_mask.requires_grad:  # no fused kernel has a gradient for it
            return F.scaled_dot_product_attention(q, k, v, attn_mask, **more)
        name, work = self.recorder.stack[-1], q.numel() * k.shape[-2]
        for end, shape in (("q", tuple(q.shape[1:])), ("map", (*q.shape[1:-1], k.shape[-2]))):
            self.recorder.shapes.setdefault(f"{name}.{end}", shape)
        self.recorder.macs.update({f"{name}.scores": work, f"{name}.values": work * v.shape[-1] // q.shape[-1]})
        if self.device == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and attn_mask is None:
            with self._uncounted():
                return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
        return _Fused.apply(q, k, v)  # pyright: ignore[reportReturnType]

    @contextmanager
    def _uncounted(self) -> Generator[None]:
        before = self.recorder.macs.copy()
        yield
        self.recorder.macs = before


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs, its result and the logarithm of each row's sum, in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """q [B, h, Q, d], k and v [B, h, N, d] to [B, h, Q, d], laid out as [B, Q, h, d]."""
        out = torch.empty_like(q) if q.shape == v.shape else q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of q, k and v."""
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _CTC(torch.autograd.Function):
    """CTC's loss, which keeps its inputs and the logarithm of each frame's forward variables, [B, F, 2 T + 1]."""

    @staticmethod
    def forward(ctx: Any, log_probs_FBV: Tensor, text_BT: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Log-probabilities [F, B, V] and texts [B, T] to a number."""
        (frames, count, _), states = log_probs_FBV.shape, 2 * text_BT.shape[1] + 1
        ctx.save_for_backward(log_probs_FBV, text_BT, log_probs_FBV.new_empty(count, frames, states))
        return log_probs_FBV.new_empty(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of the log-probabilities."""
        return torch.empty_like(ctx.saved_tensors[0]), None
