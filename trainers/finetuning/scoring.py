"""Score text with the discriminator: the probability that each token is a replacement. See `electra-exit score`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from modeling_electra_exit import ElectraEarlyExitForPreTraining

from ..data.tokenization import PIECE
from ..errors import UsageError
from ..runtime import cpu_kernels
from ..runtime.loading import OURS, architecture, load_for, read_config, read_tokenizer


# Number of texts that are sorted by length together: batches have little padding, and memory use is constant.
WINDOW = 4096
# Maximum tokens per batch, padding included.
BATCH_TOKENS = 8192


@dataclass
class Score:
    """The discriminator's scores for one text.

    tokens: the tokens of the text, including special ones, truncated to the model's positions.
    replaced: for each token, the probability that it is a replacement.
    pseudo_log_likelihood: the log-probability, in nats, that no token is a replacement, assuming independence.
    exit_layers: for each token, the layer where it exited; `None` at full depth.
    """

    tokens: list[str]
    replaced: list[float]
    pseudo_log_likelihood: float
    exit_layers: list[int] | None = None


class Scorer:
    """Scores texts with a pre-trained checkpoint.

    Args:
        checkpoint (`str`): folder or Hub id of an electra-exit or ELECTRA discriminator.
        exit_entropy_threshold (`float`, *optional*): a token exits, with the exit head's prediction, where the entropy
            of that prediction, in nats, is at most this. Default: full depth.

    Raises:
        UsageError: if there is no such checkpoint, it holds no discriminator, or a threshold is given and it has no
            exit heads.
    """

    def __init__(self, checkpoint: str, exit_entropy_threshold: float | None = None):
        config = read_config(checkpoint)
        if not architecture(config).endswith("ForPreTraining"):
            raise UsageError(f"{checkpoint} must hold a pre-trained discriminator, got {architecture(config)}")
        overrides = {}
        if exit_entropy_threshold is not None:
            overrides = {"exit_policy": "threshold", "exit_entropy_threshold": exit_entropy_threshold}
        if overrides and not (config.model_type == OURS and config.has_exit_heads):
            raise UsageError(f"--exit_entropy_threshold requires exit heads, but {checkpoint} has none")
        self.policy = "none" if exit_entropy_threshold is None else "threshold"
        self.tokenizer: PreTrainedTokenizerBase = read_tokenizer(checkpoint)
        self.model = load_for(ElectraEarlyExitForPreTraining, checkpoint, **overrides).eval()
        self.device = cpu_kernels.to_best_device(self.model)

    def __call__(self, texts: Iterable[str]) -> Iterator[Score]:
        """The score of each text, in the order of the texts."""
        with cpu_kernels.use(self.device.type == "cpu"):
            remaining = iter(texts)
            while window := list(islice(remaining, WINDOW)):
                yield from self._score_window(window)

    def _score_window(self, texts: list[str]) -> list[Score]:
        length = self.model.config.max_position_embeddings
        texts = [self._beginning(text, length) for text in texts]
        encoded = self.tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]
        scores: list[Score | None] = [None] * len(texts)
        for chosen in batches_by_length([len(ids) for ids in encoded]):
            for number, score in zip(chosen, self._score_batch([encoded[i] for i in chosen]), strict=True):
                scores[number] = score
        return scores

    def _beginning(self, text: str, length: int) -> str:
        """The beginning of a text that fills `length` tokens, because a tokenizer uses hundreds of bytes of memory for
        each token of its input."""
        tokens = 0
        for piece in PIECE.finditer(text):
            if piece.end() == len(text):
                break
            tokens += len(self.tokenizer(piece[0], add_special_tokens=False, verbose=False)["input_ids"])
            if tokens >= length:
                return text[: piece.end()]
        return text

    def _score_batch(self, sequences: list[list[int]]) -> Iterator[Score]:
        # Right padding, regardless of the tokenizer's setting, because rows are sliced to their length below.
        batch = self.tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = self.model(batch["input_ids"], batch["attention_mask"], exit_policy=self.policy)
            logits = outputs.logits.float()
            likelihoods = (F.logsigmoid(-logits) * batch["attention_mask"]).sum(dim=1).tolist()
            replaced = logits.sigmoid().tolist()
        layers = None if outputs.exit_layers is None else outputs.exit_layers.tolist()
        for row, ids in enumerate(sequences):
            yield Score(
                self.tokenizer.convert_ids_to_tokens(ids),
                replaced[row][: len(ids)],
                likelihoods[row],
                None if layers is None else layers[row][: len(ids)],
            )


def batches_by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts, shortest first, in batches of at most [`BATCH_TOKENS`] tokens, or of a single longer text."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
