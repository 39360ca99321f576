"""Words: found whatever is typed and whatever they are written in; counted; and the domains pictures come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.apps.explorer.domains import address_column, domain, summary
from sfumato.apps.explorer.fulltext import FullText
from sfumato.apps.explorer.words import about, script, telling, tokens
from sfumato.errors import UserError

CAPTIONS = [
    "a red fox in the snow",
    "Café in Zürich, with a fox",
    "кошка на крыше",
    "東京の夜景",
    "party 🎉 time",
    'a "quoted" word OR not; DROP TABLE words; --',
    "<b>bold</b> \x1b[31mred\x1b[0m",
    "",
    "the foxes' den AND NEAR caption:x",
]


@pytest.fixture(scope="module")
def text():
    found = FullText((i, caption, f"folder/picture_{i}.jpg") for i, caption in enumerate(CAPTIONS))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("typed", "ids"),
    [
        ("fox", {0, 1}),
        ("FOX snow", {0}),
        ('"red fox"', {0}),
        ('"fox red"', set()),
        ("fox*", {0, 1, 8}),
        ("cafe", {1}),
        ("zurich", {1}),
        ("КОШКА", {2}),
        ("京", {3}),
        ("夜景", {3}),
        ("景夜", set()),
        ("🎉", {4}),
        ("OR", {5}),
        ("DROP TABLE words", {5}),
        ("AND", {8}),
        ("caption:x", {8}),
        ("bold", {6}),
        ("picture_3", {3}),
        ("picture_3.jpg", {3}),
        ("nothing", set()),
    ],
)
def test_what_is_typed_is_found(text, typed, ids):
    assert set(text.find(typed)[0].tolist()) == ids


def test_words_that_must_not_be_there(text):
    wanted, unwanted = text.find("fox -snow")
    assert set(wanted.tolist()) - set(unwanted.tolist()) == {1}
    wanted, unwanted = text.find('-"red fox"')
    assert wanted is None and unwanted.tolist() == [0]


def test_the_better_match_goes_first():
    """BM25: a word weighs more in a short caption, and in a caption than in a name."""
    rows = [(0, "a fox among many other words that say a lot of other things", "x"), (1, "fox", "y"), (2, "", "fox")]
    text = FullText([*rows, *((i, "something else", "z") for i in range(3, 40))])
    assert text.find("fox")[0].tolist()[0] == 1
    text.close()


@pytest.mark.parametrize("typed", ["", "   ", "---", "***", '""', "''", "!?", "-", '"', "()", "\0", "%", "_", "^"])
def test_signs_ask_for_nothing(text, typed):
    assert text.find(typed) == (None, None)


@settings(max_examples=300, deadline=None)
@given(typed=st.text(max_size=60) | st.text(alphabet='"*-:^()+{}[]\\;,. ANDORNEAR\0', max_size=40))
def test_nothing_that_is_typed_is_an_operator(typed):
    """No text at all is an error, or changes what is kept."""
    wanted, _ = SHARED.find(typed)
    assert wanted is None or set(wanted.tolist()) <= {0, 1}
    assert SHARED.find("fox")[0].tolist() == [0]


SHARED = FullText([(0, "fox", "a.jpg"), (1, "cat", "b.jpg")])


def test_a_text_without_end_is_refused(text):
    with pytest.raises(UserError, match="1,000 are enough"):
        text.find("a" * 5000)


def test_statistics_of_captions():
    texts = ["a red fox", "a red fox", "the red fox runs", "", "  ", "дом", "红狐"]
    found = about(range(7), texts)
    assert (found["pictures"], found["captioned"], found["empty"], found["distinct"]) == (7, 5, 2, 4)
    assert dict(map(tuple, found["words"]))["red"] == 3 and "the" not in dict(map(tuple, found["words"]))
    assert dict(map(tuple, found["phrases"])) == {"red fox": 3}
    assert found["repeated"] == [["a red fox", 2, [0, 1]]]
    assert dict(map(tuple, found["scripts"])) == {"Latin": 3, "Cyrillic": 1, "CJK": 1}
    assert found["length"]["characters"] == [2, 9.0, 16]
    assert sum(found["length"]["histogram"]["counts"]) == 5


def test_no_captions_are_no_error():
    found = about(range(3), ["", "", ""])
    assert found["captioned"] == 0 and found["words"] == [] and found["length"]["words"] is None
    assert about([], [])["pictures"] == 0


def test_words_keep_what_belongs_to_them():
    assert tokens("Don't stop, L’été_2024!") == ["don't", "stop", "l’été", "2024"]
    assert script("123 !?") == "None" and script("привет hi") == "Cyrillic"


def test_the_words_of_a_cluster_are_those_that_others_lack():
    texts = ["a small cat", "a black cat", "a cat asleep", "a small dog", "a black dog", "a dog asleep"]
    found = telling([0, 0, 0, 1, 1, 1], texts)
    assert found[0][0] == "cat" and found[1][0] == "dog"
    assert "small" not in found[0]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://www.bbc.co.uk/news?x=1", "bbc.co.uk"),
        ("HTTP://WWW.Example.COM:8080/a.JPG", "example.com"),
        ("https://i.pinimg.com/x.jpg", "pinimg.com"),
        ("http://cats.blogspot.com/x", "cats.blogspot.com"),
        ("http://img.cats.blogspot.co.uk/x", "cats.blogspot.co.uk"),
        ("https://art.wordpress.com", "art.wordpress.com"),
        ("https://wordpress.com", "wordpress.com"),
        ("https://cdn.shop.myshopify.com", "shop.myshopify.com"),
        ("https://bucket.s3.amazonaws.com/a", "bucket.s3.amazonaws.com"),
        ("https://xn--bcher-kva.example/", "bücher.example"),
        ("https://münchen.de", "münchen.de"),
        ("http://192.168.0.1/x", "192.168.0.1"),
        ("https://[::1]/x", "::1"),
        ("//cdn.example.org/a.png", "example.org"),
        ("example.org/a.png", "example.org"),
        ("https://user:word@evil.com@good.com/", "good.com"),
        ("javascript:alert(1)", None),
        ("mailto:a@b.c", None),
        ("http://[bad", None),
        ("http://a..b/", None),
        ("http://<script>.com/", None),
        ("not an address", None),
        ("", None),
    ],
)
def test_registrable_domains(address, expected):
    assert domain(address) == expected


def test_known_counts_of_domains():
    """10,000 rows, three hosts of known shares."""
    rng = np.random.default_rng(0)
    hosts = rng.choice(["www.a.com", "img.b.co.uk", "c.blogspot.com"], 10_000, p=[0.6, 0.3, 0.1])
    found = summary("url", [domain(f"https://{host}/{i}") for i, host in enumerate(hosts)] + [None] * 5)
    expected = {"a.com": "www.a.com", "b.co.uk": "img.b.co.uk", "c.blogspot.com": "c.blogspot.com"}
    assert {name: n for name, n, _ in found["domains"]} == {k: int((hosts == v).sum()) for k, v in expected.items()}
    assert found["without"] == 5 and abs(sum(share for *_, share in found["domains"]) - 1) < 1e-12


def test_the_column_of_addresses_is_found_by_name_or_by_content():
    rows = ["https://a.com/1", None, "https://b.com/2"]
    assert address_column({"text": ["a", "b", "c"], "URL": rows}) == "URL"
    assert address_column({"where": rows, "text": ["a", "b", "c"]}) == "where"
    assert address_column({"url": ["a", "b", "c"]}) is None
