"""The tokenizer that is trained on the text: WordPiece that keeps what a script writes."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


logger = logging.getLogger(__name__)

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
           "mask_token": "[MASK]"}  # fmt: skip

# Control and format characters, but for the joiners with which Persian and the scripts of India write other words.
NOT_TEXT = r"[\p{Cc}\p{Cf}\x{fffd}&&[^\t\n\r\x{200c}\x{200d}]]+"
# Thai, Lao, Burmese, Khmer and kana: scripts without spaces that are not cut into characters, as ideographs are.
WITHOUT_SPACES = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]"
# WordPiece takes a word of more than 100 characters for unknown, and in these scripts a sentence is one.
LONGEST_RUN = 50

# A tokenizer gets no more of a text than this at once: 20,000 characters, up to the last whitespace among them.
PIECE = re.compile(r"(?s).{1,20000}(?=\s|\Z)|.{20000}")


def pieces(texts: Iterable[str | None]) -> Iterator[str]:
    """Texts in pieces of a bounded length that together are the text. They end before whitespace where there is any,
    so that no word is cut."""
    for text in texts:
        yield from PIECE.findall(text or "")


def train_tokenizer(
    documents: Dataset, vocab_size: int, lowercase: bool = True, strip_accents: bool = False
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of at most `vocab_size` entries, the same one for the same text every time.

    Text is composed (NFC). Ideographs are words of their own, as in BERT. Every character of the text has an entry, or
    where they are more than fit, the most frequent ones.

    Args:
        documents: with the column `text`.
        strip_accents: leave out combining marks, with which many scripts write their vowels.
    """
    logger.info(f"training a WordPiece tokenizer of {vocab_size} entries")
    backend = _untrained(lowercase, strip_accents)
    counts, continuing = Counter(), set()
    for piece in pieces(text for batch in documents.iter(1000) for text in batch["text"]):
        normal = backend.normalizer.normalize_str(piece)
        words = {word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)}
        counts.update(normal)
        continuing.update(*(word[1:] for word in words))
    if any(re.match(WITHOUT_SPACES, character) for character in counts):
        cut = pre_tokenizers.Split(Regex(f"{WITHOUT_SPACES}{{{LONGEST_RUN}}}\\p{{M}}*"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
    alphabet = _alphabet(counts, continuing, vocab_size - len(SPECIAL))
    # The trainer numbers the pieces that continue a word in the order of a hash table, which differs from run to run,
    # and breaks ties between merges by those numbers. Naming these pieces beforehand fixes both.
    named = [f"##{character}" for character in alphabet if character in continuing]
    backend.train_from_iterator(
        (list(pieces(batch["text"])) for batch in documents.iter(100)),
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values(), *named],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    return _complete(backend)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id. A vocabulary with repeated lines or holes has fewer entries than that."""
    return max(tokenizer.get_vocab().values()) + 1


def script_of(texts: Iterable[str]) -> str:
    """What most letters are, by their names in Unicode: "LATIN", "CJK", "ETHIOPIC"; "" where there are none."""
    names = (unicodedata.name(character, "") for text in texts for character in text if character.isalpha())
    ((script, _), *_) = Counter(name.split(" ")[0] for name in names).most_common(1) or [("", 0)]
    return script


def _untrained(lowercase: bool, strip_accents: bool) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    # BERT's own cleaning would take the joiners away. Composing comes last, for stripping decomposes.
    backend.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(NOT_TEXT), ""),
        normalizers.BertNormalizer(clean_text=False, strip_accents=strip_accents, lowercase=lowercase),
        normalizers.NFC(),
    ])  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


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


def _complete(trained: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of a trained one's vocabulary, to which the pieces named in training are not special.

    Of the generic class: `BertTokenizer` would build its own normalizer when it is loaded.
    """
    vocabulary = trained.get_vocab()
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        setattr(backend, part, getattr(trained, part))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **SPECIAL
    )
