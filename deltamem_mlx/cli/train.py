"""`deltamem-mlx train`: an adapter from conversations."""

from pathlib import Path

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import FAILED, INTERRUPTED
from deltamem_mlx.cli.frame.session import ChatTemplateConfig
from deltamem_mlx.cli.frame.train_setup import check, set_up
from deltamem_mlx.cli.frame.train_view import finish, listeners, show_plan, watching
from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.cli.options import train as t


@command(
    "deltamem-mlx train --model Qwen/Qwen3-4B-Instruct-2507 --data conversations/ "
    "--adapter-path adapters/mine --iters 200",
    "deltamem-mlx train -c train.yaml --resume",
    "deltamem-mlx train --model MODEL --data more/ --resume-adapter-file adapters/mine "
    "--adapter-path adapters/mine-2 --learning-rate 5e-5",
    "mlx.launch -n 2 deltamem-mlx train --model MODEL --data conversations/",
)
def train(
    model: o.Model = None,
    data: t.Data = None,
    adapter_path: t.Out = Path("adapters"),
    resume: t.Resume = False,
    overwrite: t.Overwrite = False,
    resume_adapter_file: t.ResumeFile = None,
    iters: t.Iters = None,
    epochs: t.Epochs = None,
    batch_size: t.BatchSize = 4,
    learning_rate: t.LearningRate = 2e-4,
    lr_schedule: t.LrSchedule = "cosine",
    warmup: t.Warmup = 0.1,
    grad_accumulation_steps: t.Accumulation = 1,
    max_grad_norm: t.MaxGradNorm = 1.0,
    grad_checkpoint: t.GradCheckpoint = False,
    seed: t.Seed = 0,
    clear_cache_threshold: t.ClearCache = 1 << 30,
    rank: t.Rank = None,
    alpha: t.Alpha = None,
    delta_heads: t.Heads = None,
    num_state_heads: t.StateHeads = None,
    write_granularity: t.Granularity = None,
    output_init: t.OutputInit = None,
    beta_bias_init: t.BetaBias = None,
    online_gain: t.OnlineGain = None,
    target_layers: t.TargetLayers = None,
    adapter_settings: t.AdapterSettings = None,
    max_seq_length: t.MaxLength = 512,
    max_write_length: t.MaxWriteLength = 8192,
    episode_recent_messages: t.Recent = 1,
    assistant_loss_mode: t.LossMode = "final_assistant_only",
    state_only_prob: t.StateOnly = 0.2,
    no_memory_prob: t.NoMemory = 0.0,
    write_visible: t.WriteVisible = False,
    write_sparsity: t.Sparsity = 0.01,
    write_target: t.WriteTarget = 0.05,
    chat_template_config: ChatTemplateConfig = None,
    steps_per_report: t.ReportEvery = 10,
    steps_per_eval: t.EvalEvery = 200,
    val_batches: t.ValBatches = 25,
    save_every: t.SaveEvery = 100,
    test: t.Test = False,
    test_batches: t.TestBatches = 500,
    report_to: t.ReportTo = None,
    project_name: t.ProjectName = None,
    trust_remote_code: o.TrustRemoteCode = False,
    json: o.Json = False,
) -> None:
    """Train an adapter on conversations.

    Of every conversation, the older messages are written into the memory and dropped, and a reply
    is learned with the rest in view: the adapter learns what to keep. The model stays as it is.

    The output folder holds a working adapter from the first moment on, numbered copies, metrics
    and a curve. Ctrl-C saves; --resume goes on.
    """
    options = dict(locals())
    check(options)

    import mlx.core as mx

    first = mx.distributed.init().rank() == 0
    output.settings.quiet |= not first
    setup = set_up(options)
    from deltamem_mlx.training.trainer import Trainer

    trainer = Trainer(
        setup.model,
        setup.train,
        setup.valid,
        setup.settings,
        adapter_path,
        listeners=listeners(options) if first else (),
        resume=resume,
        overwrite=overwrite,
    )
    if resume and not trainer.resumed:
        output.note(f"No run to resume in {adapter_path}: it begins anew.")
    show_plan(options, setup, trainer)
    scored = None
    try:
        with watching(trainer):
            outcome = trainer.run()
            if test and outcome.finished and len(setup.test):
                scored = trainer.evaluate(setup.test, most=test_batches).ce
    except ArithmeticError as error:
        output.fail(str(error))
        raise typer.Exit(FAILED) from error
    if first:
        finish(options, outcome, scored)
    if not outcome.finished:
        raise typer.Exit(INTERRUPTED)
