"""TCP ports for processes that are started here and find each other."""

import random
import socket
from collections import deque
from collections.abc import Sequence

# Systems give higher ports to outgoing connections.
PORTS: Sequence[int] = range(20_000, 32_000)
MARKS = 100  # that one process keeps

_marks: deque[socket.socket] = deque()


def free_port() -> int:
    """Returns a TCP port of this machine that nobody uses.

    The UDP port of the same number is kept until this process ends or has asked for many more.
    Others that ask here leave the port out meanwhile, although it may not be in use yet.

    Raises:
      OSError: if no port is free.
    """
    for port in random.sample(PORTS, len(PORTS)):
        mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            mark.close()
            continue
        _marks.append(mark)
        if len(_marks) > MARKS:
            _marks.popleft().close()
        return port
    raise OSError("no TCP port is free")
