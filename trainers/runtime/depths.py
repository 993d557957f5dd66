"""Depth schedules: the number of layers over the course of pre-training."""

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise


# The value of `--depth_schedule` that lets the run choose its depths, and the shares of the run at which it decides.
# Layers added later would have too little time to train.
AUTO = "auto"
DECISIONS = (0.15, 0.35, 0.55)
LEAST_DEPTH = 2


@dataclass(frozen=True)
class DepthSchedule:
    """Stages of a run, each with its own depth.

    depths: number of layers in each stage, strictly increasing.
    ends: end of each stage, as a share of the run; the last is 1.
    """

    depths: tuple[int, ...]
    ends: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "DepthSchedule":
        """`2:0.15,4:0.55,8`: two layers for 15 % of the run, four for the next 55 %, then eight.

        Raises:
            ValueError: if `text` has another form.
        """
        form = (
            "`depth_schedule` must be increasing depths with their shares of the run, and a last depth for the rest, "
            f"such as 2:0.15,4:0.55,8; got {text}"
        )
        *stages, last = str(text).replace(" ", "").split(",")
        pairs = [re.fullmatch(r"(\d+):(0?\.\d+)", stage) for stage in stages]
        if not stages or not all(pairs) or not last.isdigit():
            raise ValueError(form)
        depths = (*(int(pair[1]) for pair in pairs), int(last))
        ends = tuple(accumulate(float(pair[2]) for pair in pairs))
        rises = all(lower < higher for lower, higher in pairwise(depths))
        if depths[0] < 1 or not rises or not all(float(pair[2]) for pair in pairs) or not ends[-1] < 1:
            raise ValueError(form)
        return cls(depths, (*ends, 1.0))

    def fits(self, depth: int) -> None:
        """Raises: ValueError if the schedule does not end with `depth` layers."""
        if self.depths[-1] != depth:
            raise ValueError(
                f"the last depth of `depth_schedule` must be `num_hidden_layers`, {depth}, got {self.depths[-1]}"
            )

    def stage_at(self, progress: float) -> int:
        """Index of the stage at `progress`, a share of the run from 0 to 1; at the end of a stage, the next one."""
        return next((number for number, end in enumerate(self.ends) if progress < end), len(self.ends) - 1)

    def last_step(self, stage: int, max_steps: int) -> int:
        """Number of steps of a run of `max_steps` after which a stage ends."""
        return round(self.ends[stage] * max_steps)

    def stage_after(self, step: int, max_steps: int) -> int:
        """As [`stage_at`], for the progress after `step` of `max_steps` steps."""
        last = len(self.ends) - 1
        return next((stage for stage in range(last) if step < self.last_step(stage, max_steps)), last)


def doubling(depth: int) -> tuple[int, ...]:
    """Depths that double up to `depth`, such as 2, 4, 8 or 3, 6, 12."""
    depths = [depth]
    while depths[0] % 2 == 0 and depths[0] // 2 >= LEAST_DEPTH:
        depths.insert(0, depths[0] // 2)
    return tuple(depths)


@dataclass(frozen=True)
class FoundDepths(DepthSchedule):
    """Stages at whose ends a measurement decides whether the model grows.

    depths: possible depths, strictly increasing.
    ends: shares of the run at which to measure, followed by 1.
    """

    @classmethod
    def of(cls, depth: int) -> "FoundDepths":
        """The schedule for a model of at most `depth` layers.

        Raises:
            ValueError: if `depth` cannot be halved.
        """
        depths = doubling(depth)
        if len(depths) == 1:
            raise ValueError(
                f"`num_hidden_layers` must be an even number of at least {2 * LEAST_DEPTH} for `depth_schedule` auto, "
                f"which starts with a half of it or less, got {depth}"
            )
        return cls(depths, (*DECISIONS, 1.0))

    def next_depth(self, depth: int) -> int | None:
        """The next larger depth; `None` at the largest."""
        return next((larger for larger in self.depths if larger > depth), None)


def read_depths(text: str, depth: int) -> DepthSchedule:
    """The schedule in `text`, a value of `--depth_schedule`, for a model of finally `depth` layers.

    Raises:
        ValueError: if the text is malformed or does not fit the depth.
    """
    schedule = FoundDepths.of(depth) if text == AUTO else DepthSchedule.parse(text)
    schedule.fits(depth)
    return schedule
