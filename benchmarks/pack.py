"""A folder with all that benchmarks/gpu.py needs on a machine without a network: source, wheels and the golden numbers.

    python benchmarks/pack.py FOLDER --golden GOLDEN
    scp -r FOLDER gpu:                                    # however it gets there
    pip install --no-index --no-deps --target site FOLDER/wheels/*.whl
    PYTHONPATH=site python FOLDER/source/benchmarks/gpu.py --minutes 8 --out report --golden FOLDER/golden

The machine is expected to have JAX with CUDA, flax, optax, orbax-checkpoint, OpenCV, matplotlib and Pillow, as images
for JAX have; the wheels are those of the rest. Prints the folder's size, and exit code 1 above `LIMIT`.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 60  # MiB, of source, wheels and data together
# Packages that an image for JAX lacks, and their requirements, since pip downloads none of them by itself here.
PACKAGES = (
    "ml_collections",
    "grain",
    "array_record",
    "pycocotools",
    "tensorboardX",
    "cloudpickle",
    "protobuf",
    "PyYAML",
    "jaxtyping",
    "wadler-lindig",
)
PACKAGES += (
    "absl-py",
    "tqdm",
    "etils",
    "importlib_resources",
    "fsspec",
    "zipp",
    "typing_extensions",
    "more-itertools",
    "portpicker",
    "psutil",
)
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 24, 17)))
GOLDEN = ("model_r50fpn.npz", "make_weights.py", "weights_outputs.npz", "param_names.txt")


def copy_source(target: pathlib.Path) -> None:
    """Copies the files that git knows, links included."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, place = ROOT / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            place.symlink_to(source.readlink())
        elif source.exists():
            shutil.copy2(source, place)


def download_wheels(target: pathlib.Path, python: str) -> None:
    """Downloads one wheel of each package, for Linux on x86-64."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(target),
    ]
    command += ["--python-version", python, "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *PACKAGES], check=True)


def size(folder: pathlib.Path) -> float:
    """The size of a folder's files, MiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) / 2**20


def main() -> None:
    """Fills the folder and prints the size of its parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="must not exist")
    parser.add_argument("--golden", type=pathlib.Path, help="folder of the original's numbers, see golden.py")
    parser.add_argument("--python", default="3.12", help="version on the other machine")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    copy_source(options.folder / "source")
    download_wheels(options.folder / "wheels", options.python)
    if options.golden:
        (options.folder / "golden").mkdir()
        for name in GOLDEN:
            shutil.copy2(options.golden / name, options.folder / "golden" / name)
    for part in sorted(options.folder.iterdir()):
        print(f"{part.name}: {size(part):.1f} MiB")
    total = size(options.folder)
    print(f"together: {total:.1f} MiB, {LIMIT} at most")
    sys.exit(total > LIMIT)


if __name__ == "__main__":
    main()
