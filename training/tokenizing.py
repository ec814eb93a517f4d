"""Tokenizers trained on a task's own texts, for models from scratch."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("bpe", "wordpiece", "bytes", "chars", "words")

_WORDPIECE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OTHERS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def trained_tokenizer(kind: str, texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one of :data:`KINDS`.

    ``wordpiece``: lower-cased, with BERT's marks around a text, for encoders. ``bpe``: byte-level pairs of at most ``vocabulary_size``; ``bytes``: the bytes
    of UTF-8; ``chars``: the characters of ``texts``, others being unknown; ``words``: what stands between blanks, the ``vocabulary_size`` most frequent ones. All
    but ``wordpiece`` put nothing around a text. All have tokens for padding, mask, start and end.
    """
    train = {"bpe": _bpe, "wordpiece": _wordpiece, "bytes": _bytes, "chars": _chars, "words": _words}[kind]
    return train(texts, vocabulary_size)


def _wrap(backend: Tokenizer, special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    pad, unknown, first, last, mask = special
    names: dict[str, Any] = {"pad_token": pad, "unk_token": unknown, "mask_token": mask}
    if special is _WORDPIECE:
        names |= {"cls_token": first, "sep_token": last, "bos_token": first, "eos_token": last}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        names |= {"bos_token": first, "eos_token": last}
        inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


def _bpe(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_OTHERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(backend, _OTHERS)


def _bytes(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_OTHERS, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend, _OTHERS)


def _wordpiece(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    texts = list(texts)
    inside = {
        character
        for text in texts
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text))
        for character in word[1:]
    }
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, words
    # the trainer numbers what continues a word in an order that changes from run to run, unless it is named beforehand
    named = [*_WORDPIECE, *(f"##{character}" for character in sorted(inside))]
    learner.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=named, show_progress=False)
    )
    # anew, for there only BERT's marks are special
    backend = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, words, decoders.WordPiece()
    special = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return _wrap(backend, _WORDPIECE)


def _chars(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    characters = sorted({character for text in texts for character in text})
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*_OTHERS, *characters]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend, _OTHERS)


def _words(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    counts = Counter(word for text in texts for word in text.split())
    words = sorted(counts, key=lambda word: (-counts[word], word))
    chosen = list(dict.fromkeys([*_OTHERS, *words]))[: max(size, len(_OTHERS))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(chosen)}, unk_token="<unk>"))
    # without a decoder, tokens are joined by blanks
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(backend, _OTHERS)


def marks(tokenizer: Any) -> tuple[str, str]:
    """The tokens that stand for the start and the end of a text to be written; ValueError when ``tokenizer`` has none."""
    end = tokenizer.eos_token or tokenizer.sep_token
    start = tokenizer.bos_token or tokenizer.cls_token or end
    if end is None or start is None:
        raise ValueError(f"{type(tokenizer).__name__} has no token for the end of a text")
    return start, end


def put_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that ``tokenizer`` puts before a text, and those after it."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    first = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[:first], whole[first + len(bare) :]


def end_texts_with(tokenizer: Any, mark: str) -> None:
    """Let ``tokenizer`` put the token ``mark`` after each text, behind all that it puts there, unless it does so already. It is saved so."""
    around = put_around(tokenizer)
    if around[1][-1:] == [tokenizer.convert_tokens_to_ids(mark)]:
        return
    # what it puts there itself, written out: templates cannot follow each other
    before, after = (tokenizer.convert_ids_to_tokens(ids) for ids in around)
    second = [f"{token}:1" for token in (*after, mark)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after, mark],
        pair=[*before, "$A", *after, "$B:1", *second],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in {*before, *after, mark}],
    )
