"""Pictures: modes, orientation and geometry in numbers."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from datafiles import picture, pictures
from ndvit.data.examples import Examples
from ndvit.data.preprocess import fit_preprocess, images, preprocess_from_dict
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.files import read_example
from ndvit.data.sources.load import load_source
from ndvit.data.sources.pictures import image_size, plain, read_image


def raw(size, mode="RGB", **more):
    """A preprocessing that only scales to 0..1."""
    channels = 1 if mode == "L" else 3
    return ImagePreprocess(size, (0.0,) * channels, (1.0,) * channels, mode, **more)


def pixel(image):
    return plain(image).getpixel((0, 0))


MODES = {
    "1": (Image.new("1", (2, 2), 1), "L", 255),
    "L": (Image.new("L", (2, 2), 77), "L", 77),
    "RGB": (Image.new("RGB", (2, 2), (1, 2, 3)), "RGB", (1, 2, 3)),
    "P": (Image.new("RGB", (2, 2), (255, 0, 0)).convert("P"), "RGB", (255, 0, 0)),
    "LA half": (Image.new("LA", (2, 2), (100, 128)), "L", 177),  # 100 * 128/255 + 255 * 127/255
    "RGBA clear": (Image.new("RGBA", (2, 2), (9, 9, 9, 0)), "RGB", (255, 255, 255)),
    "RGBA full": (Image.new("RGBA", (2, 2), (9, 8, 7, 255)), "RGB", (9, 8, 7)),
    "CMYK white": (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "RGB", (255, 255, 255)),
    "CMYK cyan": (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "RGB", (0, 255, 255)),
    "CMYK black": (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), "RGB", (0, 0, 0)),
    "I;16": (Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)), "L", 100),
    "I;16 full": (Image.fromarray(np.full((2, 2), 65535, np.uint16)), "L", 255),
    "I": (Image.fromarray(np.full((2, 2), 257 * 3, np.int32)), "L", 3),
    "YCbCr": (Image.new("YCbCr", (2, 2), (255, 128, 128)), "RGB", (255, 255, 255)),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name):
    image, mode, value = MODES[name]
    found = plain(image)
    assert found.mode == mode
    assert pixel(image) == pytest.approx(value, abs=1)


def test_palette_with_transparency_is_laid_on_white(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (2, 2), 0.5), "without a defined range"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "from 70000 to 70000; save it with 8 or 16 bits"),
    ],
    ids=["float", "32 bits"],
)
def test_values_without_a_range_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        plain(image)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp", ".webp", ".gif"])
def test_files_are_read_whole_and_closed(tmp_path, suffix):
    path = picture(tmp_path / f"a{suffix}", size=(30, 20))
    image = read_image(path)
    assert image.size == (30, 20)
    assert getattr(image, "fp", None) is None
    path.unlink()
    assert image.getpixel((25, 15))[0] == pytest.approx(200, abs=12)
    pickle.dumps(image)


def test_sixteen_bit_png(tmp_path):
    Image.fromarray(np.array([[0, 65535, 25700]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[0, 255, 100]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("black", (0, 0, 16, 8))  # a mark in the upper left corner
    turn = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in turn.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    stored.save(path, exif=exif, quality=95)
    assert image_size(path) == (20, 40)
    for image in (read_image(path), Image.open(path)):
        tensor = raw((20, 40))(image)
        assert tensor[:, 2, 2].max() < 0.2
        assert tensor[:, -3, -3].min() > 0.8
        image.close()


def test_pixels_are_scaled_and_standardised():
    preprocess = ImagePreprocess((2, 2), (0.5, 0.2, 0.0), (0.5, 0.1, 1.0))
    x = preprocess(Image.new("RGB", (2, 2), (255, 51, 0)))
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert (x.shape, x.dtype, x.is_contiguous()) == ((3, 2, 2), torch.float32, True)
    assert preprocess.masked(Image.new("RGB", (2, 2)))[1] is None
    assert preprocess.fits(Image.new("RGB", (2000, 2)))


def test_grey_and_colour_convert_into_each_other():
    assert raw(2, "L")(Image.new("RGB", (2, 2), (255, 0, 0))).flatten()[0] == pytest.approx(0.299, abs=0.002)
    assert raw(2)(Image.new("L", (2, 2), 51))[:, 0, 0].tolist() == pytest.approx([0.2] * 3)


def test_the_longer_side_is_cropped_at_the_centre():
    image = Image.new("RGB", (30, 10))
    image.paste("white", (10, 0, 20, 10))
    assert (raw(10)(image) == 1).all()
    assert (raw(10)(image.transpose(Image.Transpose.ROTATE_90)) == 1).all()


def test_rectangles_keep_their_aspect():
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))
    x = raw((10, 20), "L", interpolation="nearest")(image)
    assert x[0, :, :10].min() == 1
    assert x[0, :, 10:].max() == 0


@pytest.mark.parametrize("size", [(300, 200), (257, 401), (224, 224), (50, 60), (1000, 333)])
@pytest.mark.parametrize(("crop", "height"), [(0.875, 256), (1.0, 224), (0.9, 248)])
@pytest.mark.parametrize("resize", ["cover", "stretch"])
def test_agrees_with_torchvision(size, crop, height, resize):
    from torchvision.transforms import v2

    own, over = ((224, 224), height) if resize == "cover" else ((224, 112), (height, height // 2))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    pipeline = v2.Compose([v2.Resize(over, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(own)])
    expected = v2.functional.pil_to_tensor(pipeline(image)).float() / 255
    assert torch.equal(raw(own, crop_fraction=crop, resize=resize)(image), expected)


@pytest.mark.parametrize(
    ("name", "crop", "close"),
    [
        ("ViTImageProcessorPil", 1.0, 1e-6),
        ("DeiTImageProcessorPil", 0.875, 1e-6),
        ("ViTImageProcessor", 1.0, 1.01 / 255),  # backed by torchvision, whose integer weights round differently
    ],
)
def test_stretching_agrees_with_transformers(name, crop, close):
    transformers = pytest.importorskip("transformers")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 500, 3), dtype=np.uint8))
    processor = getattr(transformers, name)(do_normalize=False)
    expected = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    interpolation = "bicubic" if "DeiT" in name else "bilinear"
    found = raw(224, crop_fraction=crop, resize="stretch", interpolation=interpolation)(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    assert (raw(224, crop_fraction=crop, interpolation=interpolation)(image) - expected).abs().max() > 0.1


def test_stretching_keeps_what_covering_loses():
    image = Image.new("L", (30, 10))
    image.paste(255, (0, 0, 10, 10))
    x = raw((10, 15), "L", interpolation="nearest", resize="stretch")(image)
    assert x[0, :, :5].min() == 1
    assert x[0, :, 5:].max() == 0


def test_what_was_saved_before_there_was_stretching_covers():
    saved = {"kind": "image", "size": [4, 4], "mean": [0.0] * 3, "std": [1.0] * 3, "mode": "RGB"}
    assert preprocess_from_dict(saved | {"interpolation": "bicubic", "crop_fraction": 0.9}).resize == "cover"


def test_arrays_are_laid_out_as_in_pil():
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    expected = torch.from_numpy(values).permute(2, 0, 1) / 255
    assert torch.equal(raw((4, 5))(values), expected)
    assert torch.equal(raw((4, 5), "L")(values[..., 0]), expected[:1])
    assert torch.equal(raw((4, 5), "L")(values[..., :1]), expected[:1])


BAD = {
    "channels first": (np.zeros((3, 8, 9), np.uint8), r"uint8 of shape \(3, 8, 9\).*move the channels last"),
    "float": (np.zeros((8, 9, 3)), "got float64.*scale the values"),
    "empty": (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\)"),
    "a row": (np.zeros(9, np.uint8), r"shape \(9,\)"),
    "a list": ([[1, 2]], "PIL image or a uint8 array; got list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(name):
    with pytest.raises(ValueError, match=BAD[name][1]):
        raw(4)(BAD[name][0])


FIELDS = {
    "three axes": ({"size": (1, 2, 3)}, r"size is \(height, width\)"),
    "size 0": ({"size": 0}, "size must be whole numbers"),
    "std": ({"std": (1.0, 1.0, 0.0)}, "std above 0"),
    "mode": ({"mode": "RGBA"}, 'mode is "RGB" with 3 means or "L" with 1'),
    "grey of three": ({"mode": "L"}, 'mode is "RGB" with 3 means or "L" with 1'),
    "interpolation": ({"interpolation": "cubic"}, "interpolation is nearest"),
    "crop": ({"crop_fraction": 1.5}, "crop_fraction must be"),
    "resize": ({"resize": "squash"}, "\"stretch\"; got 'squash'"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_bad_fields(name):
    with pytest.raises(ValueError, match=FIELDS[name][1]):
        ImagePreprocess(**{"size": 4, "mean": (0.0,) * 3, "std": (1.0,) * 3} | FIELDS[name][0])


def test_fit_takes_median_size_and_statistics():
    colours = [(255, 0, 51), (0, 0, 51)]
    sizes = [(10, 20), (10, 20), (12, 24), (500, 20)]
    pictures = [Image.new("RGB", size, colours[i % 2]) for i, size in enumerate(sizes)]
    fitted = ImagePreprocess.fit(Examples(pictures))
    assert fitted.size == (20, 11)
    assert fitted.mode == "RGB"
    np.testing.assert_allclose(fitted.mean, (0.5, 0.0, 0.2), atol=1e-6)
    np.testing.assert_allclose(fitted.std, (0.5, 1.0, 1.0), atol=1e-6)


def test_fit_caps_large_pictures_and_takes_a_size():
    large = Examples([Image.new("L", (896, 448), 9)])
    assert ImagePreprocess.fit(large).size == (224, 448)
    assert ImagePreprocess.fit(large, 32).size == (32, 32)
    assert ImagePreprocess.fit(large, (16, 32)).size == (16, 32)


def test_grey_only_where_all_are_grey():
    grey, colour = Image.new("L", (4, 4), 51), Image.new("RGB", (4, 4), (51, 51, 51))
    fitted = ImagePreprocess.fit(Examples([grey, Image.new("LA", (4, 4), (51, 255))]))
    assert (fitted.mode, fitted.channels) == ("L", 1)
    np.testing.assert_allclose(fitted.mean, [0.2], atol=1e-6)
    assert ImagePreprocess.fit(Examples([grey, colour])).mode == "RGB"


def test_statistics_of_a_folder_come_from_training_files(tmp_path):
    for split, colour in (("train", (51, 51, 51)), ("test", (255, 255, 255))):
        for name in "ab":
            path = tmp_path / split / name / "x.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 6) if split == "train" else (90, 90), colour).save(path)
    fitted = fit_preprocess(load_source(tmp_path))
    assert fitted.size == (6, 8)
    np.testing.assert_allclose(fitted.mean, [0.2] * 3, atol=1e-6)


def test_fit_samples_many_pictures_with_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_SAMPLE", 3)
    pictures(tmp_path, count=6)
    paths = sorted(str(path) for path in tmp_path.glob("*/*.png"))
    read: list[str] = []

    def counting(path):
        read.append(path)
        return read_example(path)

    first = ImagePreprocess.fit(Examples(paths, read=counting))
    assert len(read) == 3
    assert first == ImagePreprocess.fit(Examples(paths, read=counting))


def test_round_trip():
    preprocess = ImagePreprocess(
        (9, 7), (0.1, 1 / 3, 0.2), (0.3, 0.7, np.pi), crop_fraction=0.9, interpolation="lanczos", resize="stretch"
    )
    again = preprocess_from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    assert torch.equal(again(image), preprocess(image))
