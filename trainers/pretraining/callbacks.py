"""Callbacks between training steps, and the output on the terminal."""

import contextlib
import functools
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from ..errors import Interrupted, Preempted
from ..runtime.distributed import any_rank, flags_set, is_distributed
from ..runtime.late import LateNumber


logger = logging.getLogger(__name__)


def log_beside(trainer, logs: dict[str, float]) -> None:
    """Log from a callback without suppressing the log of the step: `Trainer` takes any log for that one."""
    due = trainer.control.should_log
    trainer.log(logs)
    trainer.control.should_log = due


class NewEpochCallback(TrainerCallback):
    """Passes the epoch to the collator, for new masks, before the data loader starts its workers."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.trainer.data_collator, "set_epoch"):
            # `state.epoch` is fractional if a run is resumed within an epoch.
            self.trainer.data_collator.set_epoch(int(state.epoch or 0))
        self.trainer.stopwatch.lap()


class PaceCallback(TrainerCallback):
    """Plans and ends a run with a time limit."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.pace.start(state.global_step, self.trainer.cost_of())
        self.trainer.plan()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.pace.due(state.global_step):
            self.trainer.plan()
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != "no"


class PreemptionCallback(TrainerCallback):
    """Handles SIGTERM, which schedulers send before they end a job, and the first Ctrl-C. The Trainer stops between
    steps. A second Ctrl-C ends the run at once.

    Transformers' `enable_jit_checkpoint` is not used: it waits three seconds, may save in the middle of a step, from
    which a run cannot be resumed exactly, decides in each process separately, and returns as if training were
    complete.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._noticed: int | None = None
        self._previous_step: LateNumber | None = None

    def __enter__(self):
        self._noticed, self._previous, self._process, self._previous_step = None, {}, os.getpid(), None
        if threading.current_thread() is threading.main_thread():  # other threads cannot set signal handlers
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither ignored nor a custom handler
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._notice)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number, frame):
        if os.getpid() != self._process:
            return  # a data loader worker, which also receives Ctrl-C, but is still needed for the current step
        self._noticed = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with contextlib.suppress(OSError):  # `print` is not reentrant
                os.write(2, b"\nfinishing the step and saving a checkpoint; press Ctrl-C again to end at once\n")

    def requested(self) -> bool:
        """Whether any process of the run has received a signal. A collective call."""
        return any_rank(self._noticed is not None, self.device)

    def requested_before(self) -> bool:
        """As [`requested`], but for several processes on accelerators as of the end of the previous step, which avoids
        a host-device synchronization. Must be called once per step."""
        if not is_distributed() or self.device.type == "cpu":
            return self.requested()
        previous, self._previous_step = (
            self._previous_step,
            LateNumber(flags_set(self._noticed is not None, self.device)),
        )
        return previous is not None and previous.value() > 0

    def stop(self, step: int | None) -> Preempted | Interrupted:
        """The exception that ends the run; `step` is the step of the saved checkpoint. A collective call."""
        by_keyboard = any_rank(self._noticed == signal.SIGINT, self.device)
        return Interrupted(step) if by_keyboard else Preempted(step)

    def on_prediction_step(self, args, state, control, **kwargs):
        """Interrupts an evaluation, which may take minutes and does not change the state of the run."""
        if self.requested():
            raise Preempted


def outlived(callback: TrainerCallback) -> TrainerCallback:
    """Wrap a reporting callback, so that its errors do not end the run: the first error is logged, and the callback is
    disabled."""
    broken = False

    def shielded(method):
        @functools.wraps(method)
        def call(*args, **kwargs):
            nonlocal broken
            if broken:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:
                broken = True
                reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
                logger.warning(f"{type(callback).__name__} is disabled after an error; training continues: {reason}")
                return None

        return call

    for name in dir(TrainerCallback):
        if name.startswith("on_"):
            setattr(callback, name, shielded(getattr(callback, name)))
    return callback


@contextlib.contextmanager
def quiet_event_writers() -> Iterator[None]:
    """Suppress the traceback printed by TensorBoard's thread. The next call to TensorBoard raises the error anyway."""
    previous = threading.excepthook

    def hook(args):
        if not type(args.thread).__module__.startswith("tensorboard"):
            previous(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


class OneLineProgressCallback(ProgressCallback):
    """Transformers' progress bar, with the metrics of a step on one readable line instead of a dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.total = state.max_steps  # changes in a run with a time limit
            if line := one_line(logs, state):
                self.training_bar.write(line)


class OneLinePrinterCallback(PrinterCallback):
    """The same lines without a progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and (line := one_line(logs, state)):
            print(line, flush=True)


def show_lines(trainer) -> None:
    """Replace the library's output on the terminal by one line per log."""
    for theirs, ours in (
        (ProgressCallback, OneLineProgressCallback),
        (PrinterCallback, OneLinePrinterCallback),
    ):
        if trainer.pop_callback(theirs):
            trainer.add_callback(ours)


# Metrics shown on the terminal, and their formats. If the line is too long, the last ones are omitted.
SHOWN = (
    ("eval_loss", "held out"),
    ("loss", "loss {:.4g}"),
    ("discriminator_auc", "ROC-AUC {:.3f}"),
    ("eval_roc_auc", "ROC-AUC {:.4f}"),
    ("eval_average_precision", "average precision {:.4f}"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("generator_loss", "generator {:.2f}"),
    ("learning_rate", "lr {:.1e}"),
    ("exit_loss", "exits {:.3f}"),
    ("generator_equal_rate", "equal {:.0%}"),
)


def one_line(logs: dict, state: TrainerState) -> str:
    """The metrics of a training step or evaluation, as many as fit the terminal (80 columns without one); empty for
    other logs."""
    columns = shutil.get_terminal_size().columns
    parts = [text.format(logs[name]) for name, text in SHOWN if name in logs]
    if not parts:
        return ""
    line = f"{state.global_step}/{state.max_steps}"
    for part in parts:
        if len(line) + 2 + len(part) <= columns:
            line += f"  {part}"
    return line
