"""Runs the WASI test suite (WebAssembly/wasi-testsuite) on hob.

    ./run-tests -r .../tests/wasi-testsuite/hob.py -e .../tests/wasi-testsuite/expectations.toml TESTS

`HOB` names the command, `hob` by default. Commands go to `hob run`. For a service this file is also the program that is run:
it starts a server on a directory of its own, deploys the component, and says where it is.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HOB = os.getenv("HOB", "hob")


def get_name():
    return "hob"


def get_version():
    return subprocess.run([HOB, "--version"], encoding="UTF-8", capture_output=True, check=True).stdout.split()[1]


def get_wasi_versions():
    return ["wasm32-wasip3"]


def get_wasi_worlds():
    return ["wasi:cli/command", "wasi:http/service"]


def compute_argv(test_path, args_env_root, proposals, wasi_world, wasi_version):
    args, env, root = args_env_root
    if wasi_world == "wasi:http/service":
        return [sys.executable, __file__, "serve", str(test_path), json.dumps(env)]
    argv = [HOB, "run", str(test_path)]
    for name, value in env.items():
        argv += ["--env", f"{name}={value}"]
    if root:
        argv += ["--dir", f"{root}::/"]
    return argv + ["--"] + list(args)


def serve(component, env):
    """Serves one component at `/` until a signal comes."""
    with tempfile.TemporaryDirectory() as home:
        variables = "\n".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in env.items())
        manifest = Path(home, "hob.toml")
        manifest.write_text(
            f'name = "test"\ncomponent = {json.dumps(str(Path(component).absolute()))}\nroutes = ["/"]\n'
            f'egress = ["http://127.0.0.1:*", "http://localhost:*", "https://127.0.0.1:*"]\n[environment]\n{variables}\n'
        )
        environment = dict(os.environ, HOB_DATA=str(Path(home, "data")))
        server = subprocess.Popen(
            [HOB, "serve", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True, env=environment
        )
        signal.signal(signal.SIGINT, lambda *_: server.send_signal(signal.SIGINT))
        line = server.stderr.readline()
        subprocess.run([HOB, "deploy", str(manifest)], stdout=subprocess.DEVNULL, check=True, env=environment)
        print(line, end="", file=sys.stderr, flush=True)
        for line in server.stderr:
            # What the guest says is the test's; the rest is the server's log.
            print(line, end="", file=sys.stderr)
        sys.exit(server.wait())


if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    serve(sys.argv[2], json.loads(sys.argv[3]))
