"""YAML as people write it: plain data, in which no key stands twice. YAML's readers let the last one win in silence."""

from pathlib import Path
from typing import Any

import yaml

from aecnn.errors import ConfigError


def read_yaml(path: Path) -> object:
    """Gives the plain data in a YAML file.

    Raises:
        ConfigError: It cannot be read, is no YAML, or keys of one section stand in it twice (all of them are named).
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        document: object = loader.get_single_data()
    except OSError as error:
        raise ConfigError(path, [f"cannot be read ({error.strerror}): give the path of a YAML file"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"is not valid YAML: {' '.join(str(error).split())}"]) from error
    if loader.repeated:
        raise ConfigError(path, loader.repeated)
    return document


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Composes a section as it stands in the text, before what it takes over by `<<` is added to it."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], list[int]] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines.setdefault((key.tag, key.value), []).append(key.start_mark.line + 1)
        for (_, name), found in lines.items():
            if len(found) > 1:
                places = f"lines {', '.join(map(str, found[:-1]))} and {found[-1]}"
                self.repeated.append(f"{name}: stands {len(found)} times in one section ({places}): keep one")
        return node
