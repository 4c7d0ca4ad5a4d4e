"""How a run goes: everything that decides its result, beside the model and the data."""

import math
from dataclasses import dataclass

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run. An iteration is one batch, as in mlx-lm.

    Args:
        iters (int): Batches to train on.
        batch_size (int): Episodes a batch, over all processes.
        learning_rate (float): Its peak.
        lr_schedule (str): ``cosine`` falls to 0 at the end, ``constant`` does not.
        warmup (float): Share of the run in which the learning rate rises to its peak.
        grad_accumulation_steps (int): Batches an update of the weights.
        max_grad_norm (float): Gradients of a larger norm are scaled down to it; 0: none are.
        max_step (float): The learning rate of an array of weights is at most this share of their
          root mean square, as in Adafactor; 0: the same for all. How large weights are that were
          fitted to a model follows from how large its hidden states are.
        seed (int): Order of the data and context dropout follow from it.
        state_only_prob, no_memory_prob (float): Context dropout: how often only the last message
          is visible, and how often nothing was written.
        write_visible (bool): Write in the read pass, too: the visible messages and the replies, as
          decoding does. Off is the paper's objective.
        count_alike (bool): The loss is the mean over episodes, not over the tokens of all: a short
          answer counts as much as a long text.
        distill (float): Weight of the divergence from what the plain model says that has the
          history in its context, beside the text that is learned; 0: the text alone.
        no_harm (float): Weight of the divergence from the plain model in episodes whose targets
          have nothing to do with their history.
        margin (float): Nats by which the loss with another conversation's memory is to be above
          that with the own; what is missing is added to the loss. 0: it is not asked.
        write_sparsity, write_target (float): Weight of the write sparsity term, and the mean write
          gate it pulls to.
        steps_per_report, steps_per_eval, save_every (int): Iterations between reports,
          validations, checkpoints.
        val_batches (int): Batches a validation; -1: all.
        grad_checkpoint (bool): Compute activations again in the backward pass, for less memory.
        clear_cache_threshold (int): Freed memory that MLX may keep between iterations, in bytes.
        pad_multiple (int): Widths of batches are multiples of this.

    Raises:
        ValueError: If values are out of range; all of them are listed.
    """

    iters: int = 1000
    batch_size: int = 4
    learning_rate: float = 2e-4
    lr_schedule: str = "cosine"
    warmup: float = 0.1
    grad_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    max_step: float = 0.0
    seed: int = 0
    state_only_prob: float = 0.2
    no_memory_prob: float = 0.0
    write_visible: bool = False
    count_alike: bool = False
    distill: float = 0.0
    no_harm: float = 1.0
    margin: float = 0.0
    write_sparsity: float = 0.01
    write_target: float = 0.05
    steps_per_report: int = 10
    steps_per_eval: int = 200
    save_every: int = 100
    val_batches: int = 25
    grad_checkpoint: bool = False
    clear_cache_threshold: int = 1 << 30
    pad_multiple: int = 8

    def __post_init__(self) -> None:
        wrong = list(self._problems())
        if wrong:
            raise ValueError("Training settings: " + "; ".join(wrong) + ".")

    def _problems(self) -> list[str]:
        whole = ["iters", "batch_size", "grad_accumulation_steps", "pad_multiple"]
        whole += ["steps_per_report", "steps_per_eval", "save_every"]
        wrong = [
            f"{name} is {getattr(self, name)}; expected at least 1"
            for name in whole
            if getattr(self, name) < 1
        ]
        not_negative = ["max_grad_norm", "seed", "write_sparsity", "clear_cache_threshold"]
        not_negative += ["max_step", "distill", "no_harm", "margin"]
        wrong += [
            f"{name} is {getattr(self, name)}; expected 0 or more"
            for name in not_negative
            if not 0 <= getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} is {getattr(self, name)}; expected 0 to 1"
            for name in ("warmup", "state_only_prob", "no_memory_prob", "write_target")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.state_only_prob + self.no_memory_prob > 1:
            wrong.append("state_only_prob and no_memory_prob: their sum is above 1")
        if not 0 < self.learning_rate < math.inf:
            wrong.append(f"learning_rate is {self.learning_rate}; expected a positive number")
        if self.lr_schedule not in SCHEDULES:
            wrong.append(f"lr_schedule is {self.lr_schedule!r}; expected {' or '.join(SCHEDULES)}")
        if self.val_batches < 1 and self.val_batches != -1:
            wrong.append(f"val_batches is {self.val_batches}; expected at least 1, or -1 for all")
        if self.margin > 0 and self.batch_size == 1:
            wrong.append(
                f"margin is {self.margin} and batch_size 1: a conversation needs another beside "
                "it, so take 2 or more"
            )
        if self.iters < self.grad_accumulation_steps:
            wrong.append(
                f"iters is {self.iters}, less than the {self.grad_accumulation_steps} of one "
                "update (grad_accumulation_steps)"
            )
        return wrong

    @property
    def kl_weights(self) -> tuple[float, float]:
        """Weights of the divergences in `Terms.kl_sum`."""
        return self.distill, self.no_harm

    @property
    def updates(self) -> int:
        """Updates of the weights in the whole run."""
        return self.iters // self.grad_accumulation_steps

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        warm = round(self.warmup * self.updates)
        if update < warm:
            return self.learning_rate * (update + 1) / warm
        if self.lr_schedule == "constant":
            return self.learning_rate
        done = (update - warm) / max(1, self.updates - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
