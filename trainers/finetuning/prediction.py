"""Predict labels, values or tags of texts, or which of their tokens were replaced."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

import torch
from transformers import PreTrainedConfig

from ..data.reading import check_text, read_files
from ..errors import UsageError
from ..runtime import cpu_kernels
from ..runtime.loading import load_for, read_config, read_tokenizer
from .columns import find_texts, is_list
from .encoding import encode_words
from .examples import read_table
from .scoring import WINDOW, Scorer, batches_by_length
from .starting import has_head_for, head_class
from .tasks import Columns, task_of


class Predictor:
    """Predicts with a fine-tuned checkpoint, using its calibrated exits.

    Args:
        checkpoint (`str`): folder or Hub id of an electra-exit or ELECTRA model with a head for sequences or tokens.

    Raises:
        UsageError: if there is no such checkpoint.
    """

    def __init__(self, checkpoint: str):
        config = read_config(checkpoint)
        self.task = task_of(config)
        self.tokenizer = read_tokenizer(checkpoint)
        self.model = load_for(head_class(self.task), checkpoint).eval()
        self.device = cpu_kernels.to_best_device(self.model)

    def __call__(self, rows: Iterable[dict]) -> Iterator[tuple[dict, int]]:
        """Predict each row, in order.

        Args:
            rows: dictionaries with `text`, and `text_pair` for a pair; for tagging with `words`.

        Returns:
            For each row, the prediction and the number of tokens read. A prediction holds `label` and `probabilities`
            by name; or `labels` (those with a probability of at least 0.5) and `probabilities`; or `value`; or
            `words`, `tags` and their `probabilities`, with `None` for words beyond the model's positions. With
            thresholds, it also holds `exit_layer`, the number of layers computed, or for tagging `exit_layers`, one
            per word.
        """
        with cpu_kernels.use(self.device.type == "cpu"):
            remaining = iter(rows)
            while window := list(islice(remaining, WINDOW)):
                yield from self._predict_window(window)

    def _predict_window(self, rows: list[dict]) -> list[tuple[dict, int]]:
        encoded = self._encode(rows)
        inputs = [
            {name: encoded[name][n] for name in self.tokenizer.model_input_names if name in encoded}
            for n in range(len(rows))
        ]
        found: list[tuple[dict, int]] = [({}, 0)] * len(rows)
        for chosen in batches_by_length([len(row["input_ids"]) for row in inputs]):
            batch = self.tokenizer.pad([inputs[n] for n in chosen], padding_side="right", return_tensors="pt")
            with torch.inference_mode():
                outputs = self.model(**batch.to(self.device))
            logits, layers = outputs.logits.float().cpu(), outputs.exit_layers
            for place, n in enumerate(chosen):
                layer = None if layers is None else layers[place].cpu()
                if self.task.tags_words:
                    entry = self._tags(rows[n]["words"], encoded["labels"][n], logits[place], layer)
                else:
                    entry = self._prediction(logits[place], layer)
                found[n] = entry, len(inputs[n]["input_ids"])
        return found

    def _encode(self, rows: list[dict]) -> dict:
        """The tokenized rows; for tagging, `labels` holds the index of each word at its first token."""
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        length = self.model.config.max_position_embeddings
        if self.task.tags_words:
            numbers = [list(range(len(words))) for words in columns["words"]]
            return encode_words({**columns, "labels": numbers}, self.tokenizer, length)
        return self.tokenizer(*columns.values(), truncation=True, max_length=length)

    def _prediction(self, logits: torch.Tensor, layer: torch.Tensor | None) -> dict:
        """The prediction for one text from its logits (labels,)."""
        labels, exits = self.task.labels, {} if layer is None else {"exit_layer": layer.item()}
        if self.task.is_regression:
            return {"value": logits.item(), **exits}
        several = self.task.kind == "multi_label"
        probabilities = (logits.sigmoid() if several else logits.softmax(dim=-1)).tolist()
        by_name = dict(zip(labels, probabilities, strict=True))
        if several:
            answer = {"labels": [name for name, probability in by_name.items() if probability >= 0.5]}
        else:
            answer = {"label": labels[int(logits.argmax())]}
        return {**answer, "probabilities": by_name, **exits}

    def _tags(self, words: list[str], numbers: list[int], logits: torch.Tensor, layers: torch.Tensor | None) -> dict:
        """The prediction for the words of one text from logits (tokens, labels). `numbers` (tokens,) has the index of
        each word at its first token, and -100 elsewhere."""
        places = {number: token for token, number in enumerate(numbers) if number != -100}
        best, tags = logits.softmax(dim=-1).max(dim=-1)
        kept = [places.get(number) for number in range(len(words))]

        def of_words(values) -> list:
            return [None if token is None else values[token] for token in kept]

        exits = {} if layers is None else {"exit_layers": of_words(layers.tolist())}
        named = [self.task.labels[number] for number in tags.tolist()]
        return {"words": words, "tags": of_words(named), "probabilities": of_words(best.tolist()), **exits}


def is_fine_tuned(config: PreTrainedConfig) -> bool:
    return has_head_for(config, tags_words=False) or has_head_for(config, tags_words=True)


def replacements(
    checkpoint: str,
    file: str,
    text_column: str | None,
    text_pair_column: str | None,
    threshold: float | None,
) -> Iterator[tuple[dict, int]]:
    """Score each text of a file with the discriminator.

    Args:
        checkpoint: pre-trained checkpoint, folder or Hub id.
        file: the texts.
        text_column: column of the text (default: `text`).
        text_pair_column: must be `None`.
        threshold: entropy, in nats, at which tokens exit; `None` for full depth.

    Returns:
        For each text, the fields of its [`scoring.Score`] and its number of tokens.

    Raises:
        UsageError, DataError: for a mistake in the arguments or the file, before the first text is scored.
    """
    column = text_column or "text"
    if text_pair_column:
        raise UsageError(f"--text_pair_column must be left out for {checkpoint}, which is not fine-tuned")
    rows = read_files([file], "line", text_columns=[column])
    check_text(rows.features, column, file, "; choose one with --text_column")
    scorer = Scorer(checkpoint, threshold)
    entries = (
        {name: value for name, value in asdict(score).items() if value is not None}
        for score in scorer(text or "" for text in rows[column])
    )
    return ((entry, len(entry["tokens"])) for entry in entries)


def predictions(
    checkpoint: str,
    file: str,
    text_column: str | None,
    text_pair_column: str | None,
    threshold: float | None,
) -> Iterator[tuple[dict, int]]:
    """Predict each text of a file with a fine-tuned checkpoint.

    Args:
        checkpoint: fine-tuned checkpoint, folder or Hub id.
        file: the texts.
        text_column, text_pair_column: columns of the texts; inferred if `None`.
        threshold: must be `None`, since the checkpoint has its own thresholds.

    Returns:
        For each text, its prediction (see [`Predictor`]) and the number of tokens read.

    Raises:
        UsageError, DataError: for a mistake in the arguments or the file, before the first text is predicted.
    """
    if threshold is not None:
        raise UsageError(
            f"--exit_entropy_threshold must be left out for {checkpoint}, which is fine-tuned: set its thresholds "
            "with `electra-exit calibrate`"
        )
    predictor = Predictor(checkpoint)
    return predictor(read_texts(file, Columns(text_column, text_pair_column), predictor.task.tags_words))


def read_texts(file: str, asked: Columns, tags_words: bool) -> Iterator[dict]:
    """The rows of a file in the format of [`Predictor`], with missing texts as empty ones."""
    if file.removesuffix(".gz").removesuffix(".xz").endswith(".txt"):  # one text per line, unlike in CoNLL
        rows, columns = read_files([file], "line"), Columns("text")
    else:
        rows, defaults = read_table(file)
        columns = find_texts(rows, file, asked, defaults, tags_words)
    for column in columns.texts:
        if not (tags_words and is_list(rows.features[column])):
            check_text(rows.features, column, file, "; choose one with --text_column")
    if not tags_words:
        names = dict(zip(columns.texts, ("text", "text_pair"), strict=False))
        return ({ours: row[theirs] or "" for theirs, ours in names.items()} for row in rows)
    texts = ((row[columns.text] or []) for row in rows)
    return ({"words": text.split() if isinstance(text, str) else [word or "" for word in text]} for text in texts)
