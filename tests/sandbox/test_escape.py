"""Attempts to get out of the sandbox. Each test first shows that what it attacks is really there outside."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from stack.sandbox.sandbox import Sandbox
from tests.sandbox.conftest import answer, run, seen

pytestmark = pytest.mark.usefixtures("nothing_left")

SECRET = secrets.token_hex(16)
NEW_USER, NEW_MOUNT = 0x10000000, 0x00020000


def outside(code: str, *fds: int) -> str:
    """What the code prints in a process of its own, outside."""
    program = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n" + code
    words = [sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, check=True, pass_fds=fds).stdout


def present(paths: list[str]) -> list[str]:
    return [path for path in paths if os.path.lexists(path)]


# The server's secrets


async def test_the_environment_of_the_server_is_not_there(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACK_TAVILY_API_KEY", SECRET)
    assert SECRET in outside("print(os.environ)")
    inside = await answer(sandbox, "print(json.dumps(dict(os.environ)))")
    assert inside["HOME"] == "/box/home"
    assert SECRET not in str(inside)
    assert not any(name.startswith("STACK_") for name in inside)


@pytest.fixture
def secret_files(tmp_path: Path) -> list[str]:
    """A file in STACK_HOME, the database, and a key in a home folder."""
    (tmp_path / "notes.txt").write_text(SECRET)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text(SECRET)
    with closing(sqlite3.connect(tmp_path / "stack.db")) as database, database:
        database.execute("CREATE TABLE keys (key TEXT)")
        database.execute("INSERT INTO keys VALUES (?)", [SECRET])
    files = [tmp_path / "notes.txt", tmp_path / ".ssh" / "id_ed25519", tmp_path / "stack.db"]
    assert all(SECRET.encode() in file.read_bytes() for file in files)
    return [str(file) for file in files]


async def test_files_of_the_server_cannot_be_read(sandbox: Sandbox, secret_files: list[str]) -> None:
    own = [__file__, sys.executable, "/etc/shadow", "/etc/hostname", str(Path.home()), str(Path.cwd())]
    assert len(present(own)) >= 5
    inside = await answer(
        sandbox,
        f"""
        tried = {secret_files + own!r}
        up = ["/box/work" + "/.." * 9 + path for path in tried]
        print(json.dumps([path for path in tried + up if os.path.lexists(path)]))
        """,
    )
    assert inside == []


async def test_nothing_that_can_be_found_has_the_secret(sandbox: Sandbox, secret_files: list[str]) -> None:
    assert SECRET in outside(f"print(open({secret_files[0]!r}).read())")
    done = await run(
        sandbox,
        """
        import json, os
        folder = os.path.dirname(os.__file__) + "/site-packages"
        found = {"/": os.listdir("/"), "/packages": os.listdir("/packages")}
        found["site"] = os.listdir(folder) if os.path.isdir(folder) else []
        for folder, folders, names in os.walk("/"):
            if folder == "/":
                folders[:] = [f for f in folders if f not in ("python", "packages", "lib", "lib64", "dev")]
            for name in names:
                with open(os.path.join(folder, name), errors="replace") as file:
                    found[os.path.join(folder, name)] = file.read()
        json.dump(found, open("found.json", "w"))
        """,
    )
    found = json.loads(done.files[0].content)
    assert set(found) >= {"/etc/passwd", "/sandbox/main.py", "/sandbox/script.py"}
    assert SECRET not in str(found)
    assert set(found["/"]) <= {"box", "dev", "etc", "lib", "lib64", "packages", "python", "sandbox", "tmp"}
    assert "numpy" in found["/packages"]
    assert not {"stack", "ray", "pydantic", "sqlalchemy", "_editable_impl_stack.pth"} & set(
        found["/packages"]
    )
    assert found["site"] == []


# /proc, /sys and devices


async def test_there_is_no_proc_and_no_sys(sandbox: Sandbox) -> None:
    paths = [
        "/proc",
        "/proc/self/environ",
        f"/proc/{os.getpid()}/environ",
        "/proc/1/root",
        "/proc/sys/kernel",
    ]
    paths += ["/proc/mounts", "/proc/kallsyms", "/sys", "/sys/kernel", "/sys/class/net"]
    assert present(paths) == paths
    inside = await answer(
        sandbox,
        f"print(json.dumps([p for p in {[*paths, '/proc/kcore', '/dev/mem']!r} if os.path.lexists(p)]))",
    )
    assert inside == []


async def test_devices_are_two_and_stay_as_they_are(sandbox: Sandbox) -> None:
    before = os.stat("/dev/null").st_mode
    assert stat.S_ISCHR(before)
    assert len(os.listdir("/dev")) > 4
    inside = await answer(
        sandbox,
        """
        told = [sorted(os.listdir("/dev"))]
        changes = [lambda: os.chmod("/dev/null", 0), lambda: os.fchmod(0, 0)]
        changes += [lambda: os.mknod(name, 0o60666, os.makedev(8, 0)) for name in ("disk", "/dev/sda")]
        for change in changes:
            try:
                change()
                told.append("done")
            except OSError as error:
                told.append("refused")
        with open("/dev/null", "w") as file:
            file.write("x")
        print(json.dumps(told))
        """,
    )
    assert inside[0] == ["null", "shm", "urandom"]
    assert (inside[1], inside[3], inside[4]) == ("refused", "refused", "refused")  # fd 0 is a pipe of its own
    assert os.stat("/dev/null").st_mode == before


# The network


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[tuple[list[tuple[int, object]], list[object]]]:
    """Servers on this machine that really answer: (family, address), and who came."""
    addresses: list[tuple[int, object]] = [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_UNIX, f"\0stack-{SECRET}"),
        (socket.AF_UNIX, str(tmp_path / "socket")),
    ]
    if socket.has_ipv6:
        addresses.append((socket.AF_INET6, ("::1", 0)))
    came: list[object] = []
    sockets = []

    def serve(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                came.append(server.getsockname())
                connection.close()

    for family, address in addresses:
        server = socket.socket(family)
        try:
            server.bind(address)  # type: ignore[arg-type]
        except OSError:  # no IPv6 here
            server.close()
            continue
        server.listen()
        sockets.append(server)
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    yield [(int(server.family), server.getsockname()) for server in sockets], came
    for server in sockets:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


async def test_no_socket_reaches_anything(
    sandbox: Sandbox, listeners: tuple[list[tuple[int, object]], list[object]]
) -> None:
    addresses, came = listeners
    for family, address in addresses:
        with socket.socket(family) as client:
            client.connect(address)  # type: ignore[arg-type]
    assert socket.getaddrinfo("localhost", 80)
    while len(came) < len(addresses):
        pass
    assert len(addresses) >= 3
    came.clear()
    told = await answer(
        sandbox,
        f"""
        import socket
        told = []
        for family, address in {addresses!r}:
            try:
                with socket.socket(family) as client:
                    client.connect(tuple(address) if family != socket.AF_UNIX else address)
                told.append("connected")
            except OSError as error:
                told.append(error.errno)
        for kind in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK):
            try:
                socket.socket(kind, socket.SOCK_RAW if kind == socket.AF_PACKET else socket.SOCK_DGRAM)
                told.append("made")
            except OSError as error:
                told.append(error.errno)
        try:
            told.append(socket.getaddrinfo("localhost", 80))
        except OSError:
            told.append("no name")
        a, b = socket.socketpair()
        a.send(b"x")
        print(json.dumps(told))
        """,
    )
    assert told[-1] == "no name"
    assert set(told[:-1]) <= {errno.ENETUNREACH, errno.ECONNREFUSED, errno.ENOENT}
    assert came == []


# Other processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


async def test_other_processes_are_out_of_reach(sandbox: Sandbox, sleeper: subprocess.Popen[bytes]) -> None:
    pids = [sleeper.pid, os.getpid()]
    for pid in pids:
        os.kill(pid, 0)
        os.close(os.pidfd_open(pid))
    inside = await answer(
        sandbox,
        f"""
        libc = ctypes.CDLL(None)
        told = []
        for pid in {pids!r}:
            for attack in (lambda: os.kill(pid, 9), lambda: os.getpgid(pid), lambda: os.pidfd_open(pid)):
                try:
                    attack()
                    told.append(pid)
                except ProcessLookupError:
                    pass
            told.append(libc.ptrace(16, pid, 0, 0))
        print(json.dumps(told))
        """,
    )
    assert inside == [-1, -1]
    assert sleeper.poll() is None


async def test_the_first_process_cannot_be_harmed(sandbox: Sandbox) -> None:
    """It holds the run together; outside, a process can kill and trace what it started."""
    seize = "libc.ptrace(0x4206, child, 0, 0)"  # PTRACE_SEIZE
    forked = "import time; child = os.fork() or time.sleep(600)"
    assert outside(f"{forked}; print({seize}); os.kill(child, 9)") == "0\n"
    inside = await answer(
        sandbox,
        """
        import signal, time
        libc = ctypes.CDLL(None, use_errno=True)
        told = [os.getppid()]
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT):
            try:
                os.kill(1, number)
            except PermissionError:
                pass
        for pid in (1, os.fork() or time.sleep(600)):
            told += [libc.ptrace(0x4206, pid, 0, 0), ctypes.get_errno()]
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.kill(pid, 9)
        time.sleep(0.1)
        print(json.dumps(told))
        """,
    )
    assert inside == [1, -1, errno.EPERM, -1, errno.EPERM]


async def test_killing_all_that_can_be_seen_kills_the_script_only(
    sandbox: Sandbox, sleeper: subprocess.Popen[bytes]
) -> None:
    assert sleeper.pid in await seen("time.sleep(600)")  # not at once: exec is seen before its command line
    done = await run(sandbox, "import os\ntry:\n  os.kill(-1, 9)\nfinally:\n  os.kill(0, 9)")
    assert (done.ended, done.exit_code, done.stdout) == ("exited", 137, "")
    assert sleeper.poll() is None


# More rights


async def test_there_are_no_namespaces_within(sandbox: Sandbox) -> None:
    assert outside(f"print(libc.unshare({NEW_USER}))") == "0\n"
    inside = await answer(
        sandbox,
        f"""
        libc = ctypes.CDLL(None, use_errno=True)
        clone = {{"x86_64": 56, "aarch64": 220}}[os.uname().machine]
        told = []
        for kind in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000):
            told += [libc.unshare(kind), ctypes.get_errno()]
            told += [libc.syscall(clone, kind | 17, 0, 0, 0, 0), ctypes.get_errno()]
        arguments = (ctypes.c_uint64 * 11)({NEW_USER})
        told += [libc.syscall(435, ctypes.byref(arguments), 88), ctypes.get_errno()]
        print(json.dumps(told))
        """,
    )
    assert inside == [-1, errno.EPERM] * 14 + [-1, errno.ENOSYS]


async def test_nothing_can_be_mounted(sandbox: Sandbox) -> None:
    mount = "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)"
    assert outside(f"libc.unshare({NEW_USER | NEW_MOUNT}); print({mount})") == "0\n"
    inside = await answer(
        sandbox,
        f"""
        libc = ctypes.CDLL(None, use_errno=True)
        told = [{mount}, ctypes.get_errno(), libc.umount2(b"/packages/numpy", 2), ctypes.get_errno()]
        told += [libc.mount(None, b"/", None, 32 | 4096, None), libc.chroot(b"/box")]
        print(json.dumps(told))
        """,
    )
    assert inside == [-1, errno.EPERM, -1, errno.EPERM, -1, -1]


async def test_there_is_no_other_user_to_become(sandbox: Sandbox) -> None:
    become_root = "libc.setresuid(0, 0, 0)"
    prepared = f"libc.unshare({NEW_USER}); open('/proc/self/uid_map', 'w').write(f'0 {{os.getuid()}} 1')"
    assert (
        outside(f"uid = os.getuid(); {prepared.replace('os.getuid()', 'uid')}; print({become_root})") == "0\n"
    )
    inside = await answer(
        sandbox,
        """
        import shutil, subprocess
        libc = ctypes.CDLL(None, use_errno=True)
        told = [os.getresuid(), os.getresgid(), os.getgroups()]
        told += [libc.setresuid(0, 0, 0), libc.setresgid(0, 0, 0), libc.setgroups(0, None)]
        shutil.copy(sys.executable, "python")
        os.chmod("python", 0o6755)
        code = "import os; print(os.getresuid())"
        told.append(subprocess.run(["./python", "-I", "-S", "-c", code], capture_output=True, text=True,
            env=os.environ | {"PYTHONHOME": "/python"}).stdout)
        told.append(libc.prctl(39, 0, 0, 0, 0))  # PR_GET_NO_NEW_PRIVS
        told += [libc.prctl(23, capability, 0, 0, 0) for capability in range(41) if capability not in (6, 7)]
        os.remove("python")
        print(json.dumps(told))
        """,
    )
    assert inside[:3] == [[1000] * 3, [1000] * 3, []] or inside[2] == [65534]  # groups that have no name here
    assert inside[3:6] == [-1, -1, -1]
    assert inside[6] in ("(1000, 1000, 1000)\n", "")
    assert inside[7] == 1
    assert set(inside[8:]) == {0}


async def test_scripts_are_not_root_outside(sandbox: Sandbox) -> None:
    token = secrets.token_hex(8)
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{token}"])
        time.sleep(1)
        """
    task = asyncio.create_task(run(sandbox, code))
    found = await seen(token)
    status = await asyncio.to_thread(Path(f"/proc/{found[0]}/status").read_text)
    uids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    assert uids == [str(65534 if os.getuid() == 0 else os.getuid())] * 4
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    await task


CALLS = {  # name: (x86_64, aarch64), arguments that do no harm
    "memfd_create": ((319, 279), "b'x', 0"),
    "shmget": ((29, 194), "0, 4096, 0o1600"),
    "bpf": ((321, 280), "-1, 0, 0"),
    "perf_event_open": ((298, 241), "0, 0, -1, -1, 0"),
    "userfaultfd": ((323, 282), "-1"),
    "io_uring_setup": ((425, 425), "0, 0"),
    "keyctl": ((250, 219), "9999, 0, 0"),
    "add_key": ((248, 217), "0, 0, 0, 0, 0"),
    "kexec_load": ((246, 104), "0, 0, 0, 57005"),
    "process_vm_readv": ((310, 270), "1, 0, 0, 0, 0, 9"),
    "setns": ((308, 268), "-1, 0"),
    "open_by_handle_at": ((304, 265), "-1, 0, 0"),
    "memfd_secret": ((447, 447), "0"),
    "landlock_create_ruleset": ((444, 444), "0, 0, 1"),
}


async def test_system_calls_are_refused(sandbox: Sandbox) -> None:
    column = ("x86_64", "aarch64").index(os.uname().machine)
    calls = [f"libc.syscall({numbers[column]}, {arguments})" for numbers, arguments in CALLS.values()]
    code = "\n".join(f"told += [({call} < 0) * ctypes.get_errno()]" for call in calls)
    free = eval(outside(f"told = []\n{code}\nprint(told)"))
    refused = await answer(
        sandbox, "libc = ctypes.CDLL(None, use_errno=True)\ntold = []\n" + code + "\nprint(json.dumps(told))"
    )
    assert set(refused) == {errno.EPERM, errno.ENOSYS}
    differ = [name for name, out, in_ in zip(CALLS, free, refused, strict=True) if out != in_]
    assert len(differ) >= (9 if os.getuid() == 0 else 5), free


async def test_memory_that_nobody_would_count_cannot_be_had(sandbox: Sandbox) -> None:
    code = """
import fcntl, mmap
told = []
def attempt(what):
    try:
        what()
        told.append("had")
    except OSError:
        told.append("refused")
attempt(lambda: mmap.mmap(-1, 1 << 20))
attempt(lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 20))
attempt(lambda: os.open("/dev/zero", os.O_RDWR))
attempt(lambda: os.memfd_create("x"))
"""
    assert outside(code + "print(told)") == f"{['had'] * 4}\n"
    assert await answer(sandbox, code + "print(json.dumps(told))") == ["refused"] * 4


# What was left open


async def test_no_file_descriptor_leads_out(sandbox: Sandbox) -> None:
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leak, True)
    try:
        assert "proc" in outside(f"print(os.listdir({leak}))", leak)
        inside = await answer(
            sandbox,
            """
            import stat
            open_ = []
            for fd in range(70000):
                try:
                    open_.append([fd, stat.S_IFMT(os.fstat(fd).st_mode)])
                except OSError:
                    pass
            print(json.dumps(open_))
            """,
        )
    finally:
        os.close(leak)
    assert inside == [[0, stat.S_IFIFO], [1, stat.S_IFIFO], [2, stat.S_IFIFO]]


async def test_lies_on_the_pipes_are_just_output(sandbox: Sandbox) -> None:
    done = await run(
        sandbox,
        """
        import os
        for fd in range(64):
            for word in (b"g", b"f", b'{"exit-code": 0}\\n'):
                try:
                    os.write(fd, word)
                except OSError:
                    pass
        open("mine.txt", "w").write("mine")
        os.rename("/box/work", "/box/tmp/work") if os.access("/box", os.W_OK) else None
        os._exit(7)
        """,
    )
    assert (done.ended, done.exit_code) == ("exited", 7)
    assert [file.content for file in done.files] == [b"mine"]


# Files


async def test_nothing_outside_can_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("outside")
    folders = [
        "/",
        "/etc",
        "/dev",
        "/lib",
        "/python",
        "/python/bin",
        f"/python/lib/python3.{sys.version_info[1]}",
    ]
    folders += [
        "/packages",
        "/packages/numpy",
        "/sandbox",
        "/usr",
        "/var/tmp",
        "/home",
        "/root",
        str(tmp_path),
    ]
    inside = await answer(
        sandbox,
        f"""
        told = []
        def attempt(what):
            try:
                what()
                told.append(what.__code__.co_consts)
            except OSError:
                pass
        for folder in {folders!r}:
            attempt(lambda: open(folder + "/x", "w"))
            attempt(lambda: os.mkdir(folder + "/y"))
            attempt(lambda: os.symlink("/", folder + "/z"))
            attempt(lambda: os.chmod(folder, 0o777))
            attempt(lambda: os.rename(folder, "/box/tmp/a"))
        for file in ("/sandbox/main.py", "/etc/passwd", sys.executable, os.__file__):
            attempt(lambda: open(file, "a"))
            attempt(lambda: os.remove(file))
            attempt(lambda: os.link(file, "/box/tmp/b"))
            attempt(lambda: os.utime(file))
        print(json.dumps(told))
        """,
    )
    assert inside == []
    assert (tmp_path / "x").read_text() == "outside"


async def test_links_to_files_of_the_server_are_not_followed(
    sandbox: Sandbox, secret_files: list[str]
) -> None:
    folder = str(Path(secret_files[0]).parent)
    done = await run(
        sandbox,
        f"""
        import os
        os.symlink({secret_files[0]!r}, "link.txt")
        os.symlink({folder!r}, "folder")
        os.symlink("/proc/self/environ", "environ.txt")
        os.mkdir("sub")
        os.symlink("../../../../../.." + {secret_files[0]!r}, "sub/up.txt")
        os.symlink("loop", "loop")
        open("real.txt", "w").write("real")
        """,
    )
    assert [(file.name, file.content) for file in done.files] == [("real.txt", b"real")]
    assert SECRET not in str(done)
    assert "'link.txt' is left out: it is no regular file" in done.notes


async def test_odd_files_are_left_out(sandbox: Sandbox) -> None:
    done = await run(
        sandbox,
        """
        import os, socket
        os.mkfifo("pipe")
        socket.socket(socket.AF_UNIX).bind("socket")
        with open("sparse", "wb") as file:
            file.truncate(60 << 20)
        try:
            open("huge", "wb").truncate(1 << 40)
        except OSError as error:
            print(error.strerror)
        open("line\\nbreak", "w").write("x")
        open(b"\\xff\\xfe", "w").write("x")
        open("closed", "w").write("x")
        os.chmod("closed", 0)
        here = os.getcwd()
        for _ in range(300):
            os.mkdir("deep")
            os.chdir("deep")
        open("bottom", "w").write("x")
        os.chdir(here)
        os.link("closed", "again")
        open("good.csv", "w").write("a,b")
        """,
    )
    assert "File too large" in done.stdout
    names = {file.name for file in done.files}
    assert names - {"again", "closed"} == {"good.csv", "huge"}
    notes = "\n".join(done.notes)
    for word in ("pipe", "sparse", "shown", "deep"):
        assert word in notes
    assert "\nbreak" not in notes
