"""Start ipykernel inside the sandbox, within its limits and on sockets bound outside; run as a script, or after a fork.

The last argument says, as JSON, which limits to set and which open file to use for each address.
"""

from __future__ import annotations

import json
import os
import sys

# Nobody reads a graded kernel's tracebacks (those of endless recursion take seconds to make), nor what was entered.
QUIET = ("--InteractiveShell.xmode=Minimal", "--HistoryManager.enabled=False")


def main(limits: dict[str, int], sockets: dict[str, int], doors: list[int]) -> None:
    """Limit this process and its children for good, take the sockets over, become a kernel.

    The doors are those of a control group: what writes 0 to them is in it. The learner's code finds them closed.
    """
    import resource

    for door in doors:
        os.write(door, b"0")
        os.close(door)
    for name, most in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (most, most) if hard == resource.RLIM_INFINITY else (min(most, hard),) * 2)
    os.setsid()  # an interrupt reaches what the kernel started, too
    for number in sockets.values():
        os.set_inheritable(number, False)
    _take_over(sockets)
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


def _take_over(sockets: dict[str, int]) -> None:
    """Let ZeroMQ listen on what is already bound: no folder that the kernel could write to is shared with it."""
    import zmq

    bind = zmq.Socket.bind

    def on_what_is_bound(socket: zmq.Socket[bytes], address: str) -> object:
        if address in sockets:
            socket.setsockopt(zmq.USE_FD, sockets[address])
        return bind(socket, address)

    zmq.Socket.bind = on_what_is_bound  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have names of their own
    main(**json.loads(sys.argv.pop()))
