"""How deep a model is, and when, while it is pre-trained."""

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise


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
