"""Access control lists: one user gains what it needs, nobody else anything."""

import errno
import os
import stat
import struct
from pathlib import Path

import pytest

from queue_server.cluster.system_user import SystemUser, UserError, add_user_to_acl, find_user

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF
NOBODY = SystemUser("nobody", 65534, 65534)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")


def pack(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_a_list_made_from_a_mode_gains_a_user_and_a_mask() -> None:
    before = pack((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 0, NO_ID), (OTHER, 0, NO_ID))
    assert add_user_to_acl(before, 101, 1) == pack(
        (USER_OBJ, 7, NO_ID), (USER, 1, 101), (GROUP_OBJ, 0, NO_ID), (MASK, 1, NO_ID),
        (OTHER, 0, NO_ID),
    )  # fmt: skip


def test_widening_the_mask_gives_nothing_to_those_it_held_back() -> None:
    # The group and user 5 have rwx written down, but the mask lets them read only.
    before = pack(
        (USER_OBJ, 7, NO_ID), (USER, 7, 5), (GROUP_OBJ, 7, NO_ID), (MASK, 4, NO_ID),
        (OTHER, 0, NO_ID),
    )  # fmt: skip
    assert add_user_to_acl(before, 101, 1) == pack(
        (USER_OBJ, 7, NO_ID), (USER, 4, 5), (USER, 1, 101), (GROUP_OBJ, 4, NO_ID),
        (MASK, 5, NO_ID), (OTHER, 0, NO_ID),
    )  # fmt: skip


def test_an_entry_that_is_there_is_extended() -> None:
    before = pack(
        (USER_OBJ, 7, NO_ID), (USER, 4, 101), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID),
        (OTHER, 0, NO_ID),
    )  # fmt: skip
    after = add_user_to_acl(before, 101, 1)
    assert after == before.replace(
        struct.pack("<HHI", USER, 4, 101), struct.pack("<HHI", 2, 5, 101)
    )


@needs_root
def test_closed_folders_open_for_one_user_alone(tmp_path: Path) -> None:
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    file = inner / "file"
    file.write_text("here")
    assert not NOBODY.can_reach(file)

    NOBODY.make_reachable(file)

    assert NOBODY.can_reach(file)
    other = SystemUser("somebody", 12345, 12345)
    assert not other.can_reach(file)
    # It may pass, not look around; and the folder stays closed to group and others.
    assert not NOBODY.can_reach(tmp_path / "closed", os.R_OK)
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) & 0o707 == 0o700
    before = os.getxattr(tmp_path / "closed", "system.posix_acl_access")
    NOBODY.make_reachable(file)
    assert os.getxattr(tmp_path / "closed", "system.posix_acl_access") == before


@needs_root
def test_without_access_lists_the_message_tells_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    NOBODY.make_reachable(closed)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(UserError, match=rf"'nobody'.*chmod o\+x {closed}"):
        NOBODY.make_reachable(closed / "file")


@needs_root
def test_a_tree_installed_under_a_strict_umask_becomes_readable(tmp_path: Path) -> None:
    program = tmp_path / "tree" / "bin" / "program"
    program.parent.mkdir(parents=True)
    program.write_text("#!")
    program.chmod(0o700)
    data = tmp_path / "tree" / "data"
    data.write_text("")
    data.chmod(0o600)
    for folder in (tmp_path / "tree", program.parent):
        folder.chmod(0o700)

    NOBODY.make_reachable(program)
    NOBODY.make_readable(tmp_path / "tree")

    assert NOBODY.can_reach(program, os.R_OK | os.X_OK)
    assert NOBODY.can_reach(data)
    assert not NOBODY.can_reach(data, os.X_OK)
    assert not NOBODY.can_reach(data, os.W_OK)


@needs_root
def test_root_runs_postgresql_as_somebody_else(tmp_path: Path) -> None:
    assert find_user(tmp_path / "absent").uid != 0


@needs_root
def test_root_keeps_the_owner_that_the_data_has(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY.uid, NOBODY.gid)
    assert find_user(tmp_path).uid == NOBODY.uid
