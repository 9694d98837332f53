"""python tests/zygote.py FD: has imported everything and computed nothing; forks a command for each message on FD.

See forked.py. A message is JSON, with four descriptors: stdin, stdout, stderr, and a socket for the answers, which are
the process's id, and its exit code when it has one.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys

IMPORTED = (
    "torch._dynamo",
    "torch.distributed",
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
    os.environ.clear()
    os.environ.update(asked["env"])
    # As `python -m lrtrain` has it, which puts the folder first.
    sys.path[0:2] = [os.getcwd(), *asked["env"].get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = ["lrtrain", *asked["args"]]
    runpy.run_module("lrtrain", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # What nohup and background jobs ignore is inherited; here it is to be heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
