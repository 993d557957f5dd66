"""What happens between the steps, and what the terminal shows of it."""

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
    """Log from a callback, and leave the step's own log line to come: the library takes any for that one."""
    due = trainer.control.should_log
    trainer.log(logs)
    trainer.control.should_log = due


class NewEpochCallback(TrainerCallback):
    """New masks every epoch. Called before the loader starts, so that its workers see it."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.trainer.data_collator, "set_epoch"):
            # A run resumed in the middle of an epoch begins with a fraction here.
            self.trainer.data_collator.set_epoch(int(state.epoch or 0))
        self.trainer.stopwatch.lap()


class PaceCallback(TrainerCallback):
    """Plans a run that ends by the clock, and ends it."""

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
    """Notices SIGTERM, by which a scheduler announces that it will end the job, and the first Ctrl-C; the Trainer acts
    on them between steps. A second Ctrl-C ends the run at once.

    Transformers' own `enable_jit_checkpoint` waits three seconds, saves in the middle of a step too, where no run can
    continue exactly, lets every process decide for itself, and then returns as if training were complete.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._noticed: int | None = None
        self._previous_step: LateNumber | None = None

    def __enter__(self):
        self._noticed, self._previous, self._process, self._previous_step = None, {}, os.getpid(), None
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither ignored nor somebody else's
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._notice)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number, frame):
        if os.getpid() != self._process:
            return  # a loader's worker, which a terminal's Ctrl-C meets too: the step still needs it
        self._noticed = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with contextlib.suppress(OSError):  # not by print, in the middle of which the signal may have come
                os.write(2, b"\nfinishing the step and saving; Ctrl-C again ends the run at once\n")

    def requested(self) -> bool:
        """Whether any process of the run was told to end: all of them learn it at the same step."""
        return any_rank(self._noticed is not None, self.device)

    def requested_before(self) -> bool:
        """The same of the end of the step before, where several processes would have to wait for their devices. To be
        asked once a step."""
        if not is_distributed() or self.device.type == "cpu":
            return self.requested()
        previous, self._previous_step = (
            self._previous_step,
            LateNumber(flags_set(self._noticed is not None, self.device)),
        )
        return previous is not None and previous.value() > 0

    def stop(self, step: int | None) -> Preempted | Interrupted:
        """What ends the run, of which `step` is saved. Every process has to ask."""
        by_keyboard = any_rank(self._noticed == signal.SIGINT, self.device)
        return Interrupted(step) if by_keyboard else Preempted(step)

    def on_prediction_step(self, args, state, control, **kwargs):
        """An evaluation may take minutes, and nothing of the run's state depends on it."""
        if self.requested():
            raise Preempted


def outlived(callback: TrainerCallback) -> TrainerCallback:
    """A callback that only reports, made so that no error of its own ends the run: it is named once, and the callback
    is not called again."""
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
                logger.warning(f"{type(callback).__name__} reports nothing more; training continues: {reason}")
                return None

        return call

    for name in dir(TrainerCallback):
        if name.startswith("on_"):
            setattr(callback, name, shielded(getattr(callback, name)))
    return callback


@contextlib.contextmanager
def quiet_event_writers() -> Iterator[None]:
    """Without the traceback that TensorBoard's thread prints of an error which its next call raises anyway."""
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
    """Transformers' progress bar, with the numbers of a step on one line of words instead of a long dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.total = state.max_steps  # which a run that ends by the clock plans anew
            if line := one_line(logs, state):
                self.training_bar.write(line)


class OneLinePrinterCallback(PrinterCallback):
    """The same lines where there is no progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and (line := one_line(logs, state)):
            print(line, flush=True)


def show_lines(trainer) -> None:
    """Print a line for each log, in the place of what the library prints."""
    for theirs, ours in (
        (ProgressCallback, OneLineProgressCallback),
        (PrinterCallback, OneLinePrinterCallback),
    ):
        if trainer.pop_callback(theirs):
            trainer.add_callback(ours)


# Of a log, what is shown, and how; what comes last is left out first where the line is too long.
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
    """The numbers of a training step or of an evaluation, as many as fit the terminal (80 columns where there is
    none); empty for anything else."""
    columns = shutil.get_terminal_size().columns
    parts = [text.format(logs[name]) for name, text in SHOWN if name in logs]
    if not parts:
        return ""
    line = f"{state.global_step}/{state.max_steps}"
    for part in parts:
        if len(line) + 2 + len(part) <= columns:
            line += f"  {part}"
    return line
