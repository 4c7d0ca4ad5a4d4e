"""One update of the adapter: gradients over batches and processes, clipped, through AdamW."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from ..model.parameters import named_arrays, numbers, scalar
from ..model.patch import hold_whole, memory_layers, spread_of_memory
from .batching import EpisodeBatch
from .grad_checkpoint import checkpointed
from .objective import Inputs, Objective, Sparsity, Terms
from .settings import TrainSettings

Params = dict[str, dict[str, mx.array]]

SMALLEST = 1e-3  # size of weights that a step is taken to be a share of: some begin as zeros


def adapter_params(model: nn.Module) -> Params:
    """The parameters that training changes: ``layer_<i>`` → name → array."""
    return {
        f"layer_{layer}": {key: attention[key] for key in attention.adapter_keys()}
        for layer, attention in memory_layers(model).items()
    }


def set_adapter_params(model: nn.Module, params: Params) -> None:
    """Put parameters of `adapter_params`' form into the model."""
    for layer, attention in memory_layers(model).items():
        for key, value in params[f"layer_{layer}"].items():
            attention[key] = value


def _bounded(most: float, old: mx.array, new: mx.array) -> mx.array:
    """Part of the way from old weights to new ones: no more than ``most`` times their size."""
    size = mx.maximum(mx.sqrt(mx.square(old).mean()), SMALLEST)
    return old + mx.minimum(1.0, most * size) * (new - old)


class Figures(NamedTuple):
    """What an update, or a validation, is told of: plain numbers, over all processes.

    ``kl`` and ``taught`` are pairs, as in `Terms`: mean divergences from a teacher, and of how many
    tokens (or episodes) they are the means.
    """

    loss: float
    ce: float
    kl: tuple[float, float]
    taught: tuple[int, int]
    read_beta: float
    write_beta: float
    state_norm: float
    tokens: int
    labelled: int
    grad_norm: float = 0.0
    learning_rate: float = 0.0


def updater_of(
    model: nn.Module, settings: TrainSettings, group: mx.distributed.Group | None = None
) -> "Updater":
    """What updates a model's adapter as its training does, and evaluates it.

    ``group``: with other processes; None: in this one alone.
    """
    objective = Objective(model, settings.write_visible, settings.count_alike)
    return Updater(objective, settings, group)


class Updater:
    """Updates the adapter of a model.

    With several processes each has its own part of a batch; the result is that of one process
    with all of it: cross-entropies are summed and divided by the number of labels of all, and the
    write sparsity is that of the gates of all. Where the processes hold one model together, by
    tensor parallelism, each has the whole batch: the same is summed as many times as it is divided
    by, and the weights stay the same bits in all of them.

    Args:
        objective (Objective): Holds the model.
        settings (TrainSettings): Of the run.
        group (mx.distributed.Group): The processes; ``None``: this one alone.

    Attributes:
        part (tuple[int, int]): Which part of a batch is this process's, of how many.

    Raises:
        ValueError: If the model is in a pipeline.
    """

    def __init__(
        self, objective: Objective, settings: TrainSettings, group: mx.distributed.Group | None
    ) -> None:
        self.objective, self.settings = objective, settings
        self.group = None if group is None or group.size() == 1 else group
        self.model = objective.model
        spread = spread_of_memory(self.model)
        if spread.pipelined:
            raise ValueError(
                "The model is in a pipeline, through which no gradient comes back: spread it by "
                "tensor parallelism, or have it whole in each process."
            )
        hold_whole(self.model)
        self._alike = spread.ranks.size
        self.part = (0, 1)
        if self.group is not None and spread.ranks.alone:
            self.part = (self.group.rank(), self.group.size())
        if settings.margin and settings.batch_size // self.part[1] < 2:
            raise ValueError(
                f"margin is {settings.margin}, with a batch of {settings.batch_size} on "
                f"{self.part[1]} processes: a conversation needs another one beside it. Take "
                "a batch of at least two a process, or no margin."
            )
        self.sparsity = Sparsity(settings.write_sparsity, settings.write_target)
        self.params = adapter_params(self.model)
        self.optimizer = optim.AdamW(
            settings.learning_rate, betas=[0.9, 0.999], weight_decay=0.0, bias_correction=True
        )
        self.optimizer.init(self.params)
        self._gradients = mx.value_and_grad(self._loss)

    @property
    def first_process(self) -> bool:
        """Whether this is the process that keeps what is trained."""
        return self.group is None or self.group.rank() == 0

    def update(self, batches: Sequence[EpisodeBatch], number: int) -> Figures:
        """One update from some batches; ``number`` counts updates from 0."""
        mx.random.seed(self.settings.seed + number)
        gradients, figures = self.gradients(batches)
        squares = [mx.square(g).sum() for g in named_arrays(gradients).values()]
        norm = mx.sqrt(mx.stack(squares).sum())
        if self.settings.max_grad_norm:
            scale = mx.minimum(self.settings.max_grad_norm / (norm + 1e-6), 1.0)
            gradients = tree_map(lambda g: g * scale, gradients)
        rate = self.settings.learning_rate_at(number)
        self.optimizer.learning_rate = rate
        params = self.optimizer.apply_gradients(gradients, self.params)
        if self.settings.max_step:
            most = self.settings.max_step / rate if rate else 0.0
            params = tree_map(partial(_bounded, most), self.params, params)
        mx.eval(params, self.optimizer.state, norm)
        self.params = params
        set_adapter_params(self.model, params)
        return figures._replace(grad_norm=scalar(norm), learning_rate=rate)

    def gradients(self, batches: Sequence[EpisodeBatch]) -> tuple[Params, Figures]:
        """Gradients of the objective over some batches of all processes, and its figures."""
        counted = self._sum(mx.array(float(sum(map(self.objective.counted, batches)))))
        counted = mx.maximum(counted, 1)
        mx.eval(counted)  # processes have to exchange in the same order
        gradients: Params = {}
        seen: list[Terms] = []
        with self._training():
            for batch in batches:
                inputs = self.objective.inputs(batch)
                (_, terms), new = self._differentiated(inputs, counted, len(batches))
                gradients = tree_map(mx.add, gradients, new) if gradients else new
                seen.append(terms)
                mx.eval(gradients, seen)
        set_adapter_params(self.model, self.params)
        gradients = tree_map(lambda g: g / counted, self._sum_tree(gradients))
        mx.eval(gradients)
        return gradients, self.figures(seen)

    def _differentiated(
        self, inputs: Inputs, counted: mx.array, parts: int
    ) -> tuple[tuple[mx.array, Terms], Params]:
        try:
            found: tuple[tuple[mx.array, Terms], Params] = self._gradients(
                self.params, inputs, counted, parts
            )
        except ValueError as error:
            if "VJP" not in str(error):
                raise
            name = getattr(self.model, "model_type", type(self.model).__name__)
            raise ValueError(
                f"mlx-lm's forward of {name!r} has no gradient, so no memory can be trained on "
                f"it ({str(error).partition('. ')[0]})."
            ) from error
        return found

    def _training(self) -> AbstractContextManager:
        self.model.train()
        return checkpointed(self.model) if self.settings.grad_checkpoint else nullcontext()

    def _loss(
        self, params: Params, inputs: Inputs, counted: mx.array, parts: int
    ) -> tuple[mx.array, Terms]:
        """The loss times the number of labels, or of episodes.

        Divided only after the backward pass: in float16 the gradients of a mean could vanish.
        """
        set_adapter_params(self.model, params)
        terms = self.objective.terms(inputs, self.settings.margin)
        regulariser = self.sparsity(self._joint_beta(terms))
        taught = (mx.array(self.settings.kl_weights) * terms.kl_sum).sum()
        return terms.ce_sum + terms.missing + taught + counted / parts * regulariser, terms

    def _joint_beta(self, terms: Terms) -> mx.array:
        """The mean gates over all processes, with the gradient of this process's part."""
        if self.group is None:
            return terms.read_beta
        mine = terms.read_beta * terms.tokens
        total = self._sum(mx.concatenate([mx.stop_gradient(mine), terms.tokens[None]]))
        return (total[:-1] + mine - mx.stop_gradient(mine)) / total[-1]

    def figures(self, terms: Sequence[Terms]) -> Figures:
        """Figures of some batches, over all processes."""
        rows = [
            mx.concatenate(
                [
                    mx.stack([t.ce_sum, t.labelled, t.tokens, t.written, t.missing]),
                    t.kl_sum,
                    t.taught,
                    mx.stack([t.write_beta.mean(), t.state_norm.mean()]) * t.written,
                    t.read_beta * t.tokens,
                ]
            )
            for t in terms
        ]
        total = self._sum(sum(rows, mx.zeros((11 + len(self.params),))))
        ce, labelled, tokens, written, missing = numbers(total[:5])
        kl, taught = numbers(total[5:7]), numbers(total[7:9])
        write, norm = numbers(total[9:11])
        read = total[11:] / max(tokens, 1)
        counted = labelled + taught[1]  # of the others the text is learned, too
        loss = ce + missing + sum(w * k for w, k in zip(self.settings.kl_weights, kl, strict=True))
        return Figures(
            loss=loss / max(counted, 1) + scalar(self.sparsity(read)),
            ce=ce / max(labelled, 1),
            kl=(kl[0] / max(taught[0], 1), kl[1] / max(taught[1], 1)),
            taught=(round(taught[0]) // self._alike, round(taught[1]) // self._alike),
            read_beta=scalar(read.mean()),
            write_beta=write / max(written, 1),
            state_norm=norm / max(written, 1),
            tokens=int(tokens + written) // self._alike,
            labelled=round(labelled) // self._alike,
        )

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.group is None:
            return flag
        return scalar(self._sum(mx.array(float(flag)))) > 0

    def first(self, text: str) -> str:
        """The text of the first process."""
        if self.group is None:
            return text
        mine = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        mine = mine if self.first_process else mine[:0]
        size = int(scalar(self._sum(mx.array(float(mine.size)))))
        padded = mx.array(np.pad(mine, (0, size - mine.size)))
        return np.array(self._sum(padded)).astype(np.uint8).tobytes().decode()

    def _sum(self, x: mx.array) -> mx.array:
        if self.group is None:
            return x
        return mx.distributed.all_sum(x, group=self.group, stream=mx.cpu)

    def _sum_tree(self, tree: Params) -> Params:
        """Sums over processes, in one message."""
        if self.group is None:
            return tree
        found = named_arrays(tree)
        names, arrays = list(found), list(found.values())
        flat = self._sum(mx.concatenate([a.astype(mx.float32).flatten() for a in arrays]))
        cuts = [sum(a.size for a in arrays[: i + 1]) for i in range(len(arrays) - 1)]
        parts = [p.reshape(a.shape) for p, a in zip(mx.split(flat, cuts), arrays, strict=True)]
        return tree_unflatten(list(zip(names, parts, strict=True)))

    def state(self) -> dict[str, mx.array]:
        """All that the next update depends on: weights and optimizer, by name."""
        return named_arrays({"adapter": self.params, "optimizer": self.optimizer.state})

    def set_state(self, state: dict[str, mx.array]) -> None:
        """Go on from the `state` that the first process has."""
        if self.group is not None:
            mine = state if self.first_process else self.state()
            held = 1 if self.first_process else 0
            state = {}
            for name in sorted(mine):
                value = self._sum(mine[name].astype(mx.float32) * held)
                mx.eval(value)
                state[name] = value.astype(mine[name].dtype)
        # In the order of a new run's: sums over the gradients follow it.
        names = list(self.state())
        tree = tree_unflatten([(name, state[name]) for name in names])
        self.params, self.optimizer.state = tree["adapter"], tree["optimizer"]
        mx.eval(self.params, self.optimizer.state)
        set_adapter_params(self.model, self.params)
