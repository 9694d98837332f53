"""Every change that a process makes to files, seen before it is made: counted, refused, or the last thing it does.

Linux stops the process at chosen system calls until another process has decided (seccomp_unotify(2), Linux 5.5; no
privilege is needed). So this sees what C and C++ write too, whichever function of lrtrain it comes from.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import signal
import struct
from dataclasses import dataclass, field

_RECEIVE, _SEND, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082104  # ioctls of linux/seccomp.h
_NOTIFICATION = struct.Struct("QIIiIQ6Q")
_ANSWER = struct.Struct("QqiI")
_CONTINUE, _SYNC_WAKE_UP = 1, 1
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_NO_NEW_PRIVS = 38
_AT_FDCWD, _AT_REMOVEDIR, _EXCHANGE = -100, 0x200, 2
_WRITING, _CREATING = os.O_WRONLY | os.O_RDWR | os.O_CREAT, os.O_CREAT

# System call -> what is done, and which arguments say to what: ("fd", i), ("path", i) or ("at", i) for a folder's
# descriptor at i and a path after it.
_CALLS: dict[str, tuple[str, tuple[tuple[str, int], ...]]] = {
    "openat": ("open", (("at", 0),)),
    "write": ("write", (("fd", 0),)),
    "pwrite64": ("write", (("fd", 0),)),
    "writev": ("write", (("fd", 0),)),
    "fsync": ("fsync", (("fd", 0),)),
    "fdatasync": ("fsync", (("fd", 0),)),
    "truncate": ("truncate", (("path", 0),)),
    "ftruncate": ("truncate", (("fd", 0),)),
    "fallocate": ("truncate", (("fd", 0),)),
    "rename": ("rename", (("path", 0), ("path", 1))),
    "renameat": ("rename", (("at", 0), ("at", 2))),
    "renameat2": ("rename", (("at", 0), ("at", 2))),
    "mkdir": ("mkdir", (("path", 0),)),
    "mkdirat": ("mkdir", (("at", 0),)),
    "rmdir": ("rmdir", (("path", 0),)),
    "unlink": ("unlink", (("path", 0),)),
    "unlinkat": ("unlink", (("at", 0),)),
    "link": ("link", (("path", 0), ("path", 1))),
    "linkat": ("link", (("at", 0), ("at", 2))),
    "symlink": ("link", (("path", 1),)),
    "symlinkat": ("link", (("at", 1),)),
    "copy_file_range": ("write", (("fd", 2),)),
    "sendfile": ("write", (("fd", 0),)),
}
_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "seccomp": 317,
        "openat": 257,
        "write": 1,
        "pwrite64": 18,
        "writev": 20,
        "fsync": 74,
        "fdatasync": 75,
        "truncate": 76,
        "ftruncate": 77,
        "fallocate": 285,
        "rename": 82,
        "renameat": 264,
        "renameat2": 316,
        "mkdir": 83,
        "mkdirat": 258,
        "rmdir": 84,
        "unlink": 87,
        "unlinkat": 263,
        "link": 86,
        "linkat": 265,
        "symlink": 88,
        "symlinkat": 266,
        "copy_file_range": 326,
        "sendfile": 40,
    },
    "aarch64": {
        "seccomp": 277,
        "openat": 56,
        "write": 64,
        "pwrite64": 68,
        "writev": 66,
        "fsync": 82,
        "fdatasync": 83,
        "truncate": 45,
        "ftruncate": 46,
        "fallocate": 47,
        "renameat": 38,
        "renameat2": 276,
        "mkdirat": 34,
        "unlinkat": 35,
        "linkat": 37,
        "symlinkat": 36,
        "copy_file_range": 285,
        "sendfile": 71,
    },
}


def install(reads: bool) -> int:
    """Have this process and all that it forks stopped at every change of a file; the descriptor that decides.

    Args:
        reads: at opening for reading too.

    Raises:
        OSError: the kernel or the container does not allow it.
    """
    numbers = _NUMBERS.get(platform.machine(), {})
    if not numbers or platform.system() != "Linux":
        raise OSError(errno.ENOSYS, f"not known how to watch {platform.system()} on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    filter_ = _filter([n for name, n in numbers.items() if name not in ("seccomp", "openat")], numbers["openat"], reads)
    code = ctypes.create_string_buffer(filter_)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filter_) // 8, ctypes.addressof(code)))
    # Without the second flag, Linux before 5.19 announces a call that a signal interrupts twice.
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        listener = libc.syscall(numbers["seccomp"], 1, flags, program)
        if listener >= 0:
            return int(listener)
    raise OSError(ctypes.get_errno(), "seccomp")


def _filter(always: list[int], openat: int, reads: bool) -> bytes:
    """A BPF program: ask about the calls `always`, and about openat unless it is for reading."""
    load_number, load_flags = (0x20, 0, 0, 0), (0x20, 0, 0, 32)  # offsets in struct seccomp_data
    tests = [*always, *([openat] if reads else [])]
    program = [load_number]
    # Jump to the last instruction, which asks; after the tests come up to three for openat, and the one that allows.
    rest = 1 if reads else 4
    program += [(0x15, len(tests) - 1 - i + rest, 0, number) for i, number in enumerate(tests)]
    if not reads:
        program += [(0x15, 0, 2, openat), load_flags, (0x45, 1, 0, _WRITING)]
    program += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _NOTIFY)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


@dataclass
class Watch:
    """Decides about each change below a folder. The n-th, counted from 0, may be the last or fail.

    Attributes:
        listener: from `install`, in the deciding process.
        root: the folder; what happens elsewhere goes on uncounted.
        kill_at: before which change the process dies.
        torn: of a write that it dies at, the first half is still written.
        fail_at: which change is refused with `error`.
        stays: all changes after that are refused too, of the kinds that such a fault would hit.
        seen: what was done, in words.
    """

    listener: int
    root: str
    kill_at: int | None = None
    torn: bool = False
    fail_at: int | None = None
    error: int = errno.EIO
    stays: bool = False
    seen: list[str] = field(default_factory=list)
    hit: bool = False

    def __post_init__(self) -> None:
        try:
            fcntl.ioctl(self.listener, _SET_FLAGS, _SYNC_WAKE_UP)  # Linux 6.6: seven times as fast
        except OSError:
            return

    def decide(self, group: int) -> None:
        """Take one announced call and let it pass, fail it, or kill the process group."""
        announced = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, announced)
        except OSError:
            return  # the process has died meanwhile
        call, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(announced)
        words = self._words(pid, number, arguments)
        refused = 0
        if words is not None:
            n = len(self.seen)
            self.seen.append(words)
            if n == self.kill_at:
                self.hit = True
                if self.torn and words.startswith("write "):
                    _write_half(pid, arguments)
                os.killpg(group, signal.SIGKILL)
                return
            if self.fail_at is not None and (n == self.fail_at or (self.stays and n > self.fail_at and _fills(words))):
                self.hit, refused = True, -self.error
        try:
            fcntl.ioctl(self.listener, _SEND, bytearray(_ANSWER.pack(call, 0, refused, 0 if refused else _CONTINUE)))
        except OSError:
            return

    def _words(self, pid: int, number: int, arguments: list[int]) -> str | None:
        """What a call does, or None where it is of no interest."""
        name = _NAMES[number]
        done, places = _CALLS[name]
        try:
            paths = [_path(pid, kind, arguments, i) for kind, i in places]
        except OSError:
            return None
        if not any(path == self.root or path.startswith(self.root + "/") for path in paths):
            return None
        if name == "openat" and arguments[2] & _WRITING:
            done = "create" if arguments[2] & _CREATING else "open to write"
        elif name == "unlinkat" and arguments[2] & _AT_REMOVEDIR:
            done = "rmdir"
        elif name == "renameat2" and arguments[4] & _EXCHANGE:
            done = "exchange"
        shown = [re.sub(r"(\.tmp-\d{8})-\d+", r"\1", os.path.relpath(path, self.root)) for path in paths]
        return f"{done} {' -> '.join(shown)}"


_NAMES = {number: name for name, number in _NUMBERS.get(platform.machine(), {}).items()}


def _fills(words: str) -> bool:
    """Whether a full or read-only disk would refuse this."""
    return words.split()[0] in ("create", "write", "mkdir", "rename", "exchange", "link")


def _path(pid: int, kind: str, arguments: list[int], i: int) -> str:
    if kind == "fd":
        return os.readlink(f"/proc/{pid}/fd/{arguments[i]}")
    path = _text(pid, arguments[i + 1 if kind == "at" else i])
    if path.startswith("/"):
        return os.path.normpath(path)
    folder = ctypes.c_int(arguments[i]).value if kind == "at" else _AT_FDCWD
    base = os.readlink(f"/proc/{pid}/cwd" if folder == _AT_FDCWD else f"/proc/{pid}/fd/{folder}")
    return os.path.normpath(os.path.join(base, path))


def _text(pid: int, address: int) -> str:
    """The C string at an address of another process."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        found = b""
        while b"\0" not in found:
            # Up to the end of the page: the next one may not be there.
            found += memory.read(4096 - (address + len(found)) % 4096)
    return os.fsdecode(found.split(b"\0")[0])


def _write_half(pid: int, arguments: list[int]) -> None:
    """Do the first half of another process's write(2)."""
    descriptor, address, size = arguments[:3]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        data = memory.read(size // 2)
    with open(f"/proc/{pid}/fd/{descriptor}", "ab", buffering=0) as file:  # nothing here writes but at the end
        file.write(data)


def supported() -> str:
    """Why processes cannot be watched here; empty where they can."""
    pid = os.fork()
    if pid == 0:
        try:
            install(reads=False)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if code == 0 else os.strerror(code)
