"""Names of splits and of folders that go with pictures."""

import pytest

from ndvit.data.sources.split_names import alike, are_companions, are_pictures, companions, parse_split, split_of

NAMES = {
    "train": "train Training TRAIN-data training_set trainset train2017 train_images imagesTr trainval 01_train",
    "val": "val valid Validation dev devset val2017 validation_images VAL",
    "test": "test Testing test_set testdata imagesTs eval evaluation holdout hold-out Held_Out TestSet test1",
    None: "cat contest latest testament constraint valence developer bullet_train test_tube seg_train fold1 pred 犬 x",
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names.split()])
def test_splits_in_any_spelling(split, name):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("test set", ("test", "")),
        ("seg_train", ("train", "seg")),
        ("dev-clean", ("val", "clean")),
        ("unlabeled", ("unlabelled", "")),
        ("submission_images", ("new", "")),
        ("fold_10", ("part", "")),
        ("fold", None),
        ("train_test", None),
        ("train_masks", ("train", "masks")),
    ],
)
def test_other_words_are_kept(name, found):
    assert parse_split(name) == found


def test_folders_of_pictures_and_of_what_goes_with_them():
    assert all(map(are_pictures, ("images", "JPEGImages", "photos", "img")))
    assert all(map(are_companions, ("masks", "Labels", "ground truth", "GT", "annotations", "SegmentationMasks")))
    assert not any(map(are_pictures, ("cat", "data", "masks")))
    assert not any(map(are_companions, ("images", "no_mask", "with_mask")))


def test_names_of_masks_beside_pictures():
    names = ["benign (1)", "benign (1)_mask", "benign (1)_mask_1", "b-seg", "b", "cat_mask", "c_2"]
    assert companions(names) == {"benign (1)_mask": "benign (1)", "benign (1)_mask_1": "benign (1)", "b-seg": "b"}


def test_names_that_mean_the_same():
    assert alike(" Polar_Bear") == alike("polar bear")
    assert len({alike(name) for name in ("-1", "1", "a", "b", "a b")}) == 5
