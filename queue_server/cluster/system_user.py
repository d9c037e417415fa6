"""The unprivileged user that PostgreSQL and the workers run as when the server is started by root.

PostgreSQL refuses to run as root, and workers, which read what strangers send, should not. Only the
supervisor stays root: it answers no request, reads TLS files that are root's alone and starts
processes. A system user can run PostgreSQL, but must be able to reach the data
directory and PostgreSQL's binaries, which may lie under a folder closed to everybody else: /root,
or a checkout below `mktemp -d`. Such a folder gets one entry in its access control list, for this
one user; nobody else gains anything, and the folder keeps its owner.
"""

import contextlib
import ctypes
import errno
import logging
import os
import pwd
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

OWN_USER = "queue-server"

_ACL_XATTR = "system.posix_acl_access"
_ACL_VERSION = 2
# Tags of an entry, in the order the kernel wants them; acl(5) names them.
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
# Source: useradd(8), "can't update password file": another one is at work on it.
_USERADD_LOCKED = 1
_USERADD_ATTEMPTS = 10

_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None)
_NO_ID = 0xFFFFFFFF
_READ, _SEARCH = 4, 1


class UserError(Exception):
    """PostgreSQL cannot be run as a user that may reach its files; the message says what to do."""


@dataclass(frozen=True)
class SystemUser:
    name: str
    uid: int
    gid: int

    @property
    def is_named(self) -> bool:
        """Whether the system knows it by more than a number; a container may not."""
        return _known(self.uid)

    @property
    def popen_arguments(self) -> dict[str, Any]:
        """How `subprocess.Popen` becomes this user; nothing when we are this user already."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    @property
    def arguments_for_tools(self) -> dict[str, Any]:
        """As `popen_arguments`, for programs that ask the system for their user's name."""
        return self.popen_arguments | ({} if self.is_named else {"preexec_fn": borrow_name})

    def become(self) -> None:
        """Make this process one of this user, for good: it keeps no capability and gains none."""
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)  # for root this clears all capabilities; see capabilities(7)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # libpq looks for certificates there, and takes a folder that it may not enter for an error.
        os.environ["HOME"] = pwd.getpwuid(self.uid).pw_dir if self.is_named else "/"

    def can(self, check: Callable[[], bool]) -> bool:
        """Whether *check* holds for a process of this user.

        Errors: `UserError` when this process may not become the user.
        """
        return self._run(check)

    def own(self, path: Path) -> None:
        """Hand *path* and all below it to this user."""
        if self.uid == os.geteuid():
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            for inside in path.rglob("*"):
                os.chown(inside, self.uid, self.gid, follow_symlinks=False)

    def can_reach(self, path: Path, mode: int = os.R_OK) -> bool:
        return bool(self._run(lambda: os.access(path, mode)))

    def make_reachable(self, path: Path) -> None:
        """Let this user pass through every folder above *path*.

        Errors: `UserError` when a folder is closed and its file system keeps no access lists.
        """
        if self.uid == os.geteuid():
            return
        folders = list(reversed(path.resolve().parents))
        for folder in folders:
            # A folder is judged after those above it, which it cannot be reached without.
            if not self.can_reach(folder, os.X_OK):
                self._grant(folder, _SEARCH)

    def make_readable(self, tree: Path) -> None:
        """Let this user read all files of *tree*, as after an installation under `umask 077`."""
        if self.uid == os.geteuid():
            return
        for path in (tree, *tree.rglob("*")):
            mode = path.stat().st_mode
            if not mode & stat.S_IROTH:
                executable = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
                self._grant(path, _READ | (_SEARCH if executable else 0), logging.DEBUG)

    def _grant(self, path: Path, permissions: int, level: int = logging.INFO) -> None:
        try:
            acl = add_user_to_acl(_read_acl(path), self.uid, permissions)
            os.setxattr(path, _ACL_XATTR, acl)
        except OSError as exc:
            raise UserError(
                f"PostgreSQL runs as {self.name!r}, who cannot enter {path} ({exc.strerror});"
                f" run `chmod o+x {path}`, or choose another DATA_DIR, or start the server as"
                " an ordinary user"
            ) from exc
        logger.log(level, "let %s pass through %s", self.name, path, extra={"path": str(path)})

    def _run(self, check: Callable[[], bool]) -> bool:
        """Ask as this user, in a short-lived child: a process cannot borrow an identity safely."""
        if self.uid == os.geteuid():
            return check()
        child = os.fork()
        if not child:
            answer = 2
            try:
                self.become()
                answer = 0 if check() else 1
            finally:
                os._exit(answer)
        answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if answer not in (0, 1):
            raise UserError(f"cannot act as the system user {self.name!r}: start as that user")
        return answer == 0


def find_user(data: Path) -> SystemUser:
    """The user that PostgreSQL runs as; *data* is its data directory, which may not exist yet.

    An ordinary user runs it under its own name. Root takes the owner that the data already has,
    else a user that nothing else uses.
    """
    if os.geteuid() != 0:
        return _user(pwd.getpwuid(os.geteuid()).pw_name if _known(os.geteuid()) else "")
    if data.exists() and (owner := data.stat().st_uid):
        if _known(owner):
            return _user(pwd.getpwuid(owner).pw_name)
        return SystemUser(str(owner), owner, data.stat().st_gid)
    return own_user()


def own_user() -> SystemUser:
    """The user `queue-server`, made when there is none; where that fails, one that others share."""
    if _exists(OWN_USER) or _create_own_user():
        return _user(OWN_USER)
    return _user("postgres" if _exists("postgres") else "nobody")


def make_code_readable(user: SystemUser) -> None:
    """Let *user* read the modules that a process imports late.

    Errors: `UserError`.
    """
    # Not the rest of a checkout, which may hold keys and data.
    installed = (Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())
    found = [Path(one).resolve() for one in sys.path if one]
    trees = [one for one in found if any(one.is_relative_to(prefix) for prefix in installed)]
    for entry in dict.fromkeys([Path(__file__).resolve().parents[1], *trees]):
        if not entry.is_dir():
            continue
        user.make_reachable(entry / "any file")
        sample = next((one for one in entry.rglob("*.py")), None)
        # An installation under `umask 077` is closed file by file.
        if sample and not user.can_reach(sample):
            user.make_reachable(sample)
            user.make_readable(entry)


def borrow_name() -> None:
    """Let this process appear to itself as a user with a name; for a child before its exec.

    `initdb` ends when the system has no name for its user. In a user namespace the same user can
    have the number of another one that has: what is written still belongs to the real user. Where
    that is forbidden (as by the usual seccomp profile of containers) nothing changes.

    Source: user_namespaces(7).
    """
    # Root is no user that PostgreSQL's tools run as.
    named = next((one for one in pwd.getpwall() if one.pw_uid and one.pw_gid), None)
    uid, gid = os.geteuid(), os.getegid()
    if named is None or _libc.unshare(_CLONE_NEWUSER) != 0:
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{named.pw_gid} {gid} 1")
        Path("/proc/self/uid_map").write_text(f"{named.pw_uid} {uid} 1")


def _create_own_user() -> bool:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not useradd:
        return False
    command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OWN_USER]
    for _ in range(_USERADD_ATTEMPTS):
        made = subprocess.run(command, capture_output=True, check=False)
        if made.returncode == 0:
            logger.info("created the system user %s for PostgreSQL and workers", OWN_USER)
        if made.returncode != _USERADD_LOCKED or _exists(OWN_USER):
            break
        time.sleep(0.2)
    return _exists(OWN_USER)


def _user(name: str) -> SystemUser:
    if not name:  # a container may run as a number that has no name
        return SystemUser(str(os.geteuid()), os.geteuid(), os.getegid())
    entry = pwd.getpwnam(name)
    return SystemUser(name, entry.pw_uid, entry.pw_gid)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


# -- access control lists: a version, then (tag, permissions, id) each, see acl(5) --


def _read_acl(path: Path) -> bytes:
    """The access list of *path*; without one, the list that says what its mode says."""
    try:
        return os.getxattr(path, _ACL_XATTR)
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
    mode = path.stat().st_mode
    return _pack(
        [
            (_USER_OBJ, mode >> 6 & 7, _NO_ID),
            (_GROUP_OBJ, mode >> 3 & 7, _NO_ID),
            (_OTHER, mode & 7, _NO_ID),
        ]
    )


def add_user_to_acl(acl: bytes, uid: int, permissions: int) -> bytes:
    """The list with *permissions* added for *uid*, and nothing added for anybody else."""
    entries = {(tag, who): bits for tag, bits, who in _unpack(acl)}
    # The mask caps what named users and groups get. Before it can be widened for one user, what
    # it withheld from the others has to be taken from their own entries.
    mask = entries.get((_MASK, _NO_ID), 7)
    for key in entries:
        if key[0] in (_USER, _GROUP_OBJ, _GROUP):
            entries[key] &= mask
    entries[_USER, uid] = entries.get((_USER, uid), 0) | permissions
    capped = [bits for (tag, _), bits in entries.items() if tag in (_USER, _GROUP_OBJ, _GROUP)]
    entries[_MASK, _NO_ID] = 0
    for bits in capped:
        entries[_MASK, _NO_ID] |= bits
    return _pack([(tag, bits, who) for (tag, who), bits in sorted(entries.items())])


def _pack(entries: list[tuple[int, int, int]]) -> bytes:
    return struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *e) for e in entries)


def _unpack(acl: bytes) -> Iterator[tuple[int, int, int]]:
    yield from struct.iter_unpack("<HHI", acl[4:])
