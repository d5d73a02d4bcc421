"""Compiling the kernels: once, whole or not at all; what others may have made is not loaded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quarflow.backends.cpu import build, cache


@pytest.fixture(autouse=True)
def _kernels(kernels):
    pass


@pytest.fixture
def made(kernels, tmp_path, monkeypatch):
    """A cache with the kernels that all tests use, without compiling them again."""
    source = build._compiled(build._compiler())
    folder = tmp_path / "native"
    folder.mkdir(mode=0o700)
    for path in (source, cache._checksum(source)):
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.name).chmod(0o700)
    monkeypatch.setenv("QUARFLOW_CACHE", str(tmp_path))

    return folder / source.name


def in_a_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


STATUS = "from quarflow.backends.cpu import status; print(status())"


def test_kernels_can_be_turned_off():
    assert "QUARFLOW_NATIVE" in in_a_process(STATUS, QUARFLOW_NATIVE="0").stdout


def test_without_a_compiler_everything_works(tmp_path):
    code = STATUS + "; import torch, quarflow; print(quarflow.QuAR(2)().sample((3,)).shape)"
    done = in_a_process(code, CXX="no-such-compiler", QUARFLOW_CACHE=str(tmp_path))
    assert "no C++ compiler" in done.stdout
    assert "[3, 2]" in done.stdout
    done = in_a_process(code, CXX="false", QUARFLOW_CACHE=str(tmp_path))
    assert "not used" in done.stdout
    assert "[3, 2]" in done.stdout
    assert "could not be compiled" in done.stderr


def test_a_cache_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(0o777)
    done = in_a_process(STATUS, QUARFLOW_CACHE=str(tmp_path))
    assert "writable by nobody else" in done.stdout
    assert not list((tmp_path / "native").iterdir())


def test_without_a_home_kernels_lie_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.delenv("QUARFLOW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no-such-folder")
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache.folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("named", ["caches", "./caches", "~/caches", ""])
def test_a_cache_folder_that_is_not_absolute_does_not_count(named, tmp_path, monkeypatch):
    monkeypatch.delenv("QUARFLOW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cache.folder() == tmp_path / "home/.cache/quarflow/native"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache.folder() == tmp_path / "caches/quarflow/native"


def test_compiled_once(tmp_path, monkeypatch):
    """A second process finds what the first one made; a change of sources or flags is noticed."""
    monkeypatch.setenv("QUARFLOW_CACHE", str(tmp_path))
    compiler = build._compiler()
    ran = []

    def run(*command, scratch=None):
        ran.append(command)
        if "-o" in command:
            Path(command[-1]).touch()
        return "g++"

    monkeypatch.setattr(build, "_run", run)
    first = build._compiled(compiler)
    compilations = len(ran)
    assert first.exists()
    assert build._compiled(compiler) == first
    assert len(ran) == compilations + 1  # only --version
    assert list(first.parent.glob("*.so")) == [first]
    assert build._compiled([*compiler, "-m64"]) != first
    assert ran[-1][1] == "-m64"
    with monkeypatch.context() as patch:
        patch.setenv("QUARFLOW_CXXFLAGS", "-O1 -DNAME='two words'")
        assert build._compiled(compiler) != first
        assert "-DNAME=two words" in ran[-1]
    sources = tmp_path / "sources"
    sources.mkdir()
    for source in build.SOURCES.iterdir():
        (sources / source.name).write_bytes(source.read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build._compiled(compiler) != first


def test_a_compiler_with_arguments(tmp_path, made, monkeypatch):
    """As in `ccache g++` and `g++ -m64`."""
    real = build._compiler()[0]
    wrapper = tmp_path / "a wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv("CXX", f"'{wrapper}' {real} -m64")
    compiler = build._compiler()
    assert compiler == [str(wrapper), real, "-m64"]
    assert build._run(*compiler, "--version") == build._run(real, "--version")
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert build._compiler() is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "no checksum", "wrong checksum"])
def test_a_damaged_file_is_made_anew(damage, made):
    content = made.read_bytes()
    if damage == "cut":
        made.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        made.write_bytes(b"")
    elif damage == "flipped":
        made.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif damage == "no checksum":
        cache._checksum(made).unlink()
    else:
        cache._checksum(made).write_bytes(b"0 0\n")
    asked = []

    def make(path):
        asked.append(path)
        path.write_bytes(content)

    assert cache.find_or_make(made.name, make) == made
    assert len(asked) == 1
    assert made.read_bytes() == content
    cache.find_or_make(made.name, make)
    assert len(asked) == 1
    assert {p.name for p in made.parent.iterdir()} == {
        made.name, f"{made.name}.sha256", f"{made.name}.lock",
    }  # fmt: skip


def test_a_process_survives_a_library_that_was_cut_off(made, tmp_path):
    """To load it would be its end. Here it cannot be compiled anew either."""
    content = made.read_bytes()
    made.write_bytes(content[: len(content) // 3])
    broken = tmp_path / "broken"
    real = build._compiler()[0]
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {real} --version\nexit 1\n')
    broken.chmod(0o700)
    done = in_a_process(STATUS, CXX=str(broken))
    assert done.returncode == 0, done.stderr
    assert "not used" in done.stdout
    made.write_bytes(content)
    assert str(made) in in_a_process(STATUS, CXX=str(broken)).stdout


@pytest.mark.parametrize("which", ["library", "checksum"])
@pytest.mark.parametrize("how", ["owner", "writable", "link"])
def test_files_of_others_are_refused(how, which, made, tmp_path):
    path = made if which == "library" else cache._checksum(made)
    if how == "owner":
        if os.getuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(path, 65534, -1)
    elif how == "writable":
        path.chmod(0o777)
    else:
        elsewhere = path.rename(tmp_path / "elsewhere")
        path.symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"must belong to you|symbolic"):
        cache.find_or_make(made.name, lambda path: None)
    found = build._build.__wrapped__()
    assert found.library is None
    assert found.status.startswith("not used")


def test_a_compilation_that_is_killed_leaves_nothing(tmp_path, made):
    made.unlink()
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\nsleep 60\n')
    slow.chmod(0o700)
    environment = {**os.environ, "CXX": str(slow)}
    process = subprocess.Popen([sys.executable, "-c", STATUS], env=environment, process_group=0)
    try:
        deadline = time.monotonic() + 60
        while not list(made.parent.glob("*.scratch-*/")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(made.parent.glob("*.scratch-*"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list(made.parent.glob("*.so"))  # nothing that is half done has its name
    assert list(made.parent.glob("*.scratch-*"))
    content = b"whole"
    cache.find_or_make(made.name, lambda path: path.write_bytes(content))
    assert made.read_bytes() == content
    assert not list(made.parent.glob("*.scratch-*"))


def test_a_compilation_that_fails_leaves_nothing(made):
    made.unlink()

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="space"):
        cache.find_or_make(made.name, fail)
    assert not made.exists()
    assert not list(made.parent.glob("*.scratch-*"))
