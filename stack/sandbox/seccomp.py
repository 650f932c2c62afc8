"""Which system calls code in the sandbox may make, as a filter for the kernel (classic BPF, seccomp(2)).

Refused is what Python programs do not need and attacks begin with: other processes' memory, keys, mounts,
namespaces, BPF, io_uring; and what holds memory that no process's size shows: System V IPC, memfd_create,
shared anonymous mappings, extended attributes, large pipes. Calls newer than this list do not exist.
"""

from __future__ import annotations

import errno
import platform
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_LAST_KNOWN = 441  # epoll_pwait2; from 424 on numbers are the same everywhere

# name: (x86_64, aarch64), None where there is no such call. Numbers: <asm/unistd.h>.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "lookup_dcookie": (212, 18),
    "fanotify_init": (300, 262),
    "remap_file_pages": (216, 234),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "vmsplice": (278, 75),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435  # its flags are in memory, which a filter cannot read: glibc then uses clone
_SOCKET = {"x86_64": 41, "aarch64": 198}
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
_MMAP = {"x86_64": 9, "aarch64": 222}
_FCNTL = {"x86_64": 72, "aarch64": 25}
_IOCTL = {"x86_64": 16, "aarch64": 29}

_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED (also in MAP_SHARED_VALIDATE) and MAP_ANONYMOUS
_AF_UNIX, _F_SETPIPE_SZ, _TIOCSTI, _TIOCLINUX = 1, 1031, 0x5412, 0x541C

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_LOAD, _RETURN = 0x20, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_RET | BPF_K
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _AND = 0x15, 0x35, 0x45, 0x54
_NUMBER_AT, _ARCH_AT = (
    0,
    4,
)  # in struct seccomp_data; arguments follow at 16, eight bytes each, low half first


def machine_is_known() -> bool:
    """Whether there is a filter for this machine."""
    return platform.machine() in _AUDIT_ARCH


def program(machine: str | None = None) -> bytes:
    """The filter, as `bwrap --seccomp` reads it. Raises KeyError for a machine that is not known."""
    machine = machine or platform.machine()
    plain = [numbers[_COLUMN[machine]] for numbers in _REFUSED.values()]
    code = [_op(_LOAD, _ARCH_AT), _op(_IF_EQUAL, _AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL)]
    code += [_op(_LOAD, _NUMBER_AT)]
    # Also the second numbering of x86_64 ("x32"), which begins at 0x40000000.
    code += [_op(_IF_AT_LEAST, _LAST_KNOWN + 1, 0, 1), _refuse(errno.ENOSYS)]
    code += [_op(_IF_EQUAL, _CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    for number in plain:
        if number is not None:
            code += [_op(_IF_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    code += _where(_CLONE[machine], 0, _any_bit(_NEW_NAMESPACE), errno.EPERM)
    code += _where(_SOCKET[machine], 0, _other_than(_AF_UNIX), errno.ENETUNREACH)
    code += _where(_SOCKETPAIR[machine], 0, _other_than(_AF_UNIX), errno.ENETUNREACH)
    code += _where(_MMAP[machine], 3, _all_bits(_SHARED_ANONYMOUS), errno.EPERM)
    code += _where(_FCNTL[machine], 1, _equal(_F_SETPIPE_SZ), errno.EPERM)
    code += _where(_IOCTL[machine], 1, _equal(_TIOCSTI), errno.EPERM)
    code += _where(_IOCTL[machine], 1, _equal(_TIOCLINUX), errno.EPERM)
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter. Jumps count the instructions that are left out."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _where(number: int, argument: int, test: list[bytes], error: int) -> list[bytes]:
    """Refuse one call where `test` holds of its argument's low half; it leaves out what follows if not."""
    body = [_op(_LOAD, 16 + 8 * argument), *test, _refuse(error), _op(_LOAD, _NUMBER_AT)]
    return [_op(_IF_EQUAL, number, 0, len(body)), *body]


def _equal(value: int) -> list[bytes]:
    return [_op(_IF_EQUAL, value, 0, 1)]


def _other_than(value: int) -> list[bytes]:
    return [_op(_IF_EQUAL, value, 1, 0)]


def _any_bit(mask: int) -> list[bytes]:
    return [_op(_IF_ANY_BIT, mask, 0, 1)]


def _all_bits(mask: int) -> list[bytes]:
    return [_op(_AND, mask), _op(_IF_EQUAL, mask, 0, 1)]
