"""Letting one more user pass through directories, and nobody else.

Source: acl(5); Linux, ``include/uapi/linux/posix_acl_xattr.h``.
"""

import errno
import os
import pwd
import stat
import struct
from pathlib import Path

_ACL = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFF_FFFF
_SEARCH = 1


def let_pass(user: pwd.struct_passwd, path: Path) -> None:
    """Let a user pass through the directories above a path, which may be listed by nobody who
    could not list them before. Raises ``OSError`` where a directory keeps the user out."""
    for directory in reversed(path.parents):
        mode = directory.stat().st_mode
        if mode & stat.S_IXOTH or directory.stat().st_uid == user.pw_uid:
            continue
        try:
            entries = _entries(directory, mode)
            for entry in ((_USER, user.pw_uid), (_MASK, _NO_ID)):
                entries[entry] = entries.get(entry, mode >> 3 & 7 if entry[0] == _MASK else 0)
                entries[entry] |= _SEARCH
            packed = (_ENTRY.pack(tag, entries[tag, id_], id_) for tag, id_ in sorted(entries))
            os.setxattr(directory, _ACL, _VERSION + b"".join(packed))
        except (AttributeError, OSError) as error:
            raise PermissionError(
                errno.EACCES, f"{user.pw_name} cannot pass (chmod o+x would do)", str(directory)
            ) from error


def _entries(directory: Path, mode: int) -> dict[tuple[int, int], int]:
    """The access control list: permissions by (tag, id)."""
    try:
        data = os.getxattr(directory, _ACL)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        shifts = {_OWNER: 6, _GROUP: 3, _OTHER: 0}
        return {(tag, _NO_ID): mode >> shift & 7 for tag, shift in shifts.items()}
    entries = _ENTRY.iter_unpack(data[len(_VERSION) :])
    return {(tag, id_): permissions for tag, permissions, id_ in entries}
