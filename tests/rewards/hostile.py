"""What a hostile reward tries: each attack, by its name in docs/rewards.md, is code that sets `result` to 1.0 where it succeeds.

It finds `driver` and `supervisor` (process ids, signalled with one that nobody minds), `run` (a folder of the run), `port` (a TCP and a UDP
server on 127.0.0.1), `unix` and `abstract` (Unix sockets).
"""

HEAD = """
import ctypes, os, signal, socket, threading
driver, supervisor, run, port, unix, abstract = {driver}, {supervisor}, {run!r}, {port}, {unix!r}, {abstract!r}
result = 0.0

def succeeds(*attempts):
    global result
    for attempt in attempts:
        try:
            attempt()
        except OSError:
            continue
        result = 1.0

def connect(family, kind, address):
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        client.connect(address)
        client.send(b"x")
        # Where nobody listens for UDP, it is this one that fails.
        client.send(b"x")
"""

ATTACKS = {
    "read a variable of the driver that was not passed on": """
result = float("HIDDEN_KEY" in os.environ)
""",
    "read the driver's memory, variables or open files in `/proc`": """
succeeds(*(lambda name=name: open(f"/proc/{driver}/{name}", "rb").read(1) for name in ("environ", "maps")),
         lambda: open(f"/proc/{driver}/mem", "rb"), lambda: os.readlink(f"/proc/{driver}/fd/0"))
""",
    "take a socket out of the driver or of a sibling (`pidfd_getfd`)": """
call = ctypes.CDLL(None, use_errno=True).syscall
pidfd = call(434, driver, 0)
result = float(pidfd >= 0 and any(call(438, pidfd, fd, 0) >= 0 for fd in range(64)))
""",
    "signal the driver or the child's supervisor": """
succeeds(*(lambda pid=pid: os.kill(pid, signal.SIGURG) for pid in (driver, supervisor)))
""",
    "see which processes there are": """
result = float(os.path.exists(f"/proc/{driver}"))
""",
    "make a file outside the private folder": """
succeeds(*(lambda place=place: open(f"{place}/samepath-hostile-{driver}", "w").close()
           for place in (run, os.path.dirname(__import__("samepath.rewards.score").rewards.score.__file__), "/var", "/dev")))
""",
    "change the mode or the times of a file of the run": """
succeeds(lambda: os.chmod(f"{run}/run.json", 0o644), lambda: os.utime(f"{run}/run.json"))
""",
    "read a file that the user can read": """
succeeds(lambda: open(f"{run}/run.json").read())
""",
    "connect by TCP": """
succeeds(lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port)))
""",
    "send by UDP": """
succeeds(lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", port)))
""",
    "connect to a Unix socket below `/tmp` or `/run`": """
succeeds(lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, unix))
""",
    "connect to an abstract Unix socket": """
succeeds(lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, abstract))
""",
    "use a capability of root, where the driver is root": """
result = float(int(next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1], 16) > 0)
""",
    "write, cut, remove, rename or replace a file of the run": """
state, own = f"{run}/run.json", "own"
open(own, "w").close()
succeeds(lambda: open(state, "a").close(), lambda: os.truncate(state, 1), lambda: os.rename(state, f"{run}/gone"),
         lambda: os.replace(own, state), lambda: os.unlink(state), lambda: os.link(own, f"{run}/linked"))
""",
}
"""The last one destroys what the others look at."""
