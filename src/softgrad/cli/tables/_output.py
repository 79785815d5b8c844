"""Writing files whole or not at all: a temporary file beside the target, then one rename."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from softgrad.cli.terminal._messages import UserError, shown


def check_output(path: Path, extensions: tuple[str, ...], option: str) -> None:
    """Say before the work begins that a file cannot be written, not after it."""
    if path.suffix.lower() not in extensions:
        wanted = " or ".join(extensions)
        raise UserError(f"{option} {shown(path)}: the file name must end in {wanted}")
    if path.is_dir():
        raise UserError(f"{option} {shown(path)}: is a directory, not a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {shown(path)}: there is no directory {shown(path.parent)}")
    if is_stream(path):
        return
    with _refusals(path), tempfile.TemporaryFile(dir=_target(path).parent):
        pass


def is_stream(path: Path) -> bool:
    """Whether a path is what bytes pass through, such as a pipe: it can be neither replaced nor read twice."""
    return path.exists() and not (path.is_file() or path.is_dir())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when the block has ended well.

    Parameters
    ----------
    path : Path
        The file to make or to replace. An existing file keeps its permissions; a link keeps pointing where it points.
        A pipe or a device is written to as it is.

    Yields
    ------
    binary file
    """
    if is_stream(path):
        with _refusals(path), path.open("wb") as stream:
            yield stream
        return
    target = _target(path)
    # The name is made up before the file is, so that an interrupt at any moment finds it and takes it away.
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.part")
    with _refusals(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """The system's refusals (permissions, a full disk) as the user's one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {shown(path)}: {error.strerror or error}") from error
