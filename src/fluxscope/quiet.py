"""Keeping the libraries' bars and warnings off the terminal; what matters in them we say ourselves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def quiet_imports() -> None:
    """Call before transformers is imported: without torchvision it prints warnings that mean nothing here."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """While diffusers and transformers load weights already on the disk, or tokenize."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()
