"""Sentences and voices: the parts are disjoint, and dev and test hold no word that train lacks."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.data.synthesis import grammar
from rnnt_kd.data.synthesis.voices import ACCENTS, VARIANTS, speakers


def draws(count, seed=0):
    rng = random.Random(seed)
    return [grammar.draw_sentence(rng) for _ in range(count)]


@given(st.integers(0, 2**63))
def test_a_sentence_is_upper_case_words(seed):
    sentence = grammar.draw_sentence(random.Random(seed))
    words = sentence.split(" ")
    assert 2 <= len(words) <= 20 and all(word.isalpha() and word.isupper() for word in words), sentence


def test_parts_have_their_shares():
    counts = Counter(grammar.part_of(sentence) for sentence in set(draws(5000)))
    total = sum(counts.values())
    assert set(counts) == set(grammar.PARTS)
    for part, share in (("train", 0.8), ("dev", 0.1), ("test", 0.1)):
        assert abs(counts[part] / total - share) < 0.02, counts


def test_vocabulary_is_small_and_the_same_in_all_parts():
    words = {part: set() for part in grammar.PARTS}
    for sentence in draws(20000):
        words[grammar.part_of(sentence)].update(sentence.split())
    assert words["dev"] <= words["train"] and words["test"] <= words["train"]
    assert 100 <= len(words["train"]) <= 160


def test_spoken_form_says_every_word():
    for sentence in draws(300):
        spoken = grammar.spoken_form(sentence, random.Random(sentence))
        letters = {"[['eI]]": "a", "[['aI]]": "i"}
        words = [letters.get(word.rstrip(",.!?"), word.rstrip(",.!?")) for word in spoken.split()]
        assert words == sentence.lower().split()


def test_voices_are_many_and_disjoint():
    sets = [set(VARIANTS[part]) for part in grammar.PARTS]
    assert sum(map(len, sets)) == len(set.union(*sets)) >= 40
    found = {part: speakers(part) for part in grammar.PARTS}
    assert len({speaker.id for some in found.values() for speaker in some}) == sum(map(len, found.values()))
    train, test = ({speaker.accent for speaker in found[part]} for part in ("train", "test"))
    assert train == test == set(ACCENTS)
