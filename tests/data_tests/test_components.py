"""Connected components of the labels: found, stored beside the cache, and pasted in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from random_frames import resident, some_frames
from small_data import make

from fgseg import data
from fgseg.data import components as under_test
from fgseg.data.batches import DrawnComponents, train_batches
from fgseg.data.components import MAX_COMPONENTS, find_components, frame_components
from fgseg.data.device_frames import Frames, HostFrames
from fgseg.labels import VOID

FOREGROUND = range(1, 7)


def test_components_are_those_of_eight_neighbours_of_one_class():
    labels = np.zeros((32, 64), np.uint8)
    labels[0:4, 0:4] = 1
    labels[4:8, 4:8] = 1  # touches it at a corner
    labels[0:8, 8:12] = 2  # another class beside it
    labels[20:24, 30:40] = 1
    labels[10, :] = VOID
    ids, rows = frame_components(labels, FOREGROUND)
    assert sorted(map(tuple, rows[:, 1:].tolist())) == [(1, 0, 8), (1, 30, 40), (2, 8, 12)]
    for number, label, left, right in rows:
        mask = ids == number
        assert set(labels[mask]) == {label} and (np.flatnonzero(mask.any(0))[[0, -1]] == (left, right - 1)).all()
    assert ((ids > 0) == ((labels > 0) & (labels != VOID))).all()


def test_label_set_without_background_has_components_of_label_0():
    labels = np.full((16, 16), VOID, np.uint8)
    labels[2:6, 3:9] = 0
    assert frame_components(labels, range(3))[1].tolist() == [[1, 0, 3, 9]]
    assert len(frame_components(labels, range(1, 3))[1]) == 0


def test_small_components_are_left_out_and_the_largest_are_kept_first():
    labels = np.zeros((128, 256), np.uint8)
    labels[0, 0:7] = 4  # 7 of 32,768 pixels
    labels[2, 0:8] = 4
    labels[4, 0:20] = 5
    ids, rows = frame_components(labels, FOREGROUND)
    assert rows.tolist() == [[1, 5, 0, 20], [2, 4, 0, 8]]
    assert not ids[0].any()
    single = np.zeros((128, 256), np.uint8)
    single[::3, ::3] = 1
    assert len(frame_components(single, FOREGROUND)[1]) == 0


def test_the_largest_components_are_kept_where_there_are_too_many():
    blocks = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8)
    apart = np.where(np.kron(np.ones((32, 32)), np.pad(np.ones((6, 6)), 1)) > 0, blocks, 0)
    ids, rows = frame_components(apart.astype(np.uint8), FOREGROUND)
    assert len(rows) == MAX_COMPONENTS == ids.max()


def test_frame_without_foreground_has_none():
    found = find_components(np.zeros((2, 16, 16), np.uint8), FOREGROUND)
    assert found.table.shape == (0, 5) and not found.ids.any()


def test_components_are_stored_with_the_cached_split_and_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg = make("streets", tmp_path)
    assert data.load_splits(cfg, ["train"])["train"].components is None
    splits = data.load_splits(cfg, ["train", "val"], components=True)
    first = splits["train"].components
    assert splits["val"].components is None and first is not None
    expected = find_components(np.asarray(splits["train"].labels), FOREGROUND)
    assert (first.ids == expected.ids).all() and (first.table == expected.table).all()
    monkeypatch.setattr(under_test, "find_components", None)
    again = data.load_splits(cfg, ["train"], components=True)["train"].components
    assert again is not None and (again.table == expected.table).all()


@pytest.mark.parametrize("change", [lambda old: old[:-7], lambda old: b""])
@pytest.mark.parametrize("suffix", ["", "-table"])
def test_damaged_file_of_components_is_written_again(tmp_path: Path, suffix: str, change):
    cfg = make("streets", tmp_path)
    first = data.load_splits(cfg, ["train"], components=True)["train"].components
    (path,) = (tmp_path / "cache").glob(f"*/components-?{suffix}.npy")
    before = path.read_bytes()
    path.write_bytes(change(before))
    again = data.load_splits(cfg, ["train"], components=True)["train"].components
    assert first is not None and again is not None and (again.ids == first.ids).all()
    assert path.read_bytes() == before and not list(path.parent.glob("*.part"))


def draw(frames: Frames, run, seed: int = 0) -> DrawnComponents:
    drawn = DrawnComponents.draw(frames, run, torch.Generator().manual_seed(seed))
    assert drawn is not None
    return drawn


COMPONENT = {"copy_paste__mode": "component", "copy_paste__prob": 1.0, "copy_paste__components": 3}


def test_drawn_components_have_the_class_of_their_mask(tiny):
    frames = resident(some_frames(components=True))
    for source in draw(frames, tiny(**COMPONENT)).sources(slice(0, 4)):
        assert source.masks.flatten(1).any(1).all()
        for image, mask, label, left, right in zip(
            source.images, source.masks, source.labels, source.left, source.right, strict=True
        ):
            frame = next(k for k, other in enumerate(frames.images) if torch.equal(other.permute(2, 0, 1), image))
            assert (frames.labels[frame][mask] == label).all()
            columns = mask.any(0).nonzero()
            assert (columns.min(), columns.max() + 1) == (left, right)


def test_classes_are_drawn_equally_often_and_excluded_ones_never(tiny):
    frames = resident(some_frames(400, components=True))
    drawn = draw(frames, tiny(**COMPONENT, copy_paste__without="fence, car")).rows[..., 2]
    shares = torch.bincount(drawn.flatten(), minlength=7) / drawn.numel()
    # 1,200 draws of four classes: five standard deviations are 0.06
    assert shares.tolist() == pytest.approx([0, 0, 0, 0.25, 0.25, 0.25, 0.25], abs=0.06)


def test_frames_without_components_stay_as_they_are(tiny):
    plain = some_frames()
    black = data.FrameSet(**vars(plain) | {"labels": np.zeros_like(plain.labels)})
    black = data.FrameSet(**vars(black) | {"components": find_components(black.labels, FOREGROUND)})
    batches = list(train_batches(resident(black), tiny(**COMPONENT), torch.Generator().manual_seed(0)))
    assert not any(labels.any() for _, labels in batches)
    every = {"copy_paste__without": "fence,car,vegetation,pole,traffic_sign,traffic_light"}
    frames = resident(some_frames(components=True))
    off, excluded = (
        [labels for _, labels in train_batches(frames, tiny(**changes), torch.Generator().manual_seed(0))]
        for changes in ({"copy_paste__prob": 0.0}, COMPONENT | every)
    )
    assert all(torch.equal(a, b) for a, b in zip(off, excluded, strict=True))


EVERYTHING = COMPONENT | {
    "data__crop": "32x64", "augment__flip_prob": 0.5, "augment__scale": 2.0, "augment__colour": 1.0,
    "data__rare_class_temperature": 0.1, "copy_paste__without": "fence",
}  # fmt: skip


def test_all_augmentations_give_the_same_batches_from_the_host_and_from_the_device(tiny):
    frames = some_frames(components=True)
    both = [
        list(train_batches(kind, tiny(**EVERYTHING), torch.Generator().manual_seed(3)))
        for kind in (HostFrames(frames, torch.device("cpu")), resident(frames))
    ]
    assert [labels.shape for _, labels in both[0]] == [(2, 32, 64), (2, 32, 64), (1, 32, 64)]
    for mapped, other in zip(*both, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mapped, other, strict=True))


def test_settings_that_are_off_draw_nothing(tiny):
    frames, generators = resident(some_frames(components=True)), [torch.Generator().manual_seed(3) for _ in range(2)]
    off = {"copy_paste__mode": "frame", "augment__scale": 1.0, "augment__colour": 0.0, "data__crop": "64x128"}
    plain, explicit = (
        list(train_batches(frames, tiny(**changes), generator))
        for changes, generator in zip(({}, off), generators, strict=True)
    )
    assert all(torch.equal(a, b) for x, y in zip(plain, explicit, strict=True) for a, b in zip(x, y, strict=True))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_excluded_class_is_not_pasted_from_whole_frames(tiny):
    frames = some_frames(40)
    run = tiny(copy_paste__prob=1.0, copy_paste__without="car", train__batch_size=40)
    ((_, labels),) = train_batches(resident(frames), run, torch.Generator().manual_seed(0))
    before = frames.labels == 2
    assert (labels == 2).sum() < before.sum()
    for label in labels:
        assert any(((label.numpy() == 2) <= frame).all() for frame in before)


@pytest.mark.gpu
def test_augmentations_on_a_gpu_never_wait_for_it(tiny, gpu: torch.device):
    from fgseg.data.device_frames import copy_to

    frames = copy_to(gpu, some_frames(components=True))
    batches = train_batches(frames, tiny(**EVERYTHING), torch.Generator(gpu).manual_seed(3))
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert all(images.is_cuda for images, _ in batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
