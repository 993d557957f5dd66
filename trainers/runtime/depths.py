"""How deep a model is, and when, while it is pre-trained."""

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise


# What `--depth_schedule` calls depths that are found in the run, and at which shares of it that is done. A model that
# grows later has no time left to learn what its new layers are for.
AUTO = "auto"
DECISIONS = (0.15, 0.35, 0.55)
LEAST_DEPTH = 2


@dataclass(frozen=True)
class DepthSchedule:
    """Stages of a run, each at its depth.

    depths: layers of each stage, rising.
    ends: where each stage ends, as a share of the run; the last is 1.
    """

    depths: tuple[int, ...]
    ends: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "DepthSchedule":
        """`2:0.15,4:0.55,8`: two layers for 15 % of the run, four for the next 55 %, then eight.

        Raises:
            ValueError: for anything of another form.
        """
        form = (
            "`depth_schedule` must be rising depths with their shares of the run, which leave some for the last, such "
            f"as 2:0.15,4:0.55,8; got {text}"
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
        """Raises: ValueError if a model of this depth is not what the schedule ends in."""
        if self.depths[-1] != depth:
            raise ValueError(
                f"the last depth of `depth_schedule` must be `num_hidden_layers`, {depth}, got {self.depths[-1]}"
            )

    def stage_at(self, progress: float) -> int:
        """The number of the stage in which a run is at a share of it from 0 to 1; at a stage's end, the next."""
        return next((number for number, end in enumerate(self.ends) if progress < end), len(self.ends) - 1)

    def last_step(self, stage: int, max_steps: int) -> int:
        """After how many of a run's steps a stage ends."""
        return round(self.ends[stage] * max_steps)

    def stage_after(self, step: int, max_steps: int) -> int:
        """As [`stage_at`], for a run that counts its steps."""
        last = len(self.ends) - 1
        return next((stage for stage in range(last) if step < self.last_step(stage, max_steps)), last)


def doubling(depth: int) -> tuple[int, ...]:
    """Depths that double up to the given one: 2, 4, 8, or 3, 6, 12."""
    depths = [depth]
    while depths[0] % 2 == 0 and depths[0] // 2 >= LEAST_DEPTH:
        depths.insert(0, depths[0] // 2)
    return tuple(depths)


@dataclass(frozen=True)
class FoundDepths(DepthSchedule):
    """Stages at whose ends a measurement says whether the model grows.

    depths: those that it may have, rising.
    ends: where it is measured, as shares of the run; and 1.
    """

    @classmethod
    def of(cls, depth: int) -> "FoundDepths":
        """For a model that may have so many layers.

        Raises:
            ValueError: if it has no shallower one to begin with.
        """
        depths = doubling(depth)
        if len(depths) == 1:
            raise ValueError(
                f"`depth_schedule` auto halves `num_hidden_layers` down to {LEAST_DEPTH} or 3: it must be an even "
                f"number of at least {2 * LEAST_DEPTH}, got {depth}"
            )
        return cls(depths, (*DECISIONS, 1.0))

    def next_depth(self, depth: int) -> int | None:
        """The next larger depth; `None` at the largest."""
        return next((larger for larger in self.depths if larger > depth), None)


def read_depths(text: str, depth: int) -> DepthSchedule:
    """The schedule that `--depth_schedule` says, for a model that ends with so many layers.

    Raises:
        ValueError: for one that does not fit.
    """
    schedule = FoundDepths.of(depth) if text == AUTO else DepthSchedule.parse(text)
    schedule.fits(depth)
    return schedule
