"""How a script reads its files, without a digest and without a check, on files that were harmed.

Such readers can crash the interpreter, hang, or run what a file holds: a child process does it,
``python naive.py JOBS FIRST``, which tells a line a job. Where it ends too early, another one goes on after that job.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

CPU_SECONDS, MEMORY = 1.5, 24 << 30  # of a job; of the process, of which importing takes the most


def outcomes(jobs, scratch):
    """What becomes of each job: "same", "wrong", "refused" or "crashed".

    jobs: (kind, file, harm): harm is the number of a bit to flip, or the number of bytes to keep as a string.
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


READERS = {"hdf5": read_hdf5, "torch": read_torch, "faiss": read_faiss, "json": read_json}


def work(plan, first):
    jobs = json.loads(Path(plan).read_text())
    wholes = {}
    for kind, name, harm in jobs[first:]:
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


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(sys.argv[1], int(sys.argv[2]))
