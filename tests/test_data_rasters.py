"""Rasters of bands, and arrays in .npz files, as examples."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from datafiles import arrays, cut, npy, picture, pictures
from ndvit.data import checking
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources import rasters
from ndvit.data.sources.files import header_of, read_example
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.npy import npy_shape, read_npy
from ndvit.data.sources.rasters import raster_shape, read_raster

MANY = {"photometric": "minisblack", "planarconfig": "contig"}


def values(*shape, dtype=np.uint16, most=60_000):
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def raster(path, bands=5, size=(6, 8), offset=0, **save):
    """A raster whose bands have means of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(offset)
    made = random.normal(np.arange(bands) * 1000 + 5000 + offset, 10, (*size, bands)).astype(np.uint16)
    tifffile.imwrite(path, made, **{**MANY, **save})
    return path


def classes(root, count=4, **made):
    for number, name in enumerate(("field", "wood")):
        for i in range(count):
            raster(root / name / f"{i}.tif", offset=100 * number + i, **made)
    return root


PICTURES = {
    "grey": (values(6, 8, dtype=np.uint8, most=255), {}),
    "grey of 16 bits": (values(6, 8), {}),
    "colour": (values(6, 8, 3, dtype=np.uint8, most=255), {}),
    "colour in planes": (
        values(3, 6, 8, dtype=np.uint8, most=255),
        {"photometric": "rgb", "planarconfig": "separate"},
    ),
    "transparent": (
        values(6, 8, 4, dtype=np.uint8, most=255),
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
    ),
    "transparent grey": (values(6, 8, 2, dtype=np.uint8, most=255), {**MANY, "extrasamples": ["unassalpha"]}),
    "black and white": (values(6, 8, most=2).astype(bool), {}),
    "colour pages": (values(3, 6, 8, 3, dtype=np.uint8, most=255), {"photometric": "rgb"}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_stay_pictures(tmp_path, name):
    array, save = PICTURES[name]
    tifffile.imwrite(tmp_path / "a.tif", array, **save)
    assert raster_shape(tmp_path / "a.tif") is None
    assert read_raster(tmp_path / "a.tif") is None
    assert isinstance(read_example(str(tmp_path / "a.tif")), Image.Image)
    assert header_of(str(tmp_path / "a.tif")) == ("image", 0, (6, 8), None)


def test_bits_that_differ_are_left_to_pil(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values(6, 8, 3, dtype=np.uint8, most=255), photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].tags["BitsPerSample"].valueoffset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[at : at + 2] = (4).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(data)
    assert raster_shape(tmp_path / "a.tif") is None
    with pytest.raises(ValueError, match=r"a.tif: is not a picture, or has a format that PIL cannot read"):
        read_example(str(tmp_path / "a.tif"))


def test_palettes_and_cmyk_stay_pictures(tmp_path):
    for mode in ("P", "CMYK", "YCbCr", "LAB"):
        assert raster_shape(picture(tmp_path / "a.tif", mode=mode)) is None


RASTERS = {  # the array, how it is saved, and the axis that the bands are on
    "bands": (values(6, 8, 13), MANY, -1),
    "bands in planes": (values(13, 6, 8), {"photometric": "minisblack", "planarconfig": "separate"}, 0),
    "tiles, deflated": (values(40, 50, 13), {**MANY, "tile": (16, 16), "compression": "zlib", "predictor": 2}, -1),
    "two bands": (values(6, 8, 2, dtype=np.uint8, most=255), MANY, -1),
    "three bands": (values(6, 8, 3, dtype=np.uint8, most=255), MANY, -1),
    "colour and a band": (
        values(6, 8, 4, dtype=np.uint8, most=255),
        {"photometric": "rgb", "extrasamples": ["unspecified"]},
        -1,
    ),
    "colour of 16 bits": (values(6, 8, 3), {"photometric": "rgb"}, -1),
    "pages": (values(5, 6, 8, dtype=np.uint8, most=255), {"photometric": "minisblack"}, 0),
    "pages of floats": (values(5, 6, 8) / np.float32(7), {"photometric": "minisblack"}, 0),
    "one pixel": (values(1, 1, 13), MANY, -1),
    "float": (values(1, 6, 8) / np.float32(7), {}, 0),
    "double": (values(1, 6, 8) / 7, {}, 0),
    "signed": (values(1, 6, 8, dtype=np.int16, most=300) - 150, {}, 0),
    "big-endian": (values(6, 8, 13), {**MANY, "byteorder": ">"}, -1),
}


@pytest.mark.parametrize("name", RASTERS)
def test_rasters(tmp_path, name):
    array, save, axis = RASTERS[name]
    tifffile.imwrite(tmp_path / "a.TIF", array, **save)
    expected = np.moveaxis(array, axis, 0).astype(np.float32)
    read = read_example(str(tmp_path / "a.TIF"))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected)
    assert raster_shape(tmp_path / "a.TIF") == expected.shape
    assert header_of(str(tmp_path / "a.TIF")) == ("signal", len(expected), expected.shape[1:], None)


@pytest.mark.parametrize(
    ("dtype", "mark", "text"),
    [
        ("float32", -9999.9, "-9999.9"),
        ("float64", -9999.9, "-9999.9"),
        ("float32", np.finfo("f4").min, "-3.4028234663852886e+38"),
        ("float32", np.inf, "inf"),
        ("uint16", 65535, "65535"),
        ("int16", -32768, "-32768"),
    ],
)
def test_nodata_is_missing(tmp_path, dtype, mark, text):
    array = values(6, 8, 3, most=1000).astype(dtype)
    array[0, :3, 1] = mark
    tifffile.imwrite(tmp_path / "a.tif", array, **MANY, extratags=[(42113, 2, 0, text, True)])
    read = read_raster(tmp_path / "a.tif")
    assert np.argwhere(np.isnan(read)).tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 2]]


@pytest.mark.parametrize("text", ["-9999", "0.5", "nothing", "nan"])
def test_nodata_that_no_value_can_have(tmp_path, text, capfd):
    tifffile.imwrite(tmp_path / "a.tif", values(6, 8, 3), **MANY, extratags=[(42113, 2, 0, text, True)])
    assert not np.isnan(read_raster(tmp_path / "a.tif")).any()
    assert capfd.readouterr() == ("", "")  # tifffile logs that the mark does not fit


def test_smaller_copies_are_not_bands(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values(64, 64, 5), **MANY)
        file.write(values(32, 32, 5), **MANY, subfiletype=1)
    assert raster_shape(tmp_path / "a.tif") == (5, 64, 64)


GDAL = {  # tags by which a TIFF has a place on earth, or was written by GDAL
    "scale": (33550, "d", 3, (10.0, 10.0, 0.0), True),
    "keys": (34735, "H", 4, (1, 1, 0, 0), True),
    "metadata": (42112, "s", 0, "<GDALMetadata></GDALMetadata>", True),
    "no data": (42113, "s", 0, "0", True),
}


def veiled(path, alpha, kind="unassalpha", **save):
    """Colour of 8 bits and a band that is marked as transparency."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = values(6, 8, 4, dtype=np.uint8, most=255) + np.uint8(1)  # nowhere 0
    array[..., 3] = alpha
    tifffile.imwrite(path, array, photometric="rgb", extrasamples=[kind], **save)
    return array


@pytest.mark.parametrize("tag", GDAL)
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_a_fourth_band_by_gdal_is_a_band(tmp_path, tag, kind):
    array = veiled(tmp_path / "a.tif", np.arange(1, 9), kind, extratags=[GDAL[tag]])
    np.testing.assert_array_equal(read_example(str(tmp_path / "a.tif")), np.moveaxis(array, -1, 0))
    assert raster_shape(tmp_path / "a.tif") == (4, 6, 8)
    tifffile.imwrite(tmp_path / "b.tif", array[..., :3], photometric="rgb", extratags=[GDAL[tag]])
    assert raster_shape(tmp_path / "b.tif") is None


@pytest.mark.parametrize("limit", [0, 100], ids=["headers", "whole"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.filterwarnings("ignore::ndvit.DataWarning")
def test_the_notes_say_how_transparency_is_read(tmp_path, monkeypatch, limit, kind):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", limit)
    for name in ("field", "wood"):
        for i in range(3):
            veiled(tmp_path / "pictures" / name / f"{i}.tif", np.arange(8) // 4 * 255, kind)  # none or all
            veiled(tmp_path / "bands" / name / f"{i}.tif", 77, kind, extratags=[GDAL["scale"]])
    taken = "transparency that may be a measured band, in {} of 6 pictures"
    source = load_source(tmp_path / "pictures")
    assert (source.kind, any(taken.format(6) in note for note in source.notes)) == ("image", limit == 0)
    if limit:
        assert not any("transparency" in note for note in source.notes)
    veiled(tmp_path / "pictures" / "wood" / "0.tif", 77, kind)
    veiled(tmp_path / "pictures" / "wood" / "1.tif", np.arange(8) // 4 * 254, kind)
    source = load_source(tmp_path / "pictures")
    assert any(taken.format(2 if limit else 6) in note for note in source.notes)
    assert any(".npy (channels, height, width)" in note for note in source.notes)
    source = load_source(tmp_path / "bands")
    assert (source.kind, len(source.train[0])) == ("signal", 4)
    assert any("marked as transparency is read as any other, in 6 of 6 rasters" in note for note in source.notes)


def test_transparent_grey_and_other_files_are_judged_too(tmp_path):
    save = {**MANY, "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", values(6, 8, 2, dtype=np.uint8, most=255), **save)
    assert rasters.has_doubtful_alpha(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", values(6, 8, 2, dtype=np.uint8, most=2) * np.uint8(255), **save)
    assert not rasters.has_doubtful_alpha(tmp_path / "a.tif")
    assert rasters.has_doubtful_alpha(tmp_path / "a.tif", whole=False)
    for mode in ("RGB", "L", "1", "P", "LAB", "CMYK"):
        assert not rasters.has_doubtful_alpha(picture(tmp_path / "b.tif", mode=mode), whole=False)
    Image.new("RGBA", (3, 3), (9, 9, 9, 77)).save(tmp_path / "c.png")  # in which it is never anything else
    assert not rasters.has_doubtful_alpha(tmp_path / "c.png")


def pages(path, *arrays, **save):
    with tifffile.TiffWriter(path) as file:
        for array in arrays:
            file.write(array, **save)
    return path


def claim(path, height):
    """Change the height that the header claims."""
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["ImageLength"].valueoffset
    data = bytearray(path.read_bytes())
    data[at : at + 4] = height.to_bytes(4, "little")
    path.write_bytes(data)
    return path


BAD = {
    "cut": (lambda p: cut(raster(p)), "failed to read"),
    "cut, deflated": (lambda p: cut(raster(p, compression="zlib"), 0.9), "is damaged or cut off .*incomplete or"),
    "cut in its header": (lambda p: cut(raster(p), 0.02), "(is not a picture|cannot be read)"),
    "empty": (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "unequal pages": (lambda p: pages(p, values(6, 8, dtype="i2"), values(5, 8, dtype="i2")), "2 pages that are not"),
    "pages of bands": (lambda p: pages(p, values(6, 8, 5), values(6, 8, 5), **MANY), "equal size and type with one"),
    "complex": (lambda p: pages(p, values(6, 8) * 1j), "values of type complex128; expected numbers"),
    "volume": (
        lambda p: pages(p, values(4, 16, 16), photometric="minisblack", volumetric=True, tile=(4, 16, 16)),
        "a volume of depth 4; save it as .npy",
    ),
    "too many values": (lambda p: claim(raster(p), 2**31), "claims 5 x 2147483648 x 8 values, more than 536,870,912"),
    "infinite": (lambda p: pages(p, np.full((6, 8, 5), np.inf, np.float32), **MANY), "has infinite values"),
    "overflow": (lambda p: pages(p, np.full((6, 8, 5), 1e300), **MANY), "has infinite values"),
    "other bands": (lambda p: raster(p, bands=4), "4 channels and 2 axes, most have 5 and 2"),
    "a picture": (lambda p: picture(p), "is a picture in grey or colour, most are a raster of 5 bands"),
    "nothing measured": (
        lambda p: raster(p, size=(1, 1)) and pages(p, np.full((6, 8, 5), np.nan, np.float32), **MANY),
        "nothing is observed",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rasters_are_named(tmp_path, name):
    make, message = BAD[name]
    classes(tmp_path)
    make(tmp_path / "wood" / "9.tif")
    with pytest.raises(ValueError, match=rf"1 of 9 examples cannot be used: wood/9.tif: .*{message}"):
        load_source(tmp_path)
    source = load_source(tmp_path, skip_bad=True)
    assert len(source.train) + len(source.test) == 8


def test_rasters_among_pictures_are_named(tmp_path):
    pictures(tmp_path, classes=("field", "wood"), suffix=".tif")
    raster(tmp_path / "wood" / "8.tif")
    pages(tmp_path / "wood" / "9.tif", values(6, 8) / 7)
    message = r"wood/8.tif: is a raster of 5 bands, most are a picture .*; wood/9.tif: is a raster of 1 band, most"
    with pytest.raises(ValueError, match=message):
        load_source(tmp_path)
    assert load_source(tmp_path, skip_bad=True).kind == "image"


@pytest.mark.parametrize("table", ["DECOMPRESSORS", "UNPREDICTORS"])
def test_compression_that_needs_a_package(tmp_path, monkeypatch, table):
    class Lacking:
        def __getitem__(self, key):
            raise KeyError(f"<{key!r}> requires the 'imagecodecs' package")

    path = raster(tmp_path / "a.tif", compression="zlib", predictor=2)
    monkeypatch.setattr(tifffile.TIFF, table, Lacking())
    name = {"DECOMPRESSORS": "ADOBE_DEFLATE", "UNPREDICTORS": "HORIZONTAL"}[table]
    for read in (read_raster, raster_shape):
        with pytest.raises(ValueError, match=rf"\({name}\) that needs the package imagecodecs: pip install"):
            read(path)


def test_compression_that_is_unknown(tmp_path):
    path = raster(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["Compression"].valueoffset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = (4242).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"has an unknown compression \(4242\)"):
        read_raster(path)


def test_folders_of_rasters(tmp_path):
    source = load_source(classes(tmp_path))
    assert (source.kind, source.task.classes, len(source.train)) == ("signal", ("field", "wood"), 6)
    preprocess = fit_preprocess(source)
    assert preprocess.size == (6, 8)
    np.testing.assert_allclose(preprocess.mean, np.arange(5) * 1000 + 5051.5, atol=60)
    x, mask = preprocess.masked(source.test[0])
    assert (x.shape, mask) == ((5, 6, 8), None)
    assert load_examples(tmp_path / "wood").kind == "signal"
    kind, _, examples, _ = load_examples(tmp_path / "wood" / "0.tif", dims=2, in_channels=5)
    assert (kind, examples[0].shape) == ("signal", (5, 6, 8))


def test_rasters_of_unequal_size_and_with_gaps(tmp_path):
    classes(tmp_path)
    raster(tmp_path / "wood" / "4.tif", size=(9, 4))
    gaps = values(6, 8, 5, most=900)
    gaps[2:4] = 65535
    tifffile.imwrite(tmp_path / "wood" / "5.tif", gaps, **MANY, extratags=[(42113, 2, 0, "65535", True)])
    source = load_source(tmp_path, test_fraction=0)
    assert "unequal lengths in the train set (6 to 9, 4 to 8): shorter examples end in missing values" in source.notes
    assert any("missing values in 1 of 10 train examples" in note for note in source.notes)
    preprocess = fit_preprocess(source)
    assert preprocess.size == (9, 8)
    made = dict(zip(source.train.names, map(preprocess.masked, source.train)))
    assert made["wood/4.tif"][1].sum() == 9 * 4
    assert made["wood/5.tif"][1].sum() == 4 * 8
    resampled = fit_preprocess(source, size=(4, 4))
    assert all(resampled.masked(example)[0].shape == (5, 4, 4) for example in source.train)


def test_only_headers_of_many_rasters_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", 3)
    cut(raster(classes(tmp_path) / "wood" / "9.tif"), 0.9)
    with monkeypatch.context() as patched:
        patched.setattr(rasters, "_observed", None)
        source = load_source(tmp_path)
    assert (source.kind, len(source.train) + len(source.test)) == ("signal", 9)
    assert "only their headers were read" in source.notes[0]
    picture(tmp_path / "wood" / "a.tif")
    with pytest.raises(ValueError, match=r"wood/a.tif: is a picture in grey or colour, most are a raster of 5 bands"):
        load_source(tmp_path)


def test_no_other_file_is_read_because_a_raster_names_it(tmp_path):
    """OME-TIFF can name further files, by paths."""
    from xml.sax.saxutils import quoteattr

    raster(tmp_path / "secret.tif", bands=3)
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="int16" SizeX="8" SizeY="6" SizeC="2" SizeZ="1" SizeT="1">'
        '<TiffData IFD="0" FirstC="1" PlaneCount="1"><UUID FileName='
        f"{quoteattr(str(tmp_path / 'secret.tif'))}>urn:uuid:1</UUID></TiffData></Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", values(6, 8, dtype=np.int16), description=ome, metadata=None)
    assert read_raster(tmp_path / "a.ome.tif").shape == (1, 6, 8)


# .npz files of one array


def npz(path, **named):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **named)
    return path


def test_folders_of_npz(tmp_path):
    random = np.random.default_rng(0)
    kept = {}
    for number, name in enumerate("ab"):
        for i in range(4):
            kept[f"{name}/{i}.npz"] = random.normal(number, 1, (3, 6, 5)).astype(np.float32)
            save = np.savez_compressed if i % 2 else np.savez
            (tmp_path / name).mkdir(exist_ok=True)
            save(tmp_path / name / f"{i}.npz", values=kept[f"{name}/{i}.npz"])
    source = load_source(tmp_path)
    assert (source.kind, source.task.classes, len(source.train)) == ("signal", ("a", "b"), 6)
    for name, example in zip(source.train.names, source.train):
        np.testing.assert_array_equal(example, kept[name])
    assert fit_preprocess(source).size == (6, 5)
    assert npy_shape(tmp_path / "a" / "1.npz") == (3, 6, 5)
    assert len(load_examples(tmp_path / "a").examples) == 4


NPZ = {
    "two arrays": (lambda p: npz(p, a=np.zeros(3), b=np.zeros(3)), r"has 2 arrays \(a, b\); one example"),
    "no array": (lambda p: npz(p), "has 0 arrays"),
    "an npy": (lambda p: npy(p.with_suffix(".npy"), np.zeros(3)).rename(p), "is a single array, expected a zip"),
    "objects": (lambda p: npz(p, a=np.array([{}])), "holds Python objects, which could run code"),
    "cut": (lambda p: cut(npz(p, a=np.zeros(99))), "is damaged or cut off"),
    "text": (lambda p: npz(p, a=np.array(["x"])), "the array has text"),
}


@pytest.mark.parametrize("limit", [0, 100], ids=["headers", "whole"])
@pytest.mark.parametrize("name", NPZ)
def test_bad_npz(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", limit)
    for folder in "ab":
        npz(tmp_path / folder / "0.npz", x=np.arange(3.0))
        npz(tmp_path / folder / "1.npz", x=np.arange(3.0))
    make, message = NPZ[name]
    make(tmp_path / "b" / "9.npz")
    with pytest.raises(ValueError, match=f"b/9.npz: {message}"):
        load_source(tmp_path)


def test_npz_beside_other_files_are_left_out(tmp_path):
    pictures(tmp_path)
    npz(tmp_path / "cat" / "0.npz", a=np.zeros(3))
    source = load_source(tmp_path)
    assert len(source.train) + len(source.test) == 8
    assert "1 left out, beside files of another kind: cat/0.npz" in source.notes
    arrays(tmp_path / "more")
    npz(tmp_path / "more" / "c" / "0.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="8 npy files and 1 npz files"):
        load_source(tmp_path / "more")


@pytest.mark.parametrize(
    ("named", "dims", "count"),
    [
        ({"values": (3, 20)}, 1, 1),
        ({"values": (3, 20)}, None, 1),
        ({"X": (3, 20)}, None, 3),
        ({"X": (3, 20)}, 1, 1),
        ({"X": (7, 3, 20)}, 1, 7),
        ({"X_test": (7, 3, 20)}, 1, 7),
        ({"X": (7, 20), "y": (7,)}, 1, 7),
    ],
    ids=str,
)
def test_npz_to_predict(tmp_path, named, dims, count):
    path = npz(tmp_path / "a.npz", **{name: np.ones(shape) for name, shape in named.items()})
    assert len(load_examples(path, dims=dims, in_channels=3).examples) == count


def test_reading_an_npz(tmp_path):
    np.testing.assert_array_equal(read_npy(npz(tmp_path / "A.NPZ.npz", a=np.arange(4))), [[0, 1, 2, 3]])
