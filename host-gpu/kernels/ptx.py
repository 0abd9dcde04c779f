"""Makes ptx/ of the kernels, or checks that it is what the compiler makes of them. Needs no GPU and no CUDA toolkit: `cargo
xtask kernels` brings the packages of requirements.txt and runs this; `cargo xtask kernels --write` renews what is committed.

It also assembles each file for the GPUs in ARCHS, and writes registers and spills to registers.md. A kernel that spills fails.
"""
import ctypes, hashlib, pathlib, re, subprocess, sys, sysconfig, tempfile
from concurrent.futures import ProcessPoolExecutor

HERE = pathlib.Path(__file__).parent
WHEELS = pathlib.Path(sysconfig.get_paths()["purelib"]) / "nvidia"
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--use_fast_math", "-default-device"]
ARCHS = ["sm_80", "sm_86", "sm_89", "sm_90"]


def compiled(name):
    """The PTX of a file; the program's name enters it, so it has no path."""
    nvrtc = ctypes.CDLL(str(WHEELS / "cuda_nvrtc/lib/libnvrtc.so.12"))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = OPTIONS + [f"--include-path={WHEELS / 'cuda_runtime/include'}", f"--include-path={HERE}"]
    source = (HERE / name).read_bytes()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None):
        raise SystemExit(f"{name}: the compiler does not start")
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if failed:
        raise SystemExit(f"{name} does not compile:\n{log.value.decode()}")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    # Trailing spaces and the compiler's build stamp say nothing.
    return re.sub(rb"(?m)^// Compiler Build ID:.*\n", b"", ptx.value)


def assembled(name, ptx):
    """(kernel, {arch: (registers, spilled bytes, shared bytes)}) of each kernel."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.ptx"
        path.write_bytes(ptx)
        for arch in ARCHS:
            run = [str(WHEELS / "cuda_nvcc/bin/ptxas"), "-v", f"-arch={arch}", "-o", folder + "/x.cubin", str(path)]
            done = subprocess.run(run, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} for {arch}:\n{done.stdout}{done.stderr}")
            for part in (done.stdout + done.stderr).split("Compiling entry function '")[1:]:
                spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
                shared = re.search(r"(\d+) bytes smem", part)
                used = (int(re.search(r"Used (\d+) registers", part)[1]), spilled, int(shared[1]) if shared else 0)
                found.setdefault(part.split("'")[0], {})[arch] = used
    return found


def one(name):
    ptx = compiled(name)
    return name, ptx, assembled(name, ptx)


def table(found):
    head = f"| kernel | {' | '.join(ARCHS)} | shared |\n|---|{'---|' * len(ARCHS)}---|\n"
    rows = []
    for kernel, archs in sorted(found.items()):
        registers = " | ".join(str(archs[a][0]) for a in ARCHS)
        rows.append(f"| `{kernel}` | {registers} | {archs['sm_89'][2]} |\n")
    return ("# Registers of each kernel\n\nWritten by `cargo xtask kernels --write`: registers of a thread on each GPU, and shared memory of a\n"
            "block in bytes. No kernel spills: that is checked.\n\n" + head + "".join(rows))


def main():
    write = "--write" in sys.argv
    names = [n for n in sorted(p.name for p in HERE.glob("*.cu")) if not sys.argv[2:] or n in sys.argv[2:]]
    ptxas = WHEELS / "cuda_nvcc/bin/ptxas"
    ptxas.chmod(0o755)
    stale, found, manifest = [], {}, f"nvrtc 12.2.140 {' '.join(OPTIONS)}\n"
    headers = b"".join(p.read_bytes() for p in sorted(HERE.glob("*.cuh")))

    def keep(path, content):
        if not path.exists() or path.read_bytes() != content:
            stale.append(path.name)
            if write:
                path.write_bytes(content)

    with ProcessPoolExecutor(2) as pool:
        for name, ptx, kernels in pool.map(one, names):
            if b".extern .func" in ptx:
                raise SystemExit(f"{name} calls a function that no driver has")
            found.update(kernels)
            keep(HERE / "ptx" / f"{pathlib.Path(name).stem}.ptx", ptx)
            source = hashlib.sha256(headers + (HERE / name).read_bytes()).hexdigest()
            manifest += f"{pathlib.Path(name).stem} {source} {hashlib.sha256(ptx).hexdigest()}\n"
    spilled = [f"{k} on {a}: {v[1]} bytes" for k, archs in found.items() for a, v in archs.items() if v[1]]
    if not sys.argv[2:]:
        keep(HERE / "ptx" / "MANIFEST", manifest.encode())
        keep(HERE / "registers.md", table(found).encode())
    else:
        print(table(found))
    if spilled:
        raise SystemExit("kernels spill registers: " + "; ".join(spilled))
    if stale and not write:
        raise SystemExit(f"not what the compiler makes of the sources: {', '.join(stale)}; run `cargo xtask kernels --write`")
    print(f"{len(names)} files, {len(found)} kernels, {'renewed ' + str(len(stale)) if write else 'all fresh'}, no spills")


if __name__ == "__main__":
    main()
