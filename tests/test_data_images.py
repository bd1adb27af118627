"""Pictures: modes, orientation and geometry in numbers."""

import json
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datafiles import picture, pictures
from ndvit import DataWarning
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
    "I;16": (Image.fromarray(np.full((2, 2), 4095, np.uint16)), "I;16", 4095),
    "I;16B": (Image.fromarray(np.full((2, 2), 4095, ">u2")), "I;16", 4095),
    "I": (Image.fromarray(np.full((2, 2), 65535, np.int32)), "I;16", 65535),
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
    image = read_image(tmp_path / "a.png")
    assert np.asarray(image).tolist() == [[0, 65535, 25700]]
    assert (raw((1, 3), "L")(image) * 255).tolist() == [[[0.0, 255.0, 100.0]]]  # as in models without other levels


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
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_agrees_with_torchvision(size, crop, height, resize):
    from torchvision.transforms import v2

    own, over = ((224, 224), height) if resize == "crop" else ((224, 112), (height, height // 2))
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
def test_squashing_agrees_with_transformers(name, crop, close):
    transformers = pytest.importorskip("transformers")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 500, 3), dtype=np.uint8))
    processor = getattr(transformers, name)(do_normalize=False)
    expected = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    interpolation = "bicubic" if "DeiT" in name else "bilinear"
    found = raw(224, crop_fraction=crop, resize="squash", interpolation=interpolation)(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    assert (raw(224, crop_fraction=crop, interpolation=interpolation)(image) - expected).abs().max() > 0.1


def test_squashing_keeps_what_cropping_loses():
    image = Image.new("L", (30, 10))
    image.paste(255, (0, 0, 10, 10))
    x = raw((10, 15), "L", interpolation="nearest", resize="squash")(image)
    assert x[0, :, :5].min() == 1
    assert x[0, :, 5:].max() == 0


@pytest.mark.parametrize(("before", "now"), [("cover", "crop"), ("stretch", "squash")])
def test_earlier_names_of_resize_are_read(before, now):
    assert raw(4, resize=before) == raw(4, resize=now)


def test_what_was_saved_before_there_was_squashing_crops():
    saved = {"kind": "image", "size": [4, 4], "mean": [0.0] * 3, "std": [1.0] * 3, "mode": "RGB"}
    assert preprocess_from_dict(saved | {"interpolation": "bicubic", "crop_fraction": 0.9}).resize == "crop"


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
    "resize": ({"resize": "border"}, "got 'border'"),
    "a crop that is no number": ({"crop_fraction": float("nan")}, "crop_fraction must be"),
    "a crop of nothing": ({"crop_fraction": 1e-300}, "crop_fraction must be from 0.01 to 1"),
    "levels reversed": ({"levels": (5, 5)}, "the lower first"),
    "levels beyond 16 bits": ({"levels": (0, 1e9)}, "two grey values from 0 to 65535"),
    "levels that are no numbers": ({"levels": (0, float("nan"))}, "two grey values"),
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
    assert fitted.unused_channels == (1, 2)
    np.testing.assert_allclose(fitted.mean, (0.5, 0.0, 0.2), atol=1e-6)
    np.testing.assert_allclose(fitted.std, (0.5, 1.0, 1.0), atol=1e-6)


def test_fit_caps_large_pictures_and_takes_a_size():
    large = Examples([Image.new("L", (896, 448), 9), Image.new("L", (896, 448), 99)])
    assert ImagePreprocess.fit(large).size == (224, 448)
    assert ImagePreprocess.fit(large, 32).size == (32, 32)
    assert ImagePreprocess.fit(large, (16, 32)).size == (16, 32)


def test_grey_only_where_all_are_grey():
    grey, colour = Image.new("L", (4, 4), 51), Image.new("RGB", (4, 4), (153, 153, 153))
    fitted = ImagePreprocess.fit(Examples([grey, Image.new("LA", (4, 4), (153, 255))]))
    assert (fitted.mode, fitted.channels) == ("L", 1)
    np.testing.assert_allclose(fitted.mean, [0.4], atol=1e-6)
    assert ImagePreprocess.fit(Examples([grey, colour])).mode == "RGB"


def test_statistics_of_a_folder_come_from_training_files(tmp_path):
    half = Image.new("RGB", (8, 6))
    half.paste((102, 102, 102), (0, 0, 4, 6))
    for split, image in (("train", half), ("test", Image.new("RGB", (90, 90), (255, 255, 255)))):
        for name in "ab":
            path = tmp_path / split / name / "x.png"
            path.parent.mkdir(parents=True)
            image.save(path)
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
        (9, 7), (0.1, 1 / 3, 0.2), (0.3, 0.7, np.pi), crop_fraction=0.9, interpolation="lanczos", resize="squash"
    )
    again = preprocess_from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    assert torch.equal(again(image), preprocess(image))


# grey values of more than 8 bits


def counts(low, high, n=4, dtype=np.uint16):
    """Grey pictures of 16 bits with values from `low` to `high`."""
    random = np.random.default_rng(0)
    values = random.integers(low, high, (n, 16, 16), endpoint=True)
    values[:, 0, :2] = low, high
    return [Image.fromarray(one.astype(dtype)) for one in values]


@pytest.mark.parametrize("dtype", [np.uint16, ">u2", np.int32])
@pytest.mark.parametrize("most", [255, 1023, 4095, 16383, 65535])
def test_counts_of_any_depth_fill_the_range(most, dtype):
    pictures = counts(0, most, dtype=dtype)
    fitted = ImagePreprocess.fit(Examples(pictures))
    assert (fitted.mode, fitted.levels) == ("L", (0, most))
    assert fitted.mean[0] == pytest.approx(0.5, abs=0.03)
    assert fitted(pictures[0]).std() == pytest.approx(1, abs=0.1)


def test_a_hot_pixel_does_not_darken_the_others():
    pictures = counts(100, 199)
    pictures[0].putpixel((3, 3), 65535)
    assert ImagePreprocess.fit(Examples(pictures)).levels == (100, 199 + 99)


def test_values_beyond_the_levels_are_clipped():
    preprocess = raw((1, 3), "L", levels=(100, 200))
    assert preprocess(Image.fromarray(np.array([[0, 160, 999]], np.uint16))).tolist() == [[[0, pytest.approx(0.6), 1]]]


def test_uint16_arrays_are_grey_pictures():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    preprocess = raw(8, "L", levels=(0, 63))
    assert torch.equal(preprocess(values), preprocess(Image.fromarray(values)))
    assert torch.equal(preprocess(values[..., None]), preprocess(values))


def test_levels_are_stored_only_where_they_matter():
    assert "levels" not in raw(4).to_dict()
    fitted = ImagePreprocess.fit(Examples(counts(0, 4095)))
    again = preprocess_from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again.levels == fitted.levels


def test_grey_values_unlike_those_of_training_are_described():
    fitted = ImagePreprocess.fit(Examples(counts(0, 4095)))
    assert fitted.unlike_training(counts(0, 4000)) == []
    assert fitted.unlike_training([Image.new("L", (4, 4), 9)]) == []
    assert "grey values from" in fitted.unlike_training(counts(0, 65535))[0]
    assert "grey values from" in raw(8, "L").unlike_training(counts(0, 255))[0]  # a model of pictures of 8 bits


@pytest.mark.parametrize("image", [Image.new("RGB", (8, 8), (9, 9, 9)), Image.fromarray(np.full((8, 8), 7, np.uint16))])
def test_blank_pictures_are_refused(image):
    with pytest.raises(ValueError, match="all 3 training pictures that were read are blank or nearly constant"):
        ImagePreprocess.fit(Examples([image] * 3))


def test_noise_of_less_than_a_level_is_refused():
    pictures = [Image.fromarray(np.array([[40, 40, 40, 41]], np.uint8))] * 4
    with pytest.raises(ValueError, match=r"the mean 40\.3 of 255"):
        ImagePreprocess.fit(Examples(pictures))


def test_a_constant_colour_is_not_used():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    pixels[..., 2] = 77
    fitted = ImagePreprocess.fit(Examples([Image.fromarray(p) for p in pixels]))
    assert fitted.unused_channels == (2,)
    alive = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    assert (fitted(alive)[2] == 0).all()
    assert fitted.unlike_training([Image.fromarray(pixels[0])]) == []
    assert fitted.unlike_training([alive]) == ["channel 2 was constant in training, differs here, and is not used"]


# resizing


def test_padding_keeps_everything_and_is_the_mean():
    image = Image.new("RGB", (20, 10), (255, 255, 255))
    x = ImagePreprocess((8, 8), (0.3, 0.4, 0.5), (0.2, 0.2, 0.2), resize="pad")(image)
    assert (x[:, :2] == 0).all()
    assert (x[:, 6:] == 0).all()
    torch.testing.assert_close(x[:, 2:6, 0], torch.tensor([3.5, 3.0, 2.5])[:, None].expand(3, 4))


@pytest.mark.parametrize("size", [(300, 200), (257, 401), (50, 60), (224, 224)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_padding_agrees_with_timm(size, crop):
    transforms = pytest.importorskip("timm.data.transforms_factory")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean, std = (0.2, 0.4, 0.6), (0.5, 0.25, 0.5)
    made = transforms.transforms_imagenet_eval(
        224, crop_pct=crop, crop_mode="border", interpolation="bicubic", mean=mean, std=std
    )(image)
    found = ImagePreprocess(224, mean, std, crop_fraction=crop, resize="pad")(image)
    torch.testing.assert_close(found, made, rtol=0, atol=0.01)  # timm's padding is rounded to whole grey levels


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_only_what_is_kept_is_resized(size, resize, monkeypatch):
    made = []
    whole = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *more: made.append(to) or whole(self, to, *more))
    x = raw(224, resize=resize)(Image.new("RGB", size, (255, 255, 255)))
    assert x.shape == (3, 224, 224)
    assert all(width <= 224 and height <= 224 for width, height in made)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_part_is_resized_as_the_whole(interpolation, monkeypatch):
    x, y = np.meshgrid(np.linspace(0, 40, 1500), np.linspace(0, 3, 100))
    image = Image.fromarray((127 + 100 * np.sin(x) * np.cos(y)).astype(np.uint8))
    part = raw(64, "L", interpolation=interpolation)(image)
    monkeypatch.setattr(images, "WASTE", 10**9)
    torch.testing.assert_close(part, raw(64, "L", interpolation=interpolation)(image), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("resize", "lost"), [("crop", 1 - 400 / 936), ("pad", 0), ("squash", 0)])
def test_the_part_that_is_lost(resize, lost):
    assert raw(224, resize=resize).lost(936, 400) == pytest.approx(lost)


def test_the_view_is_the_picture_that_the_network_reads():
    image = Image.new("RGB", (20, 10), (255, 255, 255))
    seen = ImagePreprocess((8, 8), (0.2, 0.4, 0.6), (0.2, 0.2, 0.2), resize="pad").view(image)
    assert (seen.size, seen.getpixel((4, 0)), seen.getpixel((4, 4))) == ((8, 8), (51, 102, 153), (255, 255, 255))


# notes on a set


def saved(root, made):
    for number, image in enumerate(made):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


def test_blank_pictures_are_named(tmp_path):
    made = [*counts(0, 4095, n=7), Image.fromarray(np.full((16, 16), 9, np.uint16))]
    notes = load_source(saved(tmp_path, made), progress=False).notes
    assert [note for note in notes if note.endswith("1 of 8 pictures are blank (a single colour): b/7.png")]


def test_a_mixture_of_depths_is_warned_of(tmp_path):
    grey = [Image.fromarray(np.asarray(image).astype(np.uint8)) for image in counts(0, 255)]
    with pytest.warns(DataWarning, match=r"pictures of 8 bits \(4\) and grey ones of more \(4\)"):
        load_source(saved(tmp_path, [*counts(0, 4095), *grey]), progress=False)


def sixteen_bits_of_colour(path, values):
    """Write (height, width, 3) uint16 as a PNG, which PIL cannot."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(("most", "warns"), [(4095, True), (65535, False)])
def test_colour_of_which_only_the_upper_bits_are_read(tmp_path, most, warns):
    for number, name in enumerate("aabb"):
        (tmp_path / name).mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, most, (8, 8, 3))
        sixteen_bits_of_colour(tmp_path / name / f"{number}.png", values)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_source(tmp_path, progress=False)
    assert any("only the upper 8 are read" in str(one.message) for one in seen) == warns
