"""Configs as trees of sections: flattened to dotted names, and restored from JSON."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Values by dotted names, each behind `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        is_section = isinstance(value, Mapping | ConfigDict)
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def overwrite(config: ConfigDict, stored: Mapping[str, Any]) -> None:
    """Gives a config the values that JSON holds of one, also those of options that it lacks.

    Lists become tuples, whole numbers floats if the option is a float, and null an open option of the option's type.
    """
    for name, value in stored.items():
        if isinstance(value, Mapping):
            if not isinstance(config.get(name), ConfigDict):
                config[name] = ConfigDict()
            overwrite(config[name], value)
            continue
        value, default = to_tuples(value), config.get(name)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if value is None and default is not None:
            del config[name]  # an open option has a type but no value
            value = config_dict.placeholder(type(default))
        with config.ignore_type():
            config[name] = value


def to_tuples(value: Any) -> Any:
    """The value with tuples in place of lists, at every depth."""
    return tuple(map(to_tuples, value)) if isinstance(value, list | tuple) else value
