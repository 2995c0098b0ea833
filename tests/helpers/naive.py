"""How a script reads its files, without a digest and without a check, on files that were harmed.

Such readers can crash the interpreter, hang, or run what a file holds: a child process does it,
``python naive.py JOBS FIRST``, which tells a line a job. Where it ends too early, another one goes on after that job.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

CPU_SECONDS, MEMORY = 1.5, 24 << 30  # of a job; of the process, of which importing takes the most


def outcomes(jobs, scratch):
    """What becomes of each job: "same", "wrong", "refused" or "crashed".

    jobs: (kind, file, harm): harm is the number of a bit to flip, or the number of bytes to keep as a string.
    Kinds that write ("append", "save ...") take the size that a file may have at most; "same": what they said is on
    disk, is.
    """
    plan = scratch / "jobs.json"
    plan.write_text(json.dumps([[kind, str(file), harm] for kind, file, harm in jobs]))
    told = []
    while len(told) < len(jobs):
        child = [sys.executable, __file__, str(plan), str(len(told))]
        done = subprocess.run(child, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        told += done.stdout.split()
        if len(told) < len(jobs):
            assert done.returncode < 0, f"the child ended by itself with {done.returncode}"
            told.append("crashed")
    return told


def harmed(content, harm):
    """The content with a bit flipped, or its beginning."""
    if isinstance(harm, str):
        return content[: int(harm)]
    changed = bytearray(content)
    changed[harm // 8] ^= 1 << harm % 8
    return bytes(changed)


# ---------------------------------------------------------------------------------------------- in the child


def read_hdf5(path):
    import h5py

    with h5py.File(path, "r") as file:
        return {name: (file[name][...].tobytes(), dict(file[name].attrs)) for name in file} | dict(file.attrs)


def read_torch(path):
    import torch

    return {name: tensor.numpy().tobytes() for name, tensor in torch.load(path, weights_only=True).items()}


def read_faiss(path):
    import faiss

    index = faiss.read_index_binary(str(path))
    rows = faiss.vector_to_array(index.xb).reshape(index.ntotal, -1)
    return index.d, index.ntotal, rows.tobytes(), index.search(rows[:3], 5)[1].tobytes()


def read_json(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path):
    """Blocks of 16 rows; returns how many it takes to be safe."""
    import h5py

    done = 0
    try:
        with h5py.File(path, "w") as file:
            x = file.create_dataset("x", (0, 64), "f4", maxshape=(None, 64))
            while done < 30:
                x.resize(16 * done + 16, 0)
                x[16 * done :] = done
                file.flush()
                done += 1
    finally:
        return done  # noqa: B012


def appended(path):
    import h5py

    with h5py.File(path, "r") as file:
        return int(sum((file["x"][row : row + 16] == row // 16).all() for row in range(0, len(file["x"]), 16)))


def save(kind, path, value):
    """Write over what was there; returns what is there now, if it can be believed."""
    if kind == "save torch":
        import torch

        torch.save({"x": torch.full((50, 50), value)}, path)
    elif kind == "save faiss":
        import faiss
        import numpy as np

        index = faiss.IndexBinaryFlat(64)
        index.add(np.full((1500, 8), value, np.uint8))
        faiss.write_index_binary(index, str(path))
    else:
        path.write_text(json.dumps([value] * 3000))


def saved(kind, path):
    if kind == "save torch":
        return next(iter(read_torch(path).values()))[0]
    return read_faiss(path)[2][0] if kind == "save faiss" else read_json(path)[0][0]


def forked(work):
    """The number that work() returns in a process of its own; None if it raises or dies."""
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if 0 <= code < 100 else None
    code = 100
    try:
        code = work()
    finally:
        os._exit(code)


def on_full_disk(kind, path, size):
    def limited(write):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return write() or 0

    if kind == "append":
        done = forked(lambda: limited(lambda: append(path)))
        return "same" if done is not None and (forked(lambda: appended(path)) or 0) >= done else "wrong"
    save(kind, path, 1)
    finished = forked(lambda: limited(lambda: save(kind, path, 2))) is not None
    found = forked(lambda: saved(kind, path))
    return "same" if found == (2 if finished else 1) else "wrong"


def meanwhile(kind, path):
    """Two processes at one file, by turns: they tell each other through pipes."""
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE" if kind == "append twice" else "TRUE"
    import h5py

    with h5py.File(path, "w") as file:
        file["x"] = [1.0] * 1000
    (wait, go), (heard, tell) = os.pipe(), os.pipe()
    if not os.fork():
        try:
            with h5py.File(path, "r" if kind == "write while read" else "a") as file:
                if kind == "append twice":
                    file["mine"] = [1.0] * 1000
                elif kind == "read while written":
                    file["x"][:500] = 2.0
                    file.flush()
                os.write(tell, b".")
                os.read(wait, 1)
        finally:
            os._exit(0)
    os.read(heard, 1)
    wanted = {"write while read": "w", "append twice": "a", "read while written": "r"}[kind]
    seen = None
    try:
        with h5py.File(path, wanted, locking=False if kind == "read while written" else None) as file:
            seen = set(file["x"][...].tolist()) if wanted == "r" else file.update({"theirs": [1.0]})
    except OSError:
        pass
    os.write(go, b".")
    os.wait()
    if kind == "read while written":
        return "same" if seen in (None, {1.0}, {2.0}) else "wrong"
    with h5py.File(path, "r") as file:
        return "same" if kind == "write while read" or {"x", "mine"} <= set(file) else "wrong"


READERS = {"hdf5": read_hdf5, "torch": read_torch, "faiss": read_faiss, "json": read_json}


def work(plan, first):
    jobs = json.loads(Path(plan).read_text())
    wholes = {}
    for kind, name, harm in jobs[first:]:
        if kind not in READERS:
            print(attempt(kind, Path(name), harm), flush=True)
            continue
        file, read = Path(name), READERS[kind]
        if name not in wholes:
            wholes[name] = file.read_bytes(), read(file)
        content, right = wholes[name]
        copy = file.with_name(f"harmed-{file.name}")
        copy.write_bytes(harmed(content, harm))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # a reader that hangs is killed
        try:
            outcome = "same" if read(copy) == right else "wrong"
        except Exception:
            outcome = "refused"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(outcome, flush=True)


def open_any(kind, path):
    """Read a hostile file; "wrong" if code in it was run, or it brought data from elsewhere, or took all memory."""
    import numpy as np

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        if kind == "open torch":
            import torch

            torch.load(path, weights_only=False)
        else:
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, hard))
            if kind == "open hdf5":
                import h5py

                with h5py.File(path, "r") as file:
                    np.asarray(file["image"][...], np.float32)
            else:
                loaded = np.load(path, allow_pickle=True)
                np.asarray(loaded["image"] if path.suffix == ".npz" else loaded, np.float32)
        outcome = "wrong" if path.stem not in ("soft link", "unknown filter") else "same"
    except MemoryError:
        outcome = "wrong"
    except Exception:
        outcome = "refused"
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return "wrong" if path.with_name("trap").exists() else outcome


def attempt(kind, path, size):
    """Kinds that are more than a reader and a harmed file."""
    if kind.startswith("open"):
        return open_any(kind, path)
    if kind.startswith(("append t", "write", "read")):
        return {0: "same"}.get(forked(lambda: meanwhile(kind, path) != "same"), "wrong")
    return on_full_disk(kind, path, size)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(sys.argv[1], int(sys.argv[2]))
