"""Generates docs/original_configs.md from the table of keys; ``python -m diou_jax.command.original_page`` prints it."""

from diou_jax.command.original_keys import KEYS, Key

HEAD = """# The original's YAML files

```
python main.py --config path/to/e2e_faster_rcnn_R-50-FPN_ciou_1x.yaml --config.solver.max_iter=45000
```

reads a YAML file of the original as a config.

- A key that the file leaves out has the original's global default, which may differ from that of `configs/base.py`:
  a file without `TRAIN.SCALES` trains at 600 pixels. Options that the original does not have keep our defaults.
- Types are read as in the original: `(800,)` is a tuple and `1e-4` a number, although YAML takes both for texts. Lists
  become tuples, a whole number may stand for a number with a fraction, and `9e4` for a whole number.
- The program refuses keys that the original does not have, values of another type and unsupported values, such as
  keypoints, and names them. It lists keys without effect when it starts.
- A relative `RESNETS.IMAGENET_PRETRAINED_WEIGHTS` is a path below `ROOT_DIR` if the file sets that; else it is searched
  in the current folder and in the folders above the file, to which the original's root belongs.
- With GroupNorm `RESNETS.FREEZE_AT` stays 2, the original's default: the random weights of the stem and res2 are never
  trained. `configs/mask_gn.py` has this as well, whereas the `_gn` bodies of other configs train everything.
- Keys of `MRCNN` have no effect, and no value of theirs is refused, unless `MODEL.MASK_ON` is on. The names in
  `MRCNN.ROI_MASK_HEAD` that end in `_gn` set `mrcnn.use_gn`.

`python -m diou_jax.command.original_page` prints this page from the tables in `diou_jax/command/original_keys.py`.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## Keys that set an option", "", "| Key | Original's default | Option | |", "|---|---|---|---|"]
    options = {name: key for name, key in KEYS.items() if key.option and not key.only}
    lines += [f"| `{name}` | `{key.default!r}` | `{key.option}` | {key.reason} |" for name, key in options.items()]
    lines += ["", "## Keys with few values", "", "Other values are refused, even the original's default.", ""]
    lines += ["| Key | Original's default | Values | Why |", "|---|---|---|---|"]
    few = {name: key for name, key in KEYS.items() if key.only}
    lines += [f"| `{name}` | `{key.default!r}` | {_values(key)} | {_why(key)} |" for name, key in few.items()]
    lines += ["", "Either all functions of `RESNETS` and `RESNETS.USE_GN` choose GroupNorm, or none does.", ""]
    lines += ["## Keys that change the meaning of another", "", "| Key | Read for | |", "|---|---|---|"]
    read = {name: key for name, key in KEYS.items() if key.decides}
    lines += [f"| `{name}` | `{key.decides}` | {key.reason} |" for name, key in read.items()]
    lines += ["", "## Keys without effect", "", "| Keys | Why |", "|---|---|"]
    for reason, names in _reasons().items():
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {reason} |")
    return "\n".join(lines) + "\n"


def _values(key: Key) -> str:
    return ", ".join(f"`{value!r}`" for value in key.only)


def _why(key: Key) -> str:
    return f"sets `{key.option}`; {key.reason}" if key.option else key.reason


def _reasons() -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, key in KEYS.items():
        if not (key.option or key.only or key.decides):
            reasons.setdefault(key.reason, []).append(name)
    return reasons


if __name__ == "__main__":
    print(page(), end="")
