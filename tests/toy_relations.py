"""Invented rows for the three tasks of relations.py, which a tiny encoder learns in seconds."""

import random

PEOPLE, TOWNS, RIVERS = ("mira", "tomas", "ada", "jonas"), ("bergen", "lisbon", "turin"), ("tajo", "mur", "po")


def marked(count, seed=0):
    """A person lives in a town, or a river runs through one; the entities stand in either order."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        kind = chance.choice(("Living", "Running", "Other"))
        first = chance.choice({"Living": PEOPLE, "Running": RIVERS, "Other": TOWNS}[kind])
        pair, back = [first, chance.choice(TOWNS)], chance.random() < 0.5 and kind != "Other"
        one, two = reversed(pair) if back else pair
        direction = "" if kind == "Other" else "(e2,e1)" if back else "(e1,e2)"
        rows.append({"text": f"the old <e1>{one}</e1> and the <e2>{two}</e2> .", "relation": f"{kind}{direction}"})
    return rows


def trees(count, seed=0):
    """Verbs hang on the root, their subjects before them and their objects behind."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        words, heads, labels = [], [], []
        if chance.random() < 0.5:
            words, heads, labels = ["the", "old"], [3, 3], ["det", "amod"]
        subject = len(words) + 1
        words += [chance.choice(PEOPLE), chance.choice(("sees", "likes")), chance.choice(TOWNS), "."]
        heads += [subject + 1, 0, subject + 1, subject + 1]
        labels += ["nsubj:human", "root", "obj", "punct"]
        rows.append({"tokens": words, "head": heads, "deprel": labels})
    return rows


def conllu(rows):
    """The same as CoNLL-U, each sentence with a multi-word token and an empty node that are no words of it."""
    text = ""
    for row in rows:
        text += "# newdoc\n1-2\tboth\t_\t_\t_\t_\t_\t_\t_\t_\n"
        for number, (word, head, label) in enumerate(zip(row["tokens"], row["head"], row["deprel"], strict=True), 1):
            text += f"{number}\t{word}\t_\tX\t_\t_\t{head}\t{label}\t_\t_\n"
            if number == 1:
                text += "1.1\tempty\t_\t_\t_\t_\t_\t_\t2:dep\t_\n"
        text += "\n"
    return text


def documents(count, seed=0):
    """Two people, two towns; each person lives where the first sentence or the second says, and the second is told of "the" person's town again."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        people, towns = chance.sample(PEOPLE, 2), chance.sample(TOWNS, 2)
        sentences = [[people[0], "lives", "in", towns[0], "."], ["old", people[1], "lives", "in", towns[1], "."]]
        sentences.append([towns[0], "is", "old", "."])
        places = [[(0, 0)], [(0, 3), (2, 0)], [(1, 1)], [(1, 4)]]
        entities = [
            [{"name": sentences[s][w], "sent_id": s, "pos": [w, w + 1], "type": "X"} for s, w in one] for one in places
        ]
        labels = [
            {"h": h, "t": t, "r": r, "evidence": []}
            for h, t, r in ((0, 1, "P1"), (2, 3, "P1"), (1, 0, "P2"), (3, 2, "P2"))
        ]
        rows.append({"title": f"{seed}-{number}", "sents": sentences, "vertexSet": entities, "labels": labels})
    return rows
