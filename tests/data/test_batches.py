"""One image by itself is read as it is in an evaluation."""

import pickle
from dataclasses import replace
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.fakes.dicom import write_dicom

from cleft.config import AugmentConfig, DataConfig, ImagesConfig, OptimConfig, Settings, TrainConfig
from cleft.data.batches import Schedule, StepSampler, Views, eval_loader, label_table, load_image, train_loader
from cleft.data.images.cache import PrepareOptions, prepare_images
from cleft.data.images.preprocess import augment, centre_crop
from cleft.data.text.texts import Texts
from cleft.errors import ConfigError, DataError
from cleft.types import Record

FINDINGS = ("Edema", "Fracture")
SETTINGS = Settings(
    seed=3,
    images=ImagesConfig(stored_size=40, size=32),
    train=TrainConfig(batch_size=4),
    optim=OptimConfig(steps=7, warmup_steps=1),
)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)
        labels = {"Edema": float(number % 2)} if number else {}
        records.append(Record(id=path.name, image=path, labels=labels, patient="p", caption=f"caption {number % 3}"))
    return records, prepare_images(records, SETTINGS.images, tmp_path / "cache")


def same(ones, others):
    ones, others = list(ones), list(others)
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.captions == other.captions
        for field in ("images", "labels", "rows"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field), equal_nan=True, rtol=0, atol=0)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(0, 100), st.integers(0, 2**70))


@settings(max_examples=50, derandomize=True, deadline=None)
@given(shape=shapes, steps=st.integers(0, 30), skip=st.integers(0, 35), patients=st.integers(0, 40))
def test_q2_ranks_share_every_batch_and_no_row_comes_twice_in_an_epoch(shape, steps, skip, patients):
    world, share, extra, seed = shape
    batch_size = world * share
    n = batch_size + extra
    more = {"steps": steps, "seed": seed, "groups": np.arange(n) % patients if patients else None}
    ranks = [list(StepSampler(n, batch_size, rank=rank, world_size=world, **more)) for rank in range(world)]
    whole = list(StepSampler(n, batch_size, **more))
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole
    pairs = [pair for batch in whole for pair in batch]
    assert len(set(pairs)) == len(pairs) == steps * batch_size
    assert all(0 <= row < n for _, row in pairs)
    assert [batch[0][0] for batch in whole] == [step // (n // batch_size) for step in range(steps)]
    skipped = StepSampler(n, batch_size, first_step=skip, **more)
    assert list(skipped) == whole[skip:]
    assert len(skipped) == len(whole[skip:])


def test_order_is_the_same_on_every_machine_and_changes_with_epoch_and_seed():
    first = [row for _, row in next(iter(StepSampler(8, 8, steps=1, seed=0)))]
    assert first == [5, 3, 7, 2, 4, 1, 0, 6]
    epochs = [[row for _, row in batch] for batch in StepSampler(8, 8, steps=3, seed=0)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert first != [row for _, row in next(iter(StepSampler(8, 8, steps=1, seed=1)))]


def test_g5_an_epoch_drops_its_last_incomplete_batch_and_counts_it():
    sampler = StepSampler(10, 4, steps=4, seed=0)
    assert sampler.dropped == 2
    assert [[epoch for epoch, _ in batch] for batch in sampler] == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]


def test_g9_too_few_images_are_refused_with_both_counts():
    with pytest.raises(ConfigError, match="3 training images do not fill one batch of 4"):
        StepSampler(3, 4, steps=1, seed=0)
    with pytest.raises(ConfigError, match="a batch of 4 cannot be filled: there is only one training image; add"):
        StepSampler(1, 4, steps=1, seed=0)
    with pytest.raises(ConfigError, match="cannot be filled: there are no training images"):
        StepSampler(0, 4, steps=1, seed=0)


def test_m2_a_batch_that_cannot_be_divided_evenly_is_refused():
    with pytest.raises(ConfigError, match="batch of 10 cannot be divided evenly by 4 devices; the nearest size is 8"):
        StepSampler(100, 10, steps=1, seed=0, world_size=4)


def test_a_training_batch_holds_the_views_of_its_rows(data):
    records, prepared = data
    batches = list(train_loader(records, prepared, FINDINGS, SETTINGS))
    order = list(StepSampler(10, 4, steps=7, seed=3))
    assert [batch.rows.tolist() for batch in batches] == [[row for _, row in pairs] for pairs in order]
    batch, (epoch, row) = batches[5], order[5][1]
    assert (batch.images.shape, batch.images.dtype) == ((4, 1, 32, 32), torch.uint8)
    view = augment(prepared.pixels(f"{row}.png"), AugmentConfig(), 32, seed=(3, epoch, row))
    assert np.array_equal(batch.images[1, 0], view)
    assert batch.captions[1] == f"caption {row % 3}"
    assert batch.rows.dtype == torch.int64


@pytest.mark.parametrize(("workers", "distinct"), [(1, "none"), (2, "captions")])
def test_workers_change_no_batch(data, workers, distinct):
    alone = replace(SETTINGS, train=replace(SETTINGS.train, unique_in_batch=distinct))
    several = replace(alone, data=DataConfig(workers=workers))
    same(train_loader(*data, FINDINGS, alone), train_loader(*data, FINDINGS, several))
    loader = eval_loader(*data, FINDINGS, several, batch_size=4)
    for _ in range(2):
        same(eval_loader(*data, FINDINGS, SETTINGS, batch_size=4), loader)


def test_resuming_gives_the_remaining_batches(data):
    whole = list(train_loader(*data, FINDINGS, SETTINGS))
    same(whole[3:], train_loader(*data, FINDINGS, SETTINGS, Schedule(first_step=3)))


@pytest.mark.parametrize("distinct", ["none", "patients"])
def test_the_batches_of_all_ranks_form_the_global_batch(data, distinct):
    settings = replace(SETTINGS, train=replace(SETTINGS.train, unique_in_batch=distinct))
    whole = list(train_loader(*data, FINDINGS, settings))
    halves = [list(train_loader(*data, FINDINGS, settings, Schedule(rank=rank, world_size=2))) for rank in range(2)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(one.images, torch.cat([left.images, right.images]))


def test_a_batch_repeats_no_patient_if_set(data):
    records, prepared = data
    twins = [replace(record, patient=str(number // 2)) for number, record in enumerate(records)]
    settings = replace(SETTINGS, train=replace(SETTINGS.train, unique_in_batch="patients"))
    whole = list(train_loader(twins, prepared, FINDINGS, settings))
    assert [len(set((batch.rows // 2).tolist())) for batch in whole] == [4] * 7
    assert len({row for batch in whole[:2] for row in batch.rows.tolist()}) == 8
    same(whole[3:], train_loader(twins, prepared, FINDINGS, settings, Schedule(first_step=3)))
    plain = train_loader(twins, prepared, FINDINGS, SETTINGS)
    assert {len(set((batch.rows // 2).tolist())) for batch in plain} > {4}


def test_a_schedule_overrides_batch_size_and_steps(data):
    batches = list(train_loader(*data, FINDINGS, SETTINGS, Schedule(batch_size=5, steps=3)))
    assert [len(batch.captions) for batch in batches] == [5, 5, 5]


def test_g5_evaluation_reads_every_image_once_in_order_cropped_at_the_centre(data):
    records, prepared = data
    batches = list(eval_loader(records, prepared, FINDINGS, SETTINGS, batch_size=4))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert np.array_equal(batches[2].images[1, 0], centre_crop(prepared.pixels("9.png"), 32))


def test_g4_a_last_batch_of_one_keeps_its_shape(data):
    *_, last = eval_loader(*data, FINDINGS, SETTINGS, batch_size=9)
    assert last.images.shape == (1, 1, 32, 32)
    assert last.labels.shape == (1, 2)


def test_an_unmentioned_finding_is_nan(data):
    records, _ = data
    table = label_table(records[:2], FINDINGS)
    np.testing.assert_array_equal(table, [[np.nan, np.nan], [1, np.nan]])
    assert label_table(records, ()).shape == (10, 0)


def test_a_record_without_pixels_or_caption_is_refused(data):
    records, prepared = data
    stranger = replace(records[0], id="stranger")
    with pytest.raises(DataError, match="1 of 2 records has no prepared pixels, the first is stranger"):
        eval_loader([records[0], stranger], prepared, FINDINGS, SETTINGS, batch_size=1)
    with pytest.raises(DataError, match=r"0\.png has no caption"):
        eval_loader([replace(records[0], caption=None)], prepared, FINDINGS, SETTINGS, batch_size=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_c14_a_row_damaged_during_training_stops_it(data, workers):
    records, prepared = data
    for file in prepared.folder.glob("*.u8"):
        file.write_bytes(bytes(file.stat().st_size))
    several = replace(SETTINGS, data=DataConfig(workers=workers))
    with pytest.raises(DataError, match=r"image \d of the split: .* differs from its checksum"):
        for _ in train_loader(records, prepared, FINDINGS, several):
            pass


def test_data_sent_to_a_worker_are_small(data):
    records, prepared = data
    many = Views(records * 100, prepared, FINDINGS, SETTINGS.images, 0)
    assert len(pickle.dumps(many)) < 30_000


def test_texts_replace_captions_and_resume(data):
    records, prepared = data
    config = DataConfig(texts="bank", augment_texts=True)
    texts = Texts(records, FINDINGS, config, SETTINGS.seed)
    whole = list(train_loader(records, prepared, FINDINGS, SETTINGS, texts=texts))
    assert whole[0].text_labels.shape == (4, 2)
    assert len(whole[0].captions) == len(whole[0].reworded) == 4
    later = list(train_loader(records, prepared, FINDINGS, SETTINGS, Schedule(first_step=5), texts=texts))
    same(later, whole[5:])
    assert [batch.reworded for batch in later] == [batch.reworded for batch in whole[5:]]
    still = Texts(records, FINDINGS, config, SETTINGS.seed, fixed=True)
    (batch,) = eval_loader(records, prepared, FINDINGS, SETTINGS, batch_size=10, texts=still)
    assert batch.captions == [still.sample(0, row).text for row in range(10)]
    assert batch.reworded is None
    plain = next(iter(train_loader(records, prepared, FINDINGS, SETTINGS)))
    assert plain.text_labels is plain.reworded is None


def test_a_single_image_equals_the_same_image_in_a_batch(tmp_path):
    path = tmp_path / "chest.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8))
    config = ImagesConfig(stored_size=64, size=56)
    record = Record(id="a", image=path, labels={}, patient="p", caption="a chest x ray")
    prepared = prepare_images([record], config, tmp_path / "cache", PrepareOptions(progress=False))
    batch = next(iter(eval_loader([record], prepared, (), Settings(images=config, data=DataConfig()), batch_size=1)))
    alone = load_image(path, config)
    assert alone.dtype == torch.uint8
    assert torch.equal(alone, batch.images)


def test_a_dicom_file_is_shown_by_the_settings_of_the_run(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    path = write_dicom(tmp_path / "scan", pixels, bits=12, WindowCenter=900, WindowWidth=500)
    shown, released = (
        load_image(path, ImagesConfig(stored_size=64, size=64, dicom=dicom)) for dicom in ("voi", "released")
    )
    assert (shown == 255).float().mean() > 0.6
    assert torch.equal(released[0, 0], torch.from_numpy(np.rint(pixels * (255 / pixels.max())).astype(np.uint8)))


def test_a_file_that_is_not_an_image_is_refused(tmp_path):
    path = tmp_path / "thesis.png"
    path.write_text("chapter one")
    with pytest.raises(DataError, match=r"thesis\.png"):
        load_image(path, ImagesConfig())
