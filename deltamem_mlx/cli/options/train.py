"""The options of `train`: mlx_lm.lora's where they mean the same, then those of a δ-mem."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from deltamem_mlx.cli.frame.session import ChatTemplateConfig
from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.cli.options.course import Hours, OwnCourse
from deltamem_mlx.training.settings import TrainSettings

DATA, RUN, MEMORY, EPISODES, OUTPUT = (
    "Data and output",
    "Training",
    "Adapter (of a new one)",
    "Episodes",
    "Reports",
)


def _option(*flags: str, panel: str, help: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=escape(help), rich_help_panel=panel, **settings)


Data = Annotated[
    str | None,
    _option(
        "--data",
        panel=DATA,
        metavar="FOLDER|FILE|REPO",
        help="Conversations: a folder with train.jsonl (valid.jsonl, test.jsonl), a .json or "
        ".jsonl file, or a dataset of the Hub. Without: the package's own course.",
    ),
]
Out = Annotated[
    Path,
    _option("--adapter-path", panel=DATA, metavar="FOLDER", help="Where the adapter is written."),
]
ResumeFile = Annotated[
    str | None,
    _option(
        "--resume-adapter-file",
        panel=DATA,
        metavar="FILE|FOLDER|REPO",
        help="Begin with the weights of this adapter, in a run of its own.",
    ),
]
Resume = Annotated[
    bool,
    _option(
        "--resume",
        panel=DATA,
        help="Go on with the run in --adapter-path: it ends as if it had never stopped.",
    ),
]
Overwrite = Annotated[
    bool,
    _option(
        "--overwrite",
        panel=DATA,
        help="Begin anew in place of the adapter or the run that is in --adapter-path.",
    ),
]
Iters = Annotated[
    int | None,
    _option("--iters", panel=RUN, min=1, help="Batches to train on.  [default: 1000]"),
]
Epochs = Annotated[
    float | None,
    _option("--epochs", panel=RUN, help="How often to see every episode, instead of --iters."),
]
BatchSize = Annotated[
    int, _option("--batch-size", panel=RUN, min=1, help="Episodes a batch, over all processes.")
]
LearningRate = Annotated[
    float, _option("--learning-rate", panel=RUN, help="The peak of the learning rate.")
]
LrSchedule = Annotated[
    str,
    _option("--lr-schedule", panel=RUN, metavar="cosine|constant", help="cosine falls to 0."),
]
Warmup = Annotated[
    float,
    _option("--warmup", panel=RUN, help="Share of the run in which the learning rate rises."),
]
Accumulation = Annotated[
    int,
    _option("--grad-accumulation-steps", panel=RUN, min=1, help="Batches an update of weights."),
]
MaxGradNorm = Annotated[
    float,
    _option("--max-grad-norm", panel=RUN, help="Scale larger gradients down to this; 0: do not."),
]
GradCheckpoint = Annotated[
    bool,
    _option(
        "--grad-checkpoint",
        panel=RUN,
        help="Take less memory and more time: compute activations again when needed.",
    ),
]
TensorParallel = Annotated[
    bool,
    _option(
        "--tensor-parallel",
        panel=RUN,
        help="Under mlx.launch: a part of the model in each process, which all work on each batch. "
        "For models larger than one machine. Default: the model in each, and a part of the batch.",
    ),
]
Seed = Annotated[
    int, _option("--seed", panel=RUN, min=0, help="Weights, order and dropout follow from it.")
]
ClearCache = Annotated[
    int,
    _option(
        "--clear-cache-threshold",
        panel=RUN,
        min=0,
        metavar="BYTES",
        help="Let MLX keep this much freed memory.",
    ),
]
Rank = Annotated[
    int | None, _option("--rank", panel=MEMORY, help="Side r of a state.  [default: 8]")
]
Alpha = Annotated[
    float | None,
    _option("--alpha", panel=MEMORY, help="Corrections are scaled by alpha/rank.  [default: 16]"),
]
Heads = Annotated[
    str | None,
    _option(
        "--delta-heads",
        panel=MEMORY,
        metavar="q,k,v,o",
        help="Projections that are corrected.  [default: q,o]",
    ),
]
StateHeads = Annotated[
    int | None,
    _option("--num-state-heads", panel=MEMORY, help="States a layer.  [default: 1]"),
]
Granularity = Annotated[
    str | None,
    _option(
        "--write-granularity",
        panel=MEMORY,
        metavar="token|message_mean|sentence_mean",
        help="What is written at once.  [default: token]",
    ),
]
OutputInit = Annotated[
    str | None,
    _option(
        "--output-init",
        panel=MEMORY,
        metavar="zero|random|base_slice|base_slice_fixed",
        help="First weights of the corrections.  [default: base_slice_fixed]",
    ),
]
BetaBias = Annotated[
    float | None,
    _option(
        "--beta-bias-init", panel=MEMORY, help="First bias of the write gate.  [default: -1.5]"
    ),
]
OnlineGain = Annotated[
    float | None,
    _option(
        "--online-gain",
        panel=MEMORY,
        help="Size of the first weights of the corrections.  [default: 0.05]",
    ),
]
TargetLayers = Annotated[
    str | None,
    _option(
        "--target-layers",
        panel=MEMORY,
        metavar="0,1,2",
        help="Layers that get a memory.  [default: all]",
    ),
]
AdapterSettings = Annotated[
    str | None,
    _option(
        "--adapter-settings",
        panel=MEMORY,
        metavar="JSON",
        help="""More keys of a delta_mem_config.json, such as '{"couple_lambda": false}'.""",
    ),
]
MaxLength = Annotated[
    int,
    _option("--max-seq-length", "--max-length", panel=EPISODES, help="Tokens kept of a read part."),
]
MaxWriteLength = Annotated[
    int, _option("--max-write-length", panel=EPISODES, help="Tokens kept of a write part.")
]
Recent = Annotated[
    int,
    _option(
        "--episode-recent-messages",
        panel=EPISODES,
        help="Messages that stay visible; what is older is written into the memory.",
    ),
]
LossMode = Annotated[
    str,
    _option(
        "--assistant-loss-mode",
        panel=EPISODES,
        metavar="final_assistant_only|all_assistant_turns|visible_assistant_turns",
        help="What is learned: the last reply; every reply, each with a write pass of its own; "
        "or all visible replies after one write pass.",
    ),
]
StateOnly = Annotated[
    float,
    _option(
        "--state-only-prob",
        panel=EPISODES,
        help="How often only the last message is visible, and the rest in the memory.",
    ),
]
NoMemory = Annotated[
    float, _option("--no-memory-prob", panel=EPISODES, help="How often the memory is left empty.")
]
WriteVisible = Annotated[
    bool,
    _option(
        "--write-visible",
        panel=EPISODES,
        help="Write what is visible and learned, too, as a chat does while it answers.",
    ),
]
CountAlike = Annotated[
    bool,
    _option(
        "--count-alike",
        panel=EPISODES,
        help="Every episode counts alike, a short answer as much as a long text.",
    ),
]
Distill = Annotated[
    float, _option("--distill", panel=EPISODES, help="Weight of the plain model told in context.")
]
NoHarm = Annotated[
    float, _option("--no-harm", panel=EPISODES, help='Its weight in rows with "unrelated": true.')
]
Margin = Annotated[
    float, _option("--margin", panel=EPISODES, help="Nats to lose more with another's memory.")
]
Sparsity = Annotated[
    float,
    _option("--write-sparsity", panel=EPISODES, help="Weight of the term that closes write gates."),
]
WriteTarget = Annotated[
    float, _option("--write-target", panel=EPISODES, help="The mean write gate it pulls to.")
]
ReportEvery = Annotated[
    int,
    _option("--steps-per-report", panel=OUTPUT, min=1, help="Iterations between reports."),
]
EvalEvery = Annotated[
    int,
    _option("--steps-per-eval", panel=OUTPUT, min=1, help="Iterations between validations."),
]
ValBatches = Annotated[
    int, _option("--val-batches", panel=OUTPUT, help="Batches a validation; -1: all.")
]
SaveEvery = Annotated[
    int, _option("--save-every", panel=OUTPUT, min=1, help="Iterations between checkpoints.")
]
Test = Annotated[bool, _option("--test", panel=OUTPUT, help="Evaluate on the test set at the end.")]
TestBatches = Annotated[
    int, _option("--test-batches", panel=OUTPUT, help="Batches of the test set; -1: all.")
]
ReportTo = Annotated[
    str | None,
    _option("--report-to", panel=OUTPUT, metavar="wandb,swanlab", help="Services to report to."),
]
ProjectName = Annotated[
    str | None, _option("--project-name", panel=OUTPUT, help="The project's name there.")
]


@dataclass(frozen=True)
class TrainOptions:
    """What `train` was asked for. Defaults of the run are those of ``TrainSettings``."""

    model: o.Model = None
    data: Data = None
    course: OwnCourse = False
    hours: Hours = None
    adapter_path: Out = Path("adapters")
    resume: Resume = False
    overwrite: Overwrite = False
    resume_adapter_file: ResumeFile = None
    iters: Iters = None
    epochs: Epochs = None
    batch_size: BatchSize = TrainSettings.batch_size
    learning_rate: LearningRate = TrainSettings.learning_rate
    lr_schedule: LrSchedule = TrainSettings.lr_schedule
    warmup: Warmup = TrainSettings.warmup
    grad_accumulation_steps: Accumulation = TrainSettings.grad_accumulation_steps
    max_grad_norm: MaxGradNorm = TrainSettings.max_grad_norm
    grad_checkpoint: GradCheckpoint = TrainSettings.grad_checkpoint
    seed: Seed = TrainSettings.seed
    clear_cache_threshold: ClearCache = TrainSettings.clear_cache_threshold
    rank: Rank = None
    alpha: Alpha = None
    delta_heads: Heads = None
    num_state_heads: StateHeads = None
    write_granularity: Granularity = None
    output_init: OutputInit = None
    beta_bias_init: BetaBias = None
    online_gain: OnlineGain = None
    target_layers: TargetLayers = None
    adapter_settings: AdapterSettings = None
    max_seq_length: MaxLength = 512
    max_write_length: MaxWriteLength = 8192
    episode_recent_messages: Recent = 1
    assistant_loss_mode: LossMode = "final_assistant_only"
    state_only_prob: StateOnly = TrainSettings.state_only_prob
    no_memory_prob: NoMemory = TrainSettings.no_memory_prob
    write_visible: WriteVisible = TrainSettings.write_visible
    count_alike: CountAlike = TrainSettings.count_alike
    distill: Distill = TrainSettings.distill
    no_harm: NoHarm = TrainSettings.no_harm
    margin: Margin = TrainSettings.margin
    write_sparsity: Sparsity = TrainSettings.write_sparsity
    write_target: WriteTarget = TrainSettings.write_target
    chat_template_config: ChatTemplateConfig = None
    steps_per_report: ReportEvery = TrainSettings.steps_per_report
    steps_per_eval: EvalEvery = TrainSettings.steps_per_eval
    val_batches: ValBatches = TrainSettings.val_batches
    save_every: SaveEvery = TrainSettings.save_every
    test: Test = False
    test_batches: TestBatches = 500
    report_to: ReportTo = None
    project_name: ProjectName = None
    tensor_parallel: TensorParallel = False
    trust_remote_code: o.TrustRemoteCode = False
    json: o.Json = False
