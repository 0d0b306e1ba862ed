"""README, docs, presets and the package use the terms of the field.

`python -m tests.tools.words` lists the places; an exception is an entry in its `ALLOWED`, with a reason.
"""

from tests.tools.words import ALLOWED, AVOID, ROOT, counts, places


def test_no_word_to_avoid_is_used(capsys):
    found = list(places())
    with capsys.disabled():
        print(f"\nwords to avoid: {sum(counts().values())} in {len(AVOID)} kinds; {len(ALLOWED)} exceptions")
    assert not found, "\n".join(f"{place.path}:{place.line}: {place.word}: {place.text}" for place in found[:20])


def test_every_exception_is_needed():
    allowed = {(word, where) for word, where, reason in ALLOWED if reason}
    assert len(allowed) == len(ALLOWED)
    for word, where in allowed:
        assert (ROOT / where).exists(), where
        assert any(True for _ in places(words={word: AVOID[word]}, below=(where,), use_exceptions=False)), (word, where)
