"""BLiMP: minimal pairs of sentences, scored zero-shot by the discriminator."""

from collections import Counter
from pathlib import Path

import numpy as np

from ..data.reading import check_text, read_files
from .scoring import Scorer


def judge_blimp(folder: Path | str, path: Path, pairs_per_paradigm: int | None = None) -> dict:
    """Score BLiMP (Warstadt et al., 2020) zero-shot: the share of minimal pairs in which the acceptable sentence has
    the higher log-probability that none of its tokens was replaced.

    Args:
        folder (`Path` or `str`): a pre-trained checkpoint, folder or Hub id.
        path (`Path`): JSON Lines, plain or .gz or .xz, with `sentence_good`, `sentence_bad` and `UID`.
        pairs_per_paradigm (`int`, *optional*): use only this many pairs of each paradigm, the first ones.

    Returns:
        `accuracy` over all pairs, where ties count half, and `pairs`, their number.

    Raises:
        DataError: if the file cannot be read, or lacks a column.
        UsageError: if the checkpoint has no discriminator.
    """
    columns = ("sentence_good", "sentence_bad", "UID")
    rows = read_files([str(path)], text_columns=columns)
    for column in columns:
        check_text(rows.features, column, str(path))
    seen, pairs = Counter(), []
    for row in rows:
        seen[row["UID"]] += 1
        if pairs_per_paradigm is None or seen[row["UID"]] <= pairs_per_paradigm:
            pairs.append((row["sentence_good"], row["sentence_bad"]))
    sentences = (sentence for pair in pairs for sentence in pair)
    scores = np.array([score.pseudo_log_likelihood for score in Scorer(str(folder))(sentences)])
    good, bad = scores[::2], scores[1::2]
    return {"accuracy": float(((good > bad) + 0.5 * (good == bad)).mean()), "pairs": len(pairs)}
