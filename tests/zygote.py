"""python tests/zygote.py FD: has imported everything and computed nothing; forks a command for each message on FD.

See forked.py. A message is JSON, with four descriptors: stdin, stdout, stderr, and a socket for the answers, which are
the process's id, and its exit code when it has one. The command is lrtrain's or torchrun's, whose processes are forked
from it in their turn.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

TORCHRUN = "torch.distributed.run"
IMPORTED = (
    "torch._dynamo",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    TORCHRUN,
    "torch.utils.data",
    "torchvision.models",
    "torchvision.transforms.v2",
    "safetensors.torch",
    "lrtrain.build",
    "lrtrain.cli",
    "lrtrain.commands.evaluate",
    "lrtrain.commands.fit",
    "lrtrain.commands.range_test",
    "lrtrain.commands.start",
)


def serve(control):
    """Fork for each message; in the forked process, what it is asked, and its descriptors."""
    watching = selectors.DefaultSelector()
    watching.register(control, selectors.EVENT_READ)
    running = {}
    while True:
        for ready, _ in watching.select():
            if ready.fileobj is control:
                message, descriptors, _, _ = socket.recv_fds(control, 2**20, 4)
                if not message:
                    sys.exit()
                pid = os.fork()
                if pid == 0:
                    for descriptor in (control.fileno(), descriptors.pop(), *running):
                        os.close(descriptor)
                    for _, answers in running.values():
                        answers.close()
                    control.detach()
                    watching.close()
                    return json.loads(message), descriptors
                answers = socket.socket(fileno=descriptors.pop())
                for descriptor in descriptors:
                    os.close(descriptor)
                answers.send(str(pid).encode())
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, answers
                watching.register(pidfd, selectors.EVENT_READ)
            else:
                watching.unregister(ready.fileobj)
                os.close(ready.fileobj)
                pid, answers = running.pop(ready.fileobj)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # nobody may wait for it any more
                    answers.send(str(code).encode())
                answers.close()


def become(asked, descriptors):
    """Be the process that was asked for."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if asked["new_session"]:
        os.setsid()
    os.chdir(asked["cwd"])
    if asked["module"] == TORCHRUN:
        handlers = importlib.import_module("torch.distributed.elastic.multiprocessing.subprocess_handler.handlers")
        handlers.SubprocessHandler._popen = lambda _, args, env: Rank(args, env)
    start(asked["module"], asked["args"], asked["env"])


def start(module, args, env):
    """Be `python -m MODULE ARGS`, which puts the folder first, to its end.

    The interpreter is not taken down: that takes a second, and what stands above here is not this process's to end.
    """
    os.environ.clear()
    os.environ.update(env)
    sys.path[0:2] = [os.getcwd(), *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = [module, *args]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Rank:
    """What torchrun needs of a `Popen`, for a process that is forked from torchrun's."""

    def __init__(self, command, env):
        module, *args = command[command.index("-m") + 1 :]
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            heed_signals()
            start(module, args, env)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a rank", timeout)
            time.sleep(0.01)
        return self.returncode


def heed_signals():
    """What nohup and background jobs ignore is inherited, and so is what torchrun does; here they are to be heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    heed_signals()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
