"""Tiny tokenizers, a tiny BERT on the disk, and invented questions in SQuAD's shapes."""

import gzip
import json
import random
import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

TOWNS, PEOPLE = ("Bergen", "Lisbon", "Turin", "Porto", "Graz"), ("Mira", "Tomas", "Ada", "Jonas")
WORDS = ("where", "does", "lives", "in", "works", "near", "river", "house", "old", *map(str.lower, (*TOWNS, *PEOPLE)))


def word_tokenizer():
    """BERT's tokenizer with a few words and, for all others, single characters."""
    characters = string.ascii_lowercase + string.digits + string.punctuation + "é“”"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_tokenizer():
    """RoBERTa's kind of tokenizer, except that a token's characters include the blank before it, as GPT-2's do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS), " ".join((*TOWNS, *PEOPLE))], trainer)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False, trim_offsets=False
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def questions(count=12, seed=0, sentences=3, unanswerable=0):
    """Rows in SQuAD's flat form; the last ``unanswerable`` have no answer."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        people = chance.sample(PEOPLE, min(sentences, len(PEOPLE)))
        towns = [chance.choice(TOWNS) for _ in people]
        context = " ".join(f"{person} lives in {town}." for person, town in zip(people, towns, strict=True))
        asked = chance.randrange(len(people))
        answers = {"text": [towns[asked]], "answer_start": [context.index(f"{people[asked]} lives in {towns[asked]}")]}
        answers["answer_start"][0] += len(f"{people[asked]} lives in ")
        name = people[asked]
        if number >= count - unanswerable:
            answers, name = {"text": [], "answer_start": []}, "Otto"
        rows.append(
            {"id": f"{seed}-{number}", "question": f"Where does {name} live?", "context": context, "answers": answers}
        )
    return rows


def nested(rows, version="1.1"):
    """The same rows in the official nested form, two paragraphs an article."""
    paragraphs = []
    for row in rows:
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        ]
        question = {"id": row["id"], "question": row["question"], "answers": answers}
        if version == "v2.0":
            question["is_impossible"] = not answers
            if not answers:
                question["plausible_answers"] = [{"text": row["context"][:4], "answer_start": 0}]
        paragraphs.append({"context": row["context"], "qas": [question]})
    articles = [{"title": "t", "paragraphs": paragraphs[i : i + 2]} for i in range(0, len(paragraphs), 2)]
    return {"version": version, "data": articles}


def write(path, content):
    """Write text, bytes, or JSON to ``path``: lines of it for .jsonl; compressed for .gz."""
    if isinstance(content, bytes):
        data = content
    elif isinstance(content, str):
        data = content.encode()
    elif ".jsonl" in path.suffixes:
        data = "".join(f"{json.dumps(row)}\n" for row in content).encode()
    else:
        data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def save_tiny_bert(folder, **config):
    """A random BERT and its tokenizer, saved as a pretrained model is."""
    tokenizer = word_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    made = BertConfig(**{**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 48, **config})
    BertForMaskedLM(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
