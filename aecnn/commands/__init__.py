"""The commands of ``aecnn``, each a function; `aecnn.cli` gives them their names."""
