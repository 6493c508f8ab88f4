"""Files that appear whole or not at all, checksums, and locks between processes.

Temporary names are `.NAME.writing-XXXX`, unique over machines that share a file system.
"""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)
CHUNK = 1 << 22
OWNER = '.owner'  # locked by the process that writes a temporary folder, as long as it lives
OLD_SECONDS = 24 * 3600  # after which a temporary that nobody locks has been left behind
PROBE = 1 << 20  # bytes that a file system is asked to take, to see whether it is full
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # file systems without locks
CHECKSUM, CHECKSUMS = 'checksum', 'checksums'


def regular(path: Path) -> Path:
    """The path, of something that can be read to its end. Raises OSError for a device, such as /dev/zero."""
    if path.is_char_device() or path.is_block_device():
        raise OSError(errno.EINVAL, 'it is a device', str(path))
    return path


def user_path(given: str | Path) -> Path:
    """The path that a user gives; `~` is the home directory, which no shell fills in in plans, in Python or
    behind `--out=`."""
    return Path(os.path.expanduser(given))


def _temporary(file: Path) -> Path:
    short = os.fsencode(file.name)[:100].decode(errors='ignore')  # names may have 255 bytes
    return file.with_name(f'.{short}.writing-{secrets.token_hex(6)}')


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path whose file replaces `file` in one step when the block ends well."""
    temporary = _temporary(file)
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Replaces the file's content in one step: a reader sees the old content or the new one."""
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    write_bytes(file, text.encode('utf-8'))


def write_json(file: Path, content: Any) -> None:
    write_text(file, to_json(content))


def to_json(content: Any) -> str:
    """JSON as files hold it; a value that JSON lacks is written as its string."""
    return json.dumps(content, indent=1, default=str)


def from_json(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text.

    Raises ValueError for what is none, or holds what nothing could work with: deep nesting, numbers beyond 64
    bits.
    """
    try:
        return json.loads(text, parse_int=_whole_number, **options)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def _whole_number(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f'it holds a number of {len(digits)} digits')
    return int(digits)


def why_not_written(folder: Path, error: BaseException) -> str:
    """The reason of a failed write to a folder, the words of a sentence.

    Libraries hide the system's error number; then the file system is asked whether it is full.
    """
    number = getattr(error, 'errno', None)
    if number in FULL or number is None and ('No space left' in str(error) or is_full(folder)):
        return 'the disk is full'
    return (
        getattr(error, 'strerror', None) or ' '.join(str(error).split()).rstrip('.') or type(error).__name__
    )


def is_full(folder: Path) -> bool:
    """Whether a file system refuses another block of data."""
    probe = _temporary(folder / 'full')
    try:
        with open(probe, 'wb') as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in FULL
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return False


# ---- checksums


def checksum(file: Path) -> str:
    """XXH3-128 of a file's content, in hexadecimal. Raises OSError."""
    import xxhash

    digest, chunk = xxhash.xxh3_128(), bytearray(CHUNK)
    with open(file, 'rb', buffering=0) as content:
        while read := content.readinto(chunk):
            digest.update(memoryview(chunk)[:read])
    return digest.hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with a checksum of its own values, under `checksum`."""
    content = {k: v for k, v in content.items() if k != CHECKSUM}
    return content | {CHECKSUM: _seal(content)}


def seal_is_broken(content: Mapping[str, Any]) -> bool:
    """Whether content that `sealed` made has been changed; content without checksums is taken as it is."""
    if CHECKSUM not in content and CHECKSUMS not in content:
        return False
    return content.get(CHECKSUM) != sealed(content)[CHECKSUM]


def _seal(content: Mapping[str, Any]) -> str:
    import xxhash

    read_back = json.loads(json.dumps(content, default=str))  # tuples are lists then, and all keys strings
    return xxhash.xxh3_128(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, sizes: Mapping[str, int], checksums: Mapping[str, str]) -> str | None:
    """What is wrong with the first of a folder's files that is not as it was written; None where all are.

    Raises OSError for a file that can't be read.
    """
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f'{name} is missing'
        if (actual := file.stat().st_size) != size:
            return f'{name} has {actual:,} bytes instead of {size:,}'
    for name, expected in checksums.items():
        if checksum(folder / name) != expected:
            return f'the content of {name} has changed since it was written (its checksum differs)'
    return None


# ---- folders and locks


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, unless another process was first.

    replace: even where there is one, which is deleted then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = _temporary(folder), _temporary(folder)
    unlocked = temporary.with_name(temporary.name.replace('.writing-', '.making-'))
    unlocked.mkdir()
    try:
        with locked(unlocked / OWNER):
            os.rename(unlocked, temporary)  # from now on the lock says whether it has an owner
            yield temporary
            (temporary / OWNER).unlink()
            if replace:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, before)
            try:
                os.rename(temporary, folder)
            except OSError:
                if not folder.is_dir():
                    raise
    finally:
        for left in (unlocked, temporary, before):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def collect_leftovers(folder: Path) -> None:
    """Deletes the temporaries in a folder that dead processes have left there.

    One whose lock can be taken has no owner; where there is no lock to try, one that is a day old.
    """
    hidden = [f for f in folder.glob('.*') if re.search(r'\.(writing|making)-\w+$|\.\d+$', f.name)]
    for leftover in hidden:
        with contextlib.suppress(OSError):  # another process may collect it too
            if _is_left_behind(leftover):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _is_left_behind(leftover: Path) -> bool:
    try:
        with open(leftover / OWNER, 'r+') as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (*NO_LOCKS, errno.ENOENT, errno.ENOTDIR):
            raise
    return time.time() - leftover.stat().st_mtime > OLD_SECONDS


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[IO]:
    """Creates the file and locks it exclusively, over NFS too. Raises BlockingIOError where another process
    has, unless it should wait.

    On a file system without locks it goes on without, and says so once: files still appear whole.
    """
    with open(file, 'a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _tell_there_are_no_locks(str(file.parent))
        yield lock


@functools.cache
def _tell_there_are_no_locks(folder: str) -> None:
    log.warning("The file system of '%s' has no locks: let one process at a time use it.", folder)
