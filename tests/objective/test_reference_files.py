"""``.npz`` files as references: the forms that are read, and files that wish us ill."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective.test_reference_folders import megabytes_taken
from objective.test_references import Counting

from autodiffusion_opt import UserError
from autodiffusion_opt.objective import archives
from autodiffusion_opt.objective.archives import Archive
from autodiffusion_opt.objective.reference_files import EXTRACTOR, write_statistics
from autodiffusion_opt.objective.references import load_reference
from autodiffusion_opt.objective.statistics import Gaussian

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reference.npz"


def load(path: Path, extractor: Counting | None = None) -> Any:
    return load_reference(str(path), extractor or Counting())


@pytest.mark.parametrize("key", ["features", "feats"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_features_of_a_file_are_taken_as_they_are(path: Path, key: str, order: Any) -> None:
    given = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32, order=order)
    np.savez(path, **{key: given})
    extractor = Counting()
    reference = load(path, extractor)
    np.testing.assert_array_equal(reference.features, given)
    np.testing.assert_allclose(reference.statistics.mean, given.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(reference.statistics.covariance, np.cov(given.astype(np.float64).T), rtol=1e-9)
    assert reference.statistics.count == 3000
    assert extractor.images == 0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_file_are_measured_once_and_kept(path: Path, channels: int, save: Callable[..., None]) -> None:
    """As ADM's reference batches are: ``arr_0``, uint8, the channels last."""
    images = np.random.default_rng(0).integers(0, 255, (150, 6, 7, channels), dtype=np.uint8)
    save(path, images)
    wanted = Counting()(torch.from_numpy(images).permute(0, 3, 1, 2))
    first, second = Counting(), Counting()
    for extractor in (first, second):
        np.testing.assert_allclose(load(path, extractor).statistics.mean, wanted.mean(0), rtol=1e-5)
    assert (first.images, second.images) == (150, 0)
    np.testing.assert_allclose(load(path).features, wanted, rtol=1e-6)


def test_statistics_beside_images_are_of_more_images_so_they_count(path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 6, 6, 3), dtype=np.uint8)
    np.savez(path, images, mu=np.array([7.0, 8.0]), sigma=np.eye(2))
    reference = load(path)
    np.testing.assert_array_equal(reference.statistics.mean, [7, 8])
    assert reference.features.shape == (20, 2)


def test_a_file_that_says_which_features_it_has_serves_no_others(path: Path) -> None:
    write_statistics(path, Gaussian(np.zeros(2), np.eye(2), 9), "counting-1")
    assert load(path).statistics.count == 9
    with pytest.raises(UserError, match=r"made with the features 'counting-1'; the objective's are 'counting-2'"):
        load(path, Counting("counting-2"))
    np.savez(path, feats=np.eye(3, 2, dtype=np.float32), **{EXTRACTOR: np.array("counting-1")})
    with pytest.raises(UserError, match="the objective's are 'counting-2'"):
        load(path, Counting("counting-2"))


def member(header: str, data: bytes) -> bytes:
    """An ``.npy`` file with whatever header."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


CLAIM = "{'descr': '<f8', 'fortran_order': False, 'shape': (1048576, 1048576), }"
IMAGES = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1024, 1024, 3), }"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["sigma", "feats"])
def test_a_header_that_claims_eight_tebibytes_takes_no_memory(path: Path, key: str) -> None:
    members = {"sigma": {"mu": saved(np.zeros(2))}, "feats": {}}[key]
    archive(path, **members, **{key: member(CLAIM, bytes(80))})
    with pytest.raises(UserError, match=rf"the header of {key} claims 8,796,093,022,208 bytes"):
        load(path).statistics  # noqa: B018
    assert megabytes_taken(path) < 100


def test_images_that_a_header_claims_take_no_memory(path: Path) -> None:
    archive(path, arr_0=member(IMAGES, bytes(80)))
    with pytest.raises(UserError, match=r"the header of arr_0 claims 3,145,728,000,000 bytes"):
        load(path)


@pytest.mark.slow
def test_an_archive_that_unpacks_to_much_is_refused_with_no_memory_taken(path: Path) -> None:
    size = 6000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mu.npy", saved(np.zeros(size)))
        with file.open("sigma.npy", "w", force_zip64=True) as bomb:
            header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({size}, {size}), }}"
            bomb.write(member(header, b""))
            for _ in range(size):
                bomb.write(bytes(8 * size))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match=r"sigma unpacks to 288,000,\d+ bytes from"):
        load(path)
    assert megabytes_taken(path) < 100


@pytest.mark.parametrize("key", ["mu", "sigma", "feats", "arr_0"])
def test_a_pickle_runs_nothing(path: Path, tmp_path: Path, key: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "trap"),))

    parts = {"mu": np.zeros(1), "sigma": np.eye(1)} if key in ("mu", "sigma") else {}
    np.savez(path, **{**parts, key: np.array([Trap()], object)})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"{key} holds pickled objects, which are not read since they can run code"):
        load(path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("cut", [10, 200, 1000])
def test_half_a_file_is_refused(path: Path, cut: int) -> None:
    np.savez(path, feats=np.random.default_rng(0).normal(size=(50, 5)))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"must be an \.npz file"):
        load(path)


def test_a_changed_byte_is_noticed(path: Path) -> None:
    for key in ("sigma", "feats"):
        np.savez(path, **{"mu": np.zeros(5)} if key == "sigma" else {}, **{key: np.eye(5)})
        data = bytearray(path.read_bytes())
        at = data.find(np.float64(1).tobytes())
        data[at + 6] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(UserError, match="CRC"):
            load(path).statistics  # noqa: B018


def test_rows_are_read_some_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(path, feats=np.arange(70.0).reshape(35, 2))
    with Archive(path) as archive:
        blocks = list(archive.blocks("feats", 10))
        assert [len(block) for block in blocks] == [10, 10, 10, 5]
        np.testing.assert_array_equal(np.concatenate(blocks), archive.array("feats"))
    monkeypatch.setattr(archives, "LARGE", 100)
    np.savez_compressed(path, feats=np.zeros((35, 200)))
    with Archive(path) as archive, pytest.raises(UserError, match="unpacks to"):
        list(archive.blocks("feats", 10))


def test_features_that_are_not_finite_are_refused(path: Path) -> None:
    np.savez(path, feats=np.array([[1.0, 2], [np.nan, 3]]))
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match="must be finite numbers"):
        load(path).statistics  # noqa: B018
