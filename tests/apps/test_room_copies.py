"""Copies that were planted are found, each kind of them, and nothing else is taken for one."""

import io

import numpy as np
import pytest
from PIL import Image

from sfumato.apps.explorer.align import compare
from sfumato.apps.explorer.copies import Joined, groups, near_pairs
from sfumato.apps.explorer.facts import look
from tests.apps.rooms import drawing, folder_of, ids_by_name, settled

N = 40


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def signs_of(images):
    return np.stack([look(encoded(image, "PNG")).sign for image in images])


def changes(image, i):
    """What people do to pictures before they put them into a folder again."""
    w, h = image.size
    dx, dy = round(0.05 * w), round(0.05 * h)
    cut = (0, 0, w - dx, h - dy) if i % 2 else (dx, dy, w, h)
    return {
        "resize": image.resize((w // 2 + 5, h // 2 + 5), Image.Resampling.LANCZOS),
        "enlarge": image.resize((w * 2, h * 2), Image.Resampling.BICUBIC),
        "recompress": Image.open(io.BytesIO(encoded(image, quality=35))),
        "crop": image.crop(cut),
        "mirror": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "mirror and crop": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop(cut),
    }


@pytest.fixture(scope="module")
def base():
    return [drawing(seed) for seed in range(N)]


@pytest.mark.parametrize("kind", ["resize", "enlarge", "recompress", "crop", "mirror", "mirror and crop"])
def test_each_change_is_seen_through(base, kind):
    copied = [changes(image, i)[kind] for i, image in enumerate(base[:20])]
    found = {tuple(pair) for pair in near_pairs(signs_of([*base, *copied]), lambda share: None).tolist()}
    assert found == {(i, N + i) for i in range(20)}


def test_pictures_in_other_colours_are_other_pictures(base):
    turned = [Image.merge("RGB", image.split()[::-1]) for image in base[:20]]
    assert len(near_pairs(signs_of([*base, *turned]), lambda share: None)) == 0


def test_emoji_of_the_pack_are_not_copies_of_each_other(data_pack):
    """Of the 19,900 pairs of 200 emoji of one vendor, those taken for near copies are few: a hand and its back, a
    hand and its mirror image, two faces that differ by the size of their eyes (8 were measured)."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(data_pack / "emoji" / "emoji.parquet", filters=[("vendor", "=", "noto")]).slice(0, 200)
    signs = np.stack([look(cell["bytes"]).sign for cell in table.column("image").to_pylist()])
    texts = table.column("text").to_pylist()
    found = {frozenset((texts[a], texts[b])) for a, b in near_pairs(signs, lambda share: None).tolist()}
    assert len(found) <= 10, found


def test_alignment_finds_the_crop_that_was_cut():
    """The difference of a crop falls to a fraction once it is aligned, and that of another picture does not."""
    image, other = drawing(1, (256, 256)), drawing(2, (256, 256))
    crop = image.crop((8, 3, 253, 250))
    a, b, c = signs_of([image, crop, other])
    raw = np.sqrt(np.square(a.astype(float) - b).mean())
    found = compare(np.stack([a, a]), np.stack([b, c]))
    assert found.rms[0] < raw / 2 and found.rms[1] > 5 * found.rms[0]


def test_a_pale_picture_is_not_its_pale_neighbour():
    """Both differ from a flat one by less than compression does from a strong one."""
    ground = np.full((64, 64, 3), 240, np.uint8)
    left, right = ground.copy(), ground.copy()
    left[8:24, 8:24], right[40:56, 40:56] = 220, 220
    found = near_pairs(signs_of([Image.fromarray(left), Image.fromarray(right)]), lambda share: None)
    assert len(found) == 0


def test_groups_tell_exact_from_near():
    ids = np.array([3, 5, 8, 9, 12])
    signs = signs_of([drawing(1), drawing(1), drawing(1).resize((80, 60)), drawing(2), drawing(3)])
    found = groups(ids, ["f", "f", "g", "h", "i"], ["p", "p", "q", "r", "s"], signs, lambda share: None)
    assert [(group.exact, group.ids) for group in found] == [(False, (3, 5, 8))]
    found = groups(ids[:2], ["f", "g"], ["p", "p"], signs[:2], lambda share: None)
    assert [(group.exact, group.ids) for group in found] == [(True, (3, 5))]


def test_a_thousand_equal_pictures_are_one_group():
    signs = np.repeat(signs_of([drawing(1)]), 1000, 0)
    found = groups(np.arange(1000), ["same"] * 1000, ["same"] * 1000, signs, lambda share: None)
    assert len(found) == 1 and found[0].exact and len(found[0].ids) == 1000


def test_joining_is_transitive_and_named_by_the_first():
    joined = Joined(6)
    for pair in ((4, 5), (1, 4), (2, 3)):
        joined.join(*pair)
    assert joined.roots().tolist() == [0, 1, 2, 2, 1, 1]


def test_a_room_lists_copies_and_leaks(tmp_path, base):
    pictures = {f"train/{i:02d}.png": image for i, image in enumerate(base[:10])}
    pictures |= {"train/again.png": base[0], "test/leak.png": base[1], "test/near.jpg": changes(base[2], 0)["crop"]}
    pictures |= {"test/own.png": base[20]}
    with settled(folder_of(tmp_path, pictures)) as room:
        at = ids_by_name(room)
        found = {frozenset(group["ids"]): group for group in room.duplicates()["groups"]}
        exact, leak, near = (
            frozenset(at[name] for name in pair)
            for pair in (
                ("train/00.png", "train/again.png"),
                ("train/01.png", "test/leak.png"),
                ("train/02.png", "test/near.jpg"),
            )
        )
        assert set(found) == {exact, leak, near}
        assert [found[key]["kind"] for key in (exact, leak, near)] == ["exact", "exact", "near"]
        assert [found[key]["leak"] for key in (exact, leak, near)] == [False, True, True]
        leaks = room.leaks()
        assert {frozenset(group["ids"]) for group in leaks["groups"]} == {leak, near}
        assert leaks["splits"] == {"train": 2, "test": 2}
        summary = room.duplicates(0, 1)
        assert (summary["total"], summary["exact"], summary["near"], summary["extra"]) == (3, 2, 1, 3)
        assert len(summary["groups"]) == 1


def test_the_same_pixels_in_another_file_are_an_exact_copy(tmp_path):
    drawing(1).save(tmp_path / "a.png", compress_level=9)
    drawing(1).save(tmp_path / "b.png", compress_level=0)
    with settled(tmp_path) as room:
        assert [group["kind"] for group in room.duplicates()["groups"]] == ["exact"]
