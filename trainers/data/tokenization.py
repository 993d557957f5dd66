"""Training of tokenizers for any script."""

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import DataError


logger = logging.getLogger(__name__)

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
           "mask_token": "[MASK]"}  # fmt: skip

# Types of tokenizers, and their display names.
KINDS = {"wordpiece": "WordPiece", "unigram": "Unigram", "bpe": "byte-level BPE"}

# Control and format characters, except the joiners, which distinguish words in Persian and the scripts of India.
NOT_TEXT = r"[\p{Cc}\p{Cf}\x{fffd}&&[^\t\n\r\x{200c}\x{200d}]]+"
# Thai, Lao, Burmese, Khmer and kana: scripts without spaces that, unlike ideographs, are not split into characters.
WITHOUT_SPACES = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]"
# Units within which byte pair encoding merges: words, numbers, and runs of other characters, each with a preceding
# space. As in GPT-2, except that combining marks belong to words; GPT-2 splits the words of many scripts at them.
WORDS_AND_SIGNS = r" ?[\p{L}\p{M}\x{200c}\x{200d}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\x{200c}\x{200d}]+"
# WordPiece maps a word of more than 100 characters to [UNK], and in these scripts a whole sentence is one word.
LONGEST_RUN = 50
# Digits kept of a Unigram tokenizer's log probabilities, and the spacing of the scores of left-over characters.
SCORE_DIGITS, STEP = 6, 1e-4

# Maximum piece of text per call of a tokenizer: 20,000 characters, up to the last whitespace among them.
PIECE = re.compile(r"(?s).{1,20000}(?=\s|\Z)|.{20000}")


def pieces(texts: Iterable[str | None]) -> Iterator[str]:
    """Split texts into pieces of bounded length, before whitespace if possible, so that words stay whole. The pieces
    of a text concatenate to the text."""
    for text in texts:
        yield from PIECE.findall(text or "")


def train_tokenizer(
    documents: Dataset,
    vocab_size: int,
    lowercase: bool = True,
    strip_accents: bool = False,
    kind: str = "wordpiece",
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocab_size` entries. The result is deterministic.

    Text is normalized to NFC. Unless `kind` is "bpe", every character of the text gets an entry, or as many of the
    most frequent ones as fit.

    Args:
        documents: with the column `text`.
        vocab_size: maximum number of entries, special tokens included.
        lowercase: lowercase the text.
        strip_accents: remove combining marks, which many scripts use for vowels.
        kind: a key of [`KINDS`]. "wordpiece", as in BERT: each ideograph is a word. "unigram" (Kudo, 2018,
            arXiv 1804.10959) and "bpe", byte-level byte pair encoding as in GPT-2, can merge ideographs; "bpe" has no
            unknown tokens.

    Raises:
        DataError: if `vocab_size` is too small for the bytes of "bpe".
    """
    logger.info(f"training a {KINDS[kind]} tokenizer of {vocab_size} entries")
    train = {"wordpiece": _wordpiece, "unigram": _unigram, "bpe": _byte_pairs}[kind]
    return _complete(train(documents, vocab_size, _normalizer(lowercase, strip_accents, kind == "wordpiece")))


def _wordpiece(documents: Dataset, vocab_size: int, normalizer: normalizers.Normalizer) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    counts, continuing = Counter(), set()
    for piece in _normal(documents, normalizer):
        words = {word for word, _ in backend.pre_tokenizer.pre_tokenize_str(piece)}
        counts.update(piece)
        continuing.update(*(word[1:] for word in words))
    if any(re.match(WITHOUT_SPACES, character) for character in counts):
        cut = pre_tokenizers.Split(Regex(f"{WITHOUT_SPACES}{{{LONGEST_RUN}}}\\p{{M}}*"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
    alphabet = _alphabet(counts, continuing, vocab_size - len(SPECIAL))
    # The trainer numbers word-continuing pieces in hash table order, which differs between runs, and breaks ties
    # between merges by these numbers. Listing the pieces as special tokens fixes both.
    named = [f"##{character}" for character in alphabet if character in continuing]
    backend.train_from_iterator(
        _batches(documents),
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values(), *named],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    # A new tokenizer with the trained vocabulary, in which the pieces listed above are not special.
    trained = Tokenizer(models.WordPiece(backend.get_vocab(), unk_token=SPECIAL["unk_token"]))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        setattr(trained, part, getattr(backend, part))
    return trained


def _unigram(documents: Dataset, vocab_size: int, normalizer: normalizers.Normalizer) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer, backend.decoder = normalizer, decoders.Metaspace()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    counts = Counter()
    for piece in _normal(documents, normalizer):
        counts.update(piece)
    alphabet = _alphabet(counts, set(), vocab_size - len(SPECIAL) - 2)  # reserves the word start and one longer piece
    # The trainer gives every character an entry regardless of `vocab_size`, so rare ones are replaced.
    rare = dict.fromkeys(map(ord, counts.keys() - {*alphabet} - {*filter(str.isspace, counts)}), " ")
    backend.train_from_iterator(
        (piece.translate(rare) for piece in _normal(documents, normalizer)),
        trainers.UnigramTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values()],
            unk_token=SPECIAL["unk_token"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return _in_order(backend)


def _in_order(trained: Tokenizer) -> Tokenizer:
    """Make a trained Unigram tokenizer deterministic.

    The trainer sums scores in hash table order, which changes their last digits between runs. In the same order it
    assigns scores to characters left over by the pieces: one [`STEP`] apart, from the lowest score up.
    """
    described = json.loads(trained.to_str())
    vocabulary = described["model"]["vocab"]
    special, rest = vocabulary[: len(SPECIAL)], vocabulary[len(SPECIAL) :]
    least = min(score for _, score in rest)
    left_over = least + STEP * len(rest)
    scores = [(piece, least if len(piece) == 1 and score < left_over else score) for piece, score in rest]
    rounded = [(piece, round(score, SCORE_DIGITS)) for piece, score in scores]
    described["model"]["vocab"] = [*special, *sorted(rounded, key=lambda scored: (-scored[1], scored[0]))]
    return Tokenizer.from_str(json.dumps(described))


def _byte_pairs(documents: Dataset, vocab_size: int, normalizer: normalizers.Normalizer) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < (least := len(SPECIAL) + len(alphabet)):
        raise DataError(f"--vocab_size must be at least {least} for --tokenizer_type bpe, got {vocab_size}")
    backend = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    # One space before every word, including the first; as for other types, whitespace carries no further information.
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Prepend(" ")]
    backend.normalizer, backend.decoder = normalizers.Sequence([normalizer, *spaces]), decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS_AND_SIGNS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    backend.train_from_iterator(
        _batches(documents),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values()],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return backend


def _batches(documents: Dataset) -> Iterator[list[str]]:
    return (list(pieces(batch["text"])) for batch in documents.iter(100))


def _normal(documents: Dataset, normalizer: normalizers.Normalizer) -> Iterator[str]:
    """The normalized text, in pieces."""
    texts = (text for batch in documents.iter(1000) for text in batch["text"])
    return map(normalizer.normalize_str, pieces(texts))


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id plus 1. This exceeds the number of entries if ids are missing or lines repeated."""
    return max(tokenizer.get_vocab().values()) + 1


def script_of(texts: Iterable[str]) -> str:
    """The script of most letters, by their Unicode names, such as "LATIN", "CJK" or "ETHIOPIC"; "" without letters."""
    names = (unicodedata.name(character, "") for text in texts for character in text if character.isalpha())
    ((script, _), *_) = Counter(name.split(" ")[0] for name in names).most_common(1) or [("", 0)]
    return script


def _normalizer(lowercase: bool, strip_accents: bool, parts_ideographs: bool) -> normalizers.Normalizer:
    # BERT's own cleaning would remove joiners. NFC comes last, because stripping accents decomposes.
    return normalizers.Sequence([
        normalizers.Replace(Regex(NOT_TEXT), ""),
        normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=parts_ideographs, strip_accents=strip_accents, lowercase=lowercase
        ),
        normalizers.NFC(),
    ])  # fmt: skip


def _alphabet(counts: Counter, continuing: set[str], entries: int) -> list[str]:
    """The most frequent characters that fit into `entries`. A character in `continuing` takes two entries."""
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda character: (-counts[character], character))
    kept, taken = [], 0
    for character in ranked:
        taken += 1 + (character in continuing)
        if taken > entries:
            break
        kept.append(character)
    if taken > entries / 2:
        rare = sum(counts[character] for character in ranked[len(kept) :]) / max(1, sum(map(counts.get, ranked)))
        logger.warning(
            f"the {len(ranked):,} different characters of the text take more than half of the vocabulary, and "
            f"{len(ranked) - len(kept):,} of them ({rare:.2%} of the text) are unknown; increase --vocab_size to "
            "leave more entries for words"
        )
    return sorted(kept)


def _complete(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Add [CLS] and [SEP], and wrap in the generic class, as `BertTokenizer` builds its own normalizer on loading."""
    around = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    # Exclude the space before a word from a token's offsets.
    trims = [processors.ByteLevel(trim_offsets=True)] if isinstance(backend.model, models.BPE) else []
    backend.post_processor = processors.Sequence([*trims, around]) if trims else around
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **SPECIAL
    )
