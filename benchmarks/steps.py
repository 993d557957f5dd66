"""Shared by the step benchmarks: a training step, and records of times."""

import statistics
import time

import torch

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.trainers import ElectraAdamW, ElectraMuon
from modeling_electra_exit.trainers.runtime import cpu_kernels
from modeling_electra_exit.trainers.runtime.muon import layer_matrices


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def made_up_batch(config, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """A batch of random tokens in the format of the collator for the model's generator. The cost of a step does not
    depend on the tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (batch_size, length), generator=generator)
    masked = torch.rand(batch_size, length, generator=generator).argsort(1)[:, : round(0.15 * length)]
    labels = torch.full_like(ids, -100).scatter(1, masked, ids.gather(1, masked))
    batch = {"input_ids": ids.scatter(1, masked, 4), "mlm_labels": labels}
    batch |= {"masked_positions": masked.sort(dim=1).values, "noise_seeds": torch.arange(batch_size)}
    return {name: values.to(device()) for name, values in batch.items()}


class OurStep:
    """A training step as `electra-exit pretrain` runs it, without exits for `exit_policy="none"`.

    With a generator outside the model, the batch is already corrupted, as by the collator. `full_depth` runs a model
    with exits at full depth, as in a dense phase; `muon` is `--optim muon`. `update_seconds` is the CPU time of the
    optimizer in the last step, on a CPU.
    """

    update_seconds: float | None = None

    def __init__(
        self,
        config: ElectraEarlyExitConfig,
        batch_size: int,
        length: int,
        bf16: bool,
        kernels: bool = True,
        full_depth: bool = False,
        muon: bool = False,
    ):
        torch.manual_seed(0)
        self.model = ElectraEarlyExitForPreTraining(config).train().to(device())
        cpu_kernels.suit_attention(self.model, device())
        adam = {"lr": 1e-4, "eps": 1e-6, "fused": True}
        if muon:
            self.optimizer = ElectraMuon(self.model.parameters(), layer_matrices(self.model), **adam)
        else:
            self.optimizer = ElectraAdamW(self.model.parameters(), **adam)
        self.batch = made_up_batch(config, batch_size, length)
        if config.generator_type != "mlm":
            labels = self.batch.pop("mlm_labels")
            self.batch["labels"] = (labels != -100).long()
        self.batch["exit_policy"] = "none" if full_depth else config.exit_policy
        self.bf16, self.kernels = bf16, kernels and device() == "cpu"

    def __call__(self):
        with cpu_kernels.use(self.kernels):
            with torch.autocast(device(), torch.bfloat16, enabled=self.bf16):
                loss = self.model(**self.batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            start = time.process_time()
            self.optimizer.step()
            if device() == "cpu":  # on a GPU the update is asynchronous
                self.update_seconds = time.process_time() - start
            self.optimizer.zero_grad()


def records(prefix: str, metric: str, unit: str, values: dict[str, float], baseline: str, samples=None) -> list[dict]:
    """One record per variant; `ratio` is its value divided by that of the variant `baseline`."""
    return [
        {
            "name": f"{prefix}/{variant}",
            "metric": metric,
            "value": value,
            "unit": unit,
            "baseline": f"{prefix}/{baseline}",
            "ratio": value / values[baseline],
            "samples": samples[variant] if samples else [value],
        }
        for variant, value in values.items()
    ]


def timing_records(prefix: str, samples: dict[str, list[float]], tokens: int, baseline: str) -> list[dict]:
    medians = {variant: statistics.median(seconds) for variant, seconds in samples.items()}
    speeds = {variant: tokens / seconds for variant, seconds in medians.items()}
    return [
        *records(prefix, "step_seconds", "s", medians, baseline, samples),
        *records(prefix, "tokens_per_second", "tokens/s", speeds, baseline),
    ]


def spread(seconds: list[float]) -> str:
    """The median and the interquartile range, in milliseconds."""
    low, _, high = statistics.quantiles(seconds, n=4)
    return f"{statistics.median(seconds) * 1e3:.0f} ms ({low * 1e3:.0f}-{high * 1e3:.0f})"
