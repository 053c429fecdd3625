"""Readers of the paper's data."""

import gzip
import struct

import pytest
import torch

from llr_fast.paper import datasets


def idx(tensor):
    return bytes([0, 0, 8, tensor.dim()]) + struct.pack(f">{tensor.dim()}I", *tensor.shape) + tensor.numpy().tobytes()


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 5), ("t10k", 2)):
        images, labels = torch.randint(256, (count, 3, 4), dtype=torch.uint8), torch.arange(count, dtype=torch.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_mnist_plain_and_gzipped(folder):
    images = datasets.mnist(folder)
    assert images.train_x.shape == (5, 3, 4) and images.train_x.min() >= 0 and images.train_x.max() <= 1
    assert images.train_y.tolist() == [0, 1, 2, 3, 4] and images.test_y.dtype == torch.int64
    first = (folder / "train-images-idx3-ubyte").read_bytes()[16]
    assert images.train_x[0, 0, 0].item() == pytest.approx(first / 255)


def test_missing_files_are_named_with_all_that_are_expected(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        datasets.mnist(folder)
    assert all(name in str(error.value) for name in (*datasets.MNIST_FILES.values(), str(folder)))
    assert str(error.value).endswith("not there: t10k-labels-idx1-ubyte")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"GIF89a", "begins with 47 49 46 38"),
        (b"", "begins with"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0]), "unsigned bytes"),
        (idx(torch.zeros(2, 2, dtype=torch.uint8))[:-1], r"expected 16 bytes for shape \[2, 2\], got 15"),
    ],
)
def test_broken_idx_files(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.read_idx(tmp_path / "file")


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:12] + b"?" + b[13:], lambda b: b"?" + b[1:]])
def test_damaged_gzip_files_are_named(tmp_path, damage):
    whole = gzip.compress(idx(torch.arange(200, dtype=torch.uint8)))
    (tmp_path / "file.gz").write_bytes(damage(whole))
    with pytest.raises(ValueError, match=r"file\.gz: expected a whole gzip file, "):
        datasets.read_idx(tmp_path / "file.gz")


def test_numbers_of_images_and_labels_differ(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(torch.zeros(3, dtype=torch.uint8))))
    with pytest.raises(ValueError, match=r"test images .* got \(2, 3, 4\) and \(3,\)"):
        datasets.mnist(folder)


def test_sequences(tmp_path):
    (tmp_path / "a.ts").write_text("# a comment\n@data\n1,2,3:4,5,6:b\n7.5:-1e-2:a\n")
    found = datasets.read_ts(tmp_path / "a.ts")
    assert found.x[0].tolist() == [[1, 4], [2, 5], [3, 6]] and found.x[1].tolist() == [[7.5, pytest.approx(-0.01)]]
    assert found.y.tolist() == [1, 0]


@pytest.mark.parametrize("line", ["1,2:3:a", "1,x:3,4:a"])
def test_broken_sequences(tmp_path, line):
    (tmp_path / "a.ts").write_text(f"@data\n1,2:3,4:a\n{line}\n")
    with pytest.raises(ValueError, match="sample 2: expected channels of equally many numbers"):
        datasets.read_ts(tmp_path / "a.ts")


def test_sequences_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.ts").write_bytes(bytes([255, 254, 0]))
    with pytest.raises(ValueError, match=r"a\.ts: expected text"):
        datasets.read_ts(tmp_path / "a.ts")


def test_no_sequences(tmp_path):
    (tmp_path / "a.ts").write_text("@data\n")
    with pytest.raises(ValueError, match="expected samples, got none"):
        datasets.read_ts(tmp_path / "a.ts")
    with pytest.raises(FileNotFoundError, match=r"JapaneseVowels_TRAIN.ts, JapaneseVowels_TEST.ts in"):
        datasets.japanese_vowels(tmp_path)
