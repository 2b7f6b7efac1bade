"""docs/original_configs.md, from the table of keys; ``python -m diou_jax.command.original_page`` prints it."""

from diou_jax.command.original_config import BODIES, KEYS, NORMS, Key

HEAD = """# The original's YAML files

```
python main.py --config path/to/e2e_faster_rcnn_R-50-FPN_ciou_1x.yaml --config.solver.max_iter=45000
```

A YAML file of the original is a config. What it leaves out has the original's default, which is not always that of
`configs/base.py`; options that the original does not know have ours. A key that the original does not know, or a value
of another type, is refused with the nearest key; a value that this program cannot do is refused by name; keys without
effect are listed when the program starts. Types are the original's (`(800,)` is a tuple and `1e-3` a number, though
YAML reads texts), and a whole number may stand for a number with a fraction. A relative path of weights is also looked
for in the folders above the file.

This page is made from `diou_jax/command/original_config.py` by `python -m diou_jax.command.original_page`.
"""


def page() -> str:
    """The whole page."""
    mapped = {name: key for name, key in KEYS.items() if key.option}
    limited = {name: key for name, key in KEYS.items() if key.only}
    idle: dict[str, list[str]] = {}
    for name, key in KEYS.items():
        if not key.option and not key.only:
            idle.setdefault(key.reason, []).append(name)
    lines = [HEAD, "## Keys that set an option", "", "| Key | Default | Option |", "|---|---|---|"]
    lines += [f"| `{name}` | {_default(key)} | `{key.option}` |" for name, key in mapped.items()]
    lines += ["", "`DATA_DIR` is the folder above `coco`; `TRAIN.SNAPSHOT_ITERS` is divided by `NUM_GPUS`.", ""]
    lines += ["## Keys with one value", "", "Another one is refused.", "", "| Key | Value | Why |", "|---|---|---|"]
    lines += [f"| `{name}` | {_values(key)} | {key.reason} |" for name, key in limited.items()]
    lines += ["", f"{NORMS}.", "", "## Keys without effect", "", "| Keys | Why |", "|---|---|"]
    lines += [f"| {', '.join(f'`{name}`' for name in names)} | {reason} |" for reason, names in idle.items()]
    return "\n".join(lines) + "\n"


def _default(key: Key) -> str:
    return "ours" if key.when_given else f"`{key.default!r}`"


def _values(key: Key) -> str:
    values = BODIES if key.option else key.only
    return ", ".join(f"`{value!r}`" for value in values if value != "")


if __name__ == "__main__":
    print(page(), end="")
