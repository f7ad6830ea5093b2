"""ARPA language models in plain Python: a maker (Witten-Bell, interpolated) and back-off as the format defines it."""

import math
from collections import Counter, defaultdict


def make_arpa(path, sentences, order, unknown="<unk>"):
    """Write a model of lists of words.  ``unknown`` None: no unknown word in the file."""
    counts = Counter()
    for words in sentences:
        words = ["<s>", *words, "</s>"]
        for n in range(1, order + 1):
            counts.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    followers = defaultdict(Counter)
    for gram, number in counts.items():
        if gram != ("<s>",):
            followers[gram[:-1]][gram[-1]] += number
    vocabulary = sorted({*followers[()], *([unknown] if unknown else [])})

    def probability(history, word):
        lower = 1 / len(vocabulary) if not history else probability(history[1:], word)
        seen = followers[history]
        return (seen[word] + len(seen) * lower) / (seen.total() + len(seen)) if seen else lower

    def weight(history):
        seen = followers.get(history)
        return math.log10(len(seen) / (seen.total() + len(seen))) if seen else 0.0

    grams = [[] for _ in range(order)]
    grams[0] = [("<s>",), *((word,) for word in vocabulary)]
    for gram in sorted(counts):
        if len(gram) > 1:
            grams[len(gram) - 1].append(gram)
    lines = ["", "\\data\\", *(f"ngram {n}={len(found)}" for n, found in enumerate(grams, 1))]
    for n, found in enumerate(grams, 1):
        lines += ["", f"\\{n}-grams:"]
        for gram in found:
            value = -99.0 if gram == ("<s>",) else math.log10(probability(gram[:-1], gram[-1]))
            back_off = [f"{weight(gram):.7f}"] if n < order and gram[-1] != "</s>" else []
            lines.append("\t".join([f"{value:.7f}", " ".join(gram), *back_off]))
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    return path


class PlainArpa:
    """The model of a file: ``log_prob(history, word)``, natural, the history from <s> on."""

    def __init__(self, path, unknown="<unk>"):
        self.table, self.order, self.unknown = {}, 0, unknown
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("\\") and line.endswith("-grams:"):
                self.order = int(line[1:].partition("-")[0])
            elif self.order and "\t" in line:
                value, gram, *back_off = line.split("\t")
                self.table[tuple(gram.split())] = float(value), float(back_off[0]) if back_off else 0.0
        self.words = {gram[0] for gram in self.table if len(gram) == 1} - {"<s>", "</s>", unknown}

    def log_prob(self, history, word):
        if (word,) not in self.table:
            word = self.unknown
        if (word,) not in self.table:  # nor an unknown word
            floor = min(value for gram, (value, _) in self.table.items() if len(gram) == 1 and gram != ("<s>",))
            return math.log(10) * (self._back_off(history) + floor)
        history = tuple(x if (x,) in self.table else self.unknown for x in history)
        return math.log(10) * self._log10(history[max(0, len(history) - self.order + 1) :], word)

    def _log10(self, history, word):
        if (*history, word) in self.table:
            return self.table[(*history, word)][0]
        return self.table.get(history, (0.0, 0.0))[1] + self._log10(history[1:], word)

    def _back_off(self, history):
        history = tuple(x if (x,) in self.table else self.unknown for x in history)
        history = history[max(0, len(history) - self.order + 1) :]
        return sum(self.table.get(history[place:], (0.0, 0.0))[1] for place in range(len(history)))

    def sentence(self, words, ended):
        """log p of the words, and of the end where they have ended."""
        words = ["<s>", *words, *(["</s>"] if ended else [])]
        return sum(self.log_prob(tuple(words[:i]), words[i]) for i in range(1, len(words)))
