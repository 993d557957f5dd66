"""The tokenizer that is trained on the text and keeps what its script writes."""

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

# Types of tokenizers, and what they are called.
KINDS = {"wordpiece": "WordPiece", "unigram": "Unigram", "bpe": "byte-level BPE"}

# Control and format characters, but for the joiners with which Persian and the scripts of India write other words.
NOT_TEXT = r"[\p{Cc}\p{Cf}\x{fffd}&&[^\t\n\r\x{200c}\x{200d}]]+"
# Thai, Lao, Burmese, Khmer and kana: scripts without spaces that are not cut into characters, as ideographs are.
WITHOUT_SPACES = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]"
# What byte pair encoding merges within: words, numbers, and runs of other signs, with the space before them. As GPT-2
# has it, but that marks are parts of words: there they cut the words of many scripts.
WORDS_AND_SIGNS = r" ?[\p{L}\p{M}\x{200c}\x{200d}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\x{200c}\x{200d}]+"
# WordPiece takes a word of more than 100 characters for unknown, and in these scripts a sentence is one.
LONGEST_RUN = 50
# Of the logarithms that a Unigram tokenizer adds up; and a difference that the library makes between some of them.
SCORE_DIGITS, STEP = 6, 1e-4

# A tokenizer gets no more of a text than this at once: 20,000 characters, up to the last whitespace among them.
PIECE = re.compile(r"(?s).{1,20000}(?=\s|\Z)|.{20000}")


def pieces(texts: Iterable[str | None]) -> Iterator[str]:
    """Texts in pieces of a bounded length that together are the text. They end before whitespace where there is any,
    so that no word is cut."""
    for text in texts:
        yield from PIECE.findall(text or "")


def train_tokenizer(
    documents: Dataset,
    vocab_size: int,
    lowercase: bool = True,
    strip_accents: bool = False,
    kind: str = "wordpiece",
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` entries, the same one for the same text every time.

    Text is composed (NFC). Unless `kind` is "bpe", every character of the text has an entry, or where they are more
    than fit, the most frequent ones.

    Args:
        documents: with the column `text`.
        strip_accents: leave out combining marks, with which many scripts write their vowels.
        kind: a key of [`KINDS`]. "wordpiece", as BERT's; ideographs are words of their own. "unigram" (Kudo, 2018,
            arXiv 1804.10959) and "bpe", byte-level byte pair encoding as GPT-2's, also join ideographs; the latter
            knows every text.

    Raises:
        DataError: for a vocabulary that does not hold the bytes of "bpe".
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
    # The trainer numbers the pieces that continue a word in the order of a hash table, which differs from run to run,
    # and breaks ties between merges by those numbers. Naming these pieces beforehand fixes both.
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
    # A tokenizer of the trained one's vocabulary, to which the pieces named above are not special.
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
    alphabet = _alphabet(counts, set(), vocab_size - len(SPECIAL) - 2)  # the start of words, and one longer piece
    # The trainer gives every character an entry, however many these are.
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
    """A Unigram tokenizer that is the same every time.

    The trainer adds up in the order of a hash table, which moves the last digits of the scores from run to run; and in
    that order it gives characters that no piece has left over scores one [`STEP`] apart, from the least one up.
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
    # One space before every word, the first one's too: as for other types, spaces and ends of lines say no more.
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
    """The text, normalised."""
    texts = (text for batch in documents.iter(1000) for text in batch["text"])
    return map(normalizer.normalize_str, pieces(texts))


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id. A vocabulary with repeated lines or holes has fewer entries than that."""
    return max(tokenizer.get_vocab().values()) + 1


def script_of(texts: Iterable[str]) -> str:
    """What most letters are, by their names in Unicode: "LATIN", "CJK", "ETHIOPIC"; "" where there are none."""
    names = (unicodedata.name(character, "") for text in texts for character in text if character.isalpha())
    ((script, _), *_) = Counter(name.split(" ")[0] for name in names).most_common(1) or [("", 0)]
    return script


def _normalizer(lowercase: bool, strip_accents: bool, parts_ideographs: bool) -> normalizers.Normalizer:
    # BERT's own cleaning would take the joiners away. Composing comes last, for stripping decomposes.
    return normalizers.Sequence([
        normalizers.Replace(Regex(NOT_TEXT), ""),
        normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=parts_ideographs, strip_accents=strip_accents, lowercase=lowercase
        ),
        normalizers.NFC(),
    ])  # fmt: skip


def _alphabet(counts: Counter, continuing: set[str], entries: int) -> list[str]:
    """The characters that get an entry, and one more if they continue words, of which there are `entries`."""
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
            f"{len(ranked) - len(kept):,} of them ({rare:.2%} of the text) are unknown; a larger --vocab_size leaves "
            "more for words"
        )
    return sorted(kept)


def _complete(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Of the generic class: `BertTokenizer` would build its own normalizer when it is loaded."""
    around = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    # Without the space before a word, a token's place in the text is that of its letters.
    trims = [processors.ByteLevel(trim_offsets=True)] if isinstance(backend.model, models.BPE) else []
    backend.post_processor = processors.Sequence([*trims, around]) if trims else around
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **SPECIAL
    )
