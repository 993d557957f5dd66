"""Scripts in processes of their own, in an environment that libraries read when they are imported.

The processes are forked from one that has imported the libraries in that environment, and not the plugin: so each is
as fresh as `python -c` would start it, without ten seconds of imports.

    server = ForkServer({**os.environ, "HF_ENDPOINT": url})
    done = server.run("import sys; print(sys.argv)", "a", cwd=tmp_path)
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path


LIBRARIES = ("torch", "transformers.trainer", "transformers.models.electra.modeling_electra", "datasets", "evaluate",
             "accelerate", "scipy.stats", "sklearn.metrics")  # fmt: skip
TIMEOUT = 400  # seconds of a script


class ForkServer:
    def __init__(self, environment: dict[str, str]):
        command = [sys.executable, __file__]
        self.environment = environment
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, script: str, *argv: str, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess:
        """What `python -c script argv` does in this folder, with these variables changed, or removed by `None`."""
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / name for name in ("stdout", "stderr")]
            for path in outputs:
                path.touch()
            request = [script, argv, str(cwd), environment, *map(str, outputs)]
            print(json.dumps(request), file=self.process.stdin, flush=True)
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(argv, status, *(path.read_text("utf-8") for path in outputs))

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for whatever a library prints
    sys.path[0] = ""  # as `python -c` has it
    for library in LIBRARIES:
        import_module(library)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            execute(*json.loads(line))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def execute(script: str, argv: list[str], cwd: str, environment: dict, stdout: str, stderr: str):
    signal.alarm(TIMEOUT)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(cwd)
    for descriptor, path in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY), descriptor)
    sys.argv = ["-c", *argv]
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
    sys.exit()


if __name__ == "__main__":
    serve()
