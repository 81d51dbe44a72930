"""How long work tells how far it is; who shows it, and how, is the caller's affair."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]  # (images done, images in all)
OnImages = Callable[[int], None]  # images dealt with since the last call
