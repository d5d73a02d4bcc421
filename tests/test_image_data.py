"""Images from files and sets, in training, in a model folder, and on the command line."""

import gzip
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import quarflow
from quarflow import ImageDensity
from quarflow.cli import app
from quarflow.data import ImageError, Images, is_images, load_set, read_images
from quarflow.data.image_files import array_images
from quarflow.density.image_evaluation import evaluate, to_bits
from quarflow.density.image_fit import hold_out, parameter_counts
from quarflow.density.rows import ImageRows
from quarflow.flows import ImageQuAR
from quarflow.store import StoreError

ROOT = Path(__file__).resolve().parents[1]
SHARED = next((p for p in (ROOT.parent / "shared/data", ROOT / "shared/data") if p.is_dir()), None)
TINY = {"scales": 2, "transforms": 1, "hidden_channels": 4}


def idx(array):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def pixels(n=6, c=3, h=4, w=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, c, h, w), dtype=np.uint8)


# Arrays


def test_layouts_are_told_apart():
    x = pixels(10, 3, 8, 6)
    assert np.array_equal(array_images(x), x)
    assert np.array_equal(array_images(x.transpose(0, 2, 3, 1)), x)
    assert np.array_equal(array_images(x[:, 0]), x[:, :1])
    assert np.array_equal(array_images(x[:, :3].astype(np.int32)), x)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((5, 3, 3, 3), np.uint8), "layout='nhwc'"),
        (np.zeros((5, 8, 8, 8), np.uint8), "layout='nhwc'"),
        (np.zeros((5, 8, 8), np.float32), "astype"),
        (np.zeros((5, 8), np.uint8), "have shape"),
        (np.full((5, 8, 8), 300), "from 300 to 300"),
        (np.full((5, 8, 8), -1), "whole numbers from 0 to 255"),
        (np.zeros((0, 8, 8), np.uint8), "no images"),
        (np.zeros((2, 8, 8), bool), "whole numbers"),
    ],
)
def test_arrays_that_are_no_images(array, match):
    with pytest.raises(ImageError, match=match):
        array_images(array)


def test_an_ambiguous_layout_can_be_said(tmp_path):
    x = pixels(5, 3, 4, 3)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ImageError, match="is not clear"):
        read_images(tmp_path / "x.npy")
    assert read_images(tmp_path / "x.npy", layout="nchw").shape == (3, 4, 3)
    assert read_images(tmp_path / "x.npy", layout="nhwc").shape == (3, 3, 4)


def test_archives(tmp_path):
    x, labels = pixels(), np.arange(6)
    np.savez(tmp_path / "a.npz", images=x, labels=labels)
    found = read_images(tmp_path / "a.npz")
    assert np.array_equal(found.images, x)
    assert np.array_equal(found.labels, labels)
    np.savez(tmp_path / "b.npz", one=x, two=x)
    with pytest.raises(ImageError, match="one uint8 array called 'images'"):
        read_images(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="Python objects"):
        read_images(tmp_path / "c.npy")
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(ImageError, match="damaged"):
        read_images(tmp_path / "d.npz")


def test_what_is_images_and_what_is_a_table(tmp_path):
    np.save(tmp_path / "table.npy", np.zeros((5, 3)))
    np.save(tmp_path / "images.npy", pixels())
    np.savez(tmp_path / "table.npz", X=np.zeros((5, 3)))
    np.savez(tmp_path / "images.npz", images=pixels())
    (tmp_path / "x.csv").write_text("a\n1\n")
    found = {p.name for p in tmp_path.iterdir() if is_images(p)}
    assert found == {"images.npy", "images.npz"}
    assert is_images(tmp_path)


def test_few_levels():
    with pytest.raises(ImageError, match="values go from 0 to 15"):
        Images(np.full((1, 1, 2, 2), 16, np.uint8), None, 16, "x")


def test_few_levels_are_pointed_out(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 4, 4), 16, np.uint8))
    assert "17 levels" in read_images(tmp_path / "x.npy").note
    assert read_images(tmp_path / "x.npy", levels=17).note == ""


# idx and CIFAR-10


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files(tmp_path, packed):
    x, y = pixels(7, 1, 28, 28)[:, 0], np.arange(7)
    end = ".gz" if packed else ""
    pack = gzip.compress if packed else bytes
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / f"t10k-images-idx3-ubyte{end}").write_bytes(pack(idx(x)))
    (folder / f"t10k-labels-idx1-ubyte{end}").write_bytes(pack(idx(y)))
    found = load_set("mnist", "test", tmp_path)
    assert np.array_equal(found.images[:, 0], x)
    assert np.array_equal(found.labels, y)
    assert np.array_equal(read_images(folder / f"t10k-images-idx3-ubyte{end}").images[:, 0], x)
    with pytest.raises(ImageError, match="train-images"):
        load_set("mnist", "train", tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 10, 20, 100])
def test_damaged_idx(tmp_path, cut):
    path = tmp_path / "x-ubyte"
    path.write_bytes(idx(pixels(2, 1, 8, 8)[:, 0])[:cut])
    with pytest.raises(ImageError, match=r"cut off|not an idx"):
        read_images(path)


def test_cifar_binary(tmp_path):
    x, y = pixels(4, 3, 32, 32), np.array([3, 1, 9, 0], np.uint8)
    records = np.concatenate([y[:, None], x.reshape(4, -1)], axis=1)
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(records.tobytes())
    found = load_set("cifar10", "train", tmp_path)
    assert len(found) == 20
    assert np.array_equal(found.images[4:8], x)
    assert np.array_equal(found.labels[:4], y)
    (tmp_path / "data_batch_2.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(ImageError, match="data_batch_2"):
        load_set("cifar10", "train", tmp_path)


def webp_batch(path, exact):
    x = pixels(len(exact), 3, 32, 32)
    strip = path.with_suffix(".webp")
    Image.fromarray(x.transpose(0, 2, 3, 1).reshape(-1, 32, 3)).save(strip, lossless=True)
    content = np.frombuffer(strip.read_bytes(), np.uint8)
    np.savez(
        path,
        webp=content,
        offsets=np.array([0, len(content)]),
        labels=np.zeros(len(exact), np.uint8),
        exact=np.array(exact),
    )
    return x


def test_stand_ins_are_dropped_and_counted(tmp_path):
    x = webp_batch(tmp_path / "cifar10_test.npz", [True, False, True])
    found = load_set("cifar10", "test", tmp_path)
    assert np.array_equal(found.images, x[[0, 2]])
    assert found.note.startswith("1 of 3 images")
    assert len(load_set("cifar10", "test", tmp_path, keep_stand_ins=True)) == 3
    assert len(read_images(tmp_path / "cifar10_test.npz")) == 2


def test_where_sets_are_looked_for(tmp_path, monkeypatch):
    webp_batch(tmp_path / "cifar10_test.npz", [True])
    monkeypatch.setenv("QUARFLOW_DATA", str(tmp_path))
    assert len(load_set("cifar10", "test", download=False)) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ImageError, match=r"--data .*QUARFLOW_DATA.*cache"):
        load_set("mnist", "test", download=False)
    with pytest.raises(ImageError, match="the sets are digits"):
        load_set("imagenet")


@pytest.mark.skipif(SHARED is None, reason="needs the real images")
def test_real_images():
    mnist = load_set("mnist", "test", SHARED)
    assert np.bincount(mnist.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert round(float(mnist.images.mean()) / 255, 4) == 0.1325
    cifar = load_set("cifar10", "test", SHARED)
    assert cifar.images.shape == (9980, 3, 32, 32)
    assert "20 of 10,000" in cifar.note


def test_digits():
    train, test = load_set("digits"), load_set("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    both = np.concatenate([train.images, test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    assert sorted(map(bytes, both)) == sorted(map(bytes, load_digits().data.astype(np.uint8)))


# Folders


def test_folder_of_pictures(tmp_path):
    x = pixels(3, 3, 4, 5)
    for i, image in enumerate(x):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert np.array_equal(read_images(tmp_path).images, x)
    Image.fromarray(x[0, 0]).save(tmp_path / "grey.webp", lossless=True)
    mixed = read_images(tmp_path)
    assert mixed.shape == (3, 4, 5)
    assert np.array_equal(mixed.images[3, 1], x[0, 0])


def test_pictures_that_do_not_suit(tmp_path):
    with pytest.raises(ImageError, match=r"holds no \.png"):
        read_images(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 6)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.png has 4 x 6 .*a\.png has 4 x 4"):
        read_images(tmp_path)
    Image.new("RGBA", (4, 4), (0, 0, 0, 9)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="transparent"):
        read_images(tmp_path)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="more than 8 bits"):
        read_images(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"b\.png cannot be read"):
        read_images(tmp_path)


# Rows and evaluation


def test_rows_are_dequantised_anew_and_flipped():
    x = pixels(200, 1, 3, 4)
    rows = ImageRows(Images(x, None, 256, "x"), flip=True)
    index = torch.arange(200)
    a, b = (rows.batch(index, torch.Generator().manual_seed(s))[0] for s in (0, 1))
    assert not torch.equal(a, b)
    grey = (a * 256).floor().numpy()
    same = (grey == x).all((1, 2, 3))
    mirrored = (grey == x[..., ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 60 < mirrored.sum() < 140


def flow_and_images(n=300):
    torch.manual_seed(0)
    flow = ImageQuAR((1, 8, 8), levels=17, **TINY)
    images = load_set("digits", "test").pick(slice(n))
    flow.initialize(torch.from_numpy(images.images))
    return flow, images


def test_bits_do_not_depend_on_the_batch_size():
    flow, images = flow_and_images()
    whole = evaluate(flow, images, draws=2, batch_size=256).bits_per_dim
    for size, count in ((1, 20), (7, 60), (100, 280)):
        some = evaluate(flow, images.pick(slice(count)), draws=2, batch_size=size).bits_per_dim
        assert np.abs(some - whole[:count]).max() < 1e-4


def test_bits_are_those_of_the_flow():
    flow, images = flow_and_images()
    ours = evaluate(flow, images, draws=8)
    theirs = flow.bits_per_dim(torch.from_numpy(images.images), draws=8).mean()
    assert ours.mean == pytest.approx(float(theirs), abs=5e-3)
    assert ours.log_prob.mean() == pytest.approx(
        (math.log2(17) - ours.mean) * 64 * math.log(2), rel=1e-6
    )
    assert ours.error == pytest.approx(ours.bits_per_dim.std(ddof=1) / 300**0.5)


def test_a_uniform_model_has_eight_bits():
    assert to_bits(0.0, 3 * 32 * 32, 256) == 8.0


def test_images_that_do_not_suit_the_flow():
    flow, _ = flow_and_images()
    with pytest.raises(ImageError, match="the model is for shape"):
        evaluate(flow, Images(pixels(2, 1, 8, 8), None, 256, "x"))


def test_parameters_are_counted_as_the_paper_does():
    counts = parameter_counts(ImageQuAR((3, 4, 4), scales=1, transforms=2, hidden_channels=6))
    dense = 2 * (9 * 3 * 6 + 6 * 6 + 9 * 6 * 3 + 6 + 6 + 3 + 3) + 2 * 3 * 3
    taps = 4 * 9 * 2 + 3 * 2 + 3 * 2  # in blocks of 2 units: 4 whole taps, half of the centre
    kept = 2 * (2 * taps + 6 * 4 + 6 + 6 + 3 + 3) + 2 * 3 * 3
    assert counts == {"total": dense, "unmasked": kept}


def test_hold_out_is_a_partition():
    images = Images(pixels(50, 1, 4, 4), np.arange(50), 256, "x")
    a, b = hold_out(images, 0.2, 0)
    assert sorted([*a.labels, *b.labels]) == list(range(50))
    assert len(b) == 10
    with pytest.raises(ImageError, match="at least two"):
        hold_out(images.pick(slice(1)), 0.2, 0)


# Models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    images = load_set("digits").pick(slice(100))
    fitted = ImageDensity(max_epochs=2, batch_size=50, random_state=0, **TINY).fit(images)
    folder = tmp_path_factory.mktemp("images") / "model"
    fitted.save(folder)
    return fitted, folder


def test_an_image_model_comes_back(model):
    fitted, folder = model
    test = load_set("digits", "test").pick(slice(20))
    loaded = quarflow.open_density(folder)
    assert isinstance(loaded, ImageDensity)
    assert np.array_equal(loaded.evaluate(test).bits_per_dim, fitted.evaluate(test).bits_per_dim)
    assert loaded.images_ == fitted.images_
    assert loaded.history_ == fitted.history_
    bits = [record["valid_bits_per_dim"] for record in fitted.history_]
    assert bits[-1] < bits[0] + 1
    with pytest.raises(StoreError, match="image model"):
        quarflow.QuARDensity.load(folder)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    images = load_set("digits").pick(slice(120))
    settings = TINY | {
        "max_epochs": 4,
        "batch_size": 50,
        "checkpoint_seconds": 0,
        "evaluate_every": 2,
        "learning_rate": 1e-3,
        "random_state": 0,
    }

    class Stop(Exception):
        pass

    def stop(event):
        if event.kind == "evaluation" and event.step == 4:
            raise Stop

    whole = ImageDensity(**settings).fit(images)
    settings["checkpoint"] = tmp_path / "c"
    with pytest.raises(Stop):
        ImageDensity(**settings).fit(images, on_event=stop)
    rest = ImageDensity(**settings, resume=True).fit(images)
    for a, b in zip(
        whole.flow_.state_dict().values(), rest.flow_.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_subclasses_are_not_saved_as_what_they_are_not(tmp_path):
    class Mine(ImageQuAR):
        pass

    with pytest.raises(ValueError, match="cannot be saved"):
        quarflow.save_flow(Mine((1, 4, 4), scales=1, transforms=1), tmp_path / "m")


HOSTILE = {
    "wider": lambda c: c["flow"]["arguments"].update(hidden_channels=60_000),
    "deeper": lambda c: c["flow"]["arguments"].update(transforms=200),
    "other shape": lambda c: c["flow"]["arguments"].update(shape=[1, 16, 16]),
    "text": lambda c: c["flow"]["arguments"].update(hidden_channels="many"),
    "no such norm": lambda c: c["flow"]["arguments"].update(norm="__import__('os')"),
    "no such activation": lambda c: c["flow"]["arguments"].update(activation="eval"),
    "no such argument": lambda c: c["flow"]["arguments"].update(hook="os.system"),
    "sigma": lambda c: c["flow"]["arguments"].update(sigma=1.5),
    "infinite": lambda c: c["flow"]["arguments"].update(alpha=float("inf")),
    "negative": lambda c: c["flow"]["arguments"].update(transforms=-1),
    "too many": lambda c: c["flow"]["arguments"].update(transforms=10**9),
    "other flow": lambda c: c["flow"].update(name="ImageResidualFlow"),
    "no such flow": lambda c: c["flow"].update(name="os.system"),
    "other levels": lambda c: c["images"].update(levels=256),
    "table flow": lambda c: c["flow"].update(
        name="PlanarFlow", arguments={"features": 64, "transforms": 2}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configurations_are_refused(model, tmp_path, name):
    import shutil

    folder = shutil.copytree(model[1], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    HOSTILE[name](config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError) as caught:
        ImageDensity.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_suit_are_refused(model, tmp_path):
    import shutil

    folder = shutil.copytree(model[1], tmp_path / "m")
    weights = load_file(folder / "weights.safetensors")
    name = next(k for k, t in weights.items() if t.dim() > 2)
    save_file({**weights, name: weights[name] * math.nan}, folder / "weights.safetensors")
    with pytest.raises(StoreError, match="not finite"):
        ImageDensity.load(folder)


# The command line


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_from_a_folder_of_pictures_to_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("pictures")
    for i, image in enumerate(load_set("digits").images[:60, 0]):
        Image.fromarray(image * 15).save(f"pictures/{i:02}.png")
    tiny = [part for k, v in TINY.items() for part in ("--set", f"{k}={v}")]
    told = run("fit", "pictures", "-o", "m", "--max-epochs", 1, *tiny)
    assert "60 images of 8 x 8 pixels, 1 channel" in told
    assert "already holds a model" in run("fit", "pictures", "-o", "m", code=2)
    run("sample", "m", "-o", "s.png", "-n", 9)
    assert Image.open("s.png").mode == "RGB"
    run("sample", "m", "-o", "s.npy", "-n", 5)
    assert np.load("s.npy").shape == (5, 1, 8, 8)
    assert np.load("s.npy").dtype == np.uint8
    run("score", "m", "pictures", "-o", "s.csv")
    lines = Path("s.csv").read_text().splitlines()
    assert lines[0] == "image,bits_per_dim,log_prob"
    assert len(lines) == 61
    assert "256 levels" in run("info", "m")
    run("report", "m", "pictures", "-o", "r.html")
    page = Path("r.html").read_text()
    assert page.count("data:image/png") == 5
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--columns", "a"], "--columns is for tables"),
        (["--set", "depth=3"], "no setting 'depth'"),
        (["--set", "transforms=0"], "transforms must be at least 1"),
        (["--set", "seed=3"], "use --seed"),
        (["--set", "scales=9"], "cannot be halved"),
        (["--set", "flow=QuAR"], "flow is one of"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, arguments, match):
    np.save(tmp_path / "x.npy", pixels(20, 1, 8, 8))
    assert match in run("fit", tmp_path / "x.npy", "-o", tmp_path / "m", *arguments, code=2)
    assert not (tmp_path / "m").exists()


def test_table_options_are_refused_for_image_models(model, tmp_path):
    _, folder = model
    np.save(tmp_path / "x.npy", pixels(4, 3, 8, 8))
    out = tmp_path / "s.csv"
    told = run("score", folder, tmp_path / "x.npy", "-o", out, code=2)
    assert "levels" in told
    assert "must end in one of" in run("sample", folder, "-o", out, code=2)
    assert not out.exists()
