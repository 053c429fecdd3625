"""The paper's data, read from a folder: MNIST (idx files) and Japanese Vowels (.ts text)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MNIST_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
VOWELS_FILES = {"train": "JapaneseVowels_TRAIN.ts", "test": "JapaneseVowels_TEST.ts"}
_UNSIGNED_BYTE = 8


class Images(NamedTuple):
    train_x: Tensor  # [60000, 28, 28], pixels from 0 to 1
    train_y: Tensor  # [60000] int64
    test_x: Tensor
    test_y: Tensor


class Sequences(NamedTuple):
    x: list[Tensor]  # [T, channels] each
    y: Tensor  # [len(x)] int64, from 0


def mnist(folder: Path) -> Images:
    """Reads the four idx files, plain or gzipped.

    Raises:
        FileNotFoundError: some are missing; the message says which were expected.
        ValueError: one is damaged or no idx file of unsigned bytes, or images and labels differ in number.
    """
    found = {part: read_idx(path) for part, path in _locate(folder, MNIST_FILES, ("", ".gz")).items()}
    for part in ("train", "test"):
        images, labels = found[f"{part}_x"], found[f"{part}_y"]
        if images.dim() != 3 or labels.shape != images.shape[:1]:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"data: expected {part} images [N, height, width] and labels [N], got {shapes}")
    return Images(
        found["train_x"].float() / 255, found["train_y"].long(), found["test_x"].float() / 255, found["test_y"].long()
    )


def japanese_vowels(folder: Path) -> tuple[Sequences, Sequences]:
    """Reads UCI's split, training and test sequences.

    Raises:
        FileNotFoundError: a file is missing; the message says which were expected.
        ValueError: a file does not follow the format.
    """
    found = _locate(folder, VOWELS_FILES, ("",))
    return read_ts(found["train"]), read_ts(found["test"])


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes: two zeros, the type, the number of axes, their big-endian sizes, the entries."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip file, {error}; get the file again") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(
            f"{path}: expected an idx file of unsigned bytes, got one that begins with {data[:4].hex(' ')}"
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise ValueError(f"{path}: expected {start + math.prod(shape)} bytes for shape {shape}, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)


def read_ts(path: Path) -> Sequences:
    """A .ts file: a line for each sample holds its channels, commas between their values, and last its label."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text, {error}") from error
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "@"))]
    samples, labels = [], []
    for number, line in enumerate(lines, 1):
        *channels, label = line.split(":")
        try:
            samples.append(torch.tensor([[float(v) for v in channel.split(",")] for channel in channels]).t())
        except ValueError as error:
            raise ValueError(f"{path}: sample {number}: expected channels of equally many numbers, {error}") from error
        labels.append(label.strip())
    if not samples:
        raise ValueError(f"{path}: expected samples, got none")
    classes = {label: index for index, label in enumerate(sorted(set(labels)))}
    return Sequences(samples, torch.tensor([classes[label] for label in labels]))


def _locate(folder: Path, names: dict[str, str], endings: tuple[str, ...]) -> dict[str, Path]:
    found = {
        part: path for part, name in names.items() for path in (folder / (name + e) for e in endings) if path.is_file()
    }
    if missing := [name for part, name in names.items() if part not in found]:
        expected = ", ".join(names.values())
        plain_or = " (plain or .gz)" if ".gz" in endings else ""
        raise FileNotFoundError(
            f"data: expected the files {expected}{plain_or} in {folder}; not there: {', '.join(missing)}"
        )
    return found
