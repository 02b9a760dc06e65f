# SPDX-License-Identifier: GPL-2.0-or-later
#
# Random histories of qcow2 images, in which cowimg and QEMU's programs take
# turns. After each turn both read the image and find it clean; what they read
# is compared with a model.
#
# usage: qcow2_histories.py SEED TURNS CREATOR SIZE BASE OPTIONS
#        CREATOR: cowimg or qemu-img; BASE: bytes of a raw base, 0: none
import os
import random
import subprocess
import sys

seed, turns, creator = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
size, base_size, options = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
rng = random.Random(seed)
IMG = "img.qcow2"


def run(*cmd, data=None):
    p = subprocess.run(cmd, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if p.returncode:
        sys.exit("seed %d, %s: %s: status %d: %s" % (seed, options, " ".join(cmd), p.returncode,
                                                     p.stdout.decode(errors="replace")))
    return p.stdout


def create():
    if os.path.exists(IMG):
        os.unlink(IMG)
    model = bytearray(size)
    backing = []
    if base_size:
        base = rng.randbytes(base_size)
        with open("base.raw", "wb") as f:
            f.write(base)
        model[:min(size, base_size)] = base[:size]
        backing = ["-b", "base.raw", "-F", "raw"]
    run(creator, "create", "-f", "qcow2", "-o", options, *backing, IMG, str(size))
    return model


def some_range(unit):
    length = rng.choice([512, 3000, 4096, 40000, 65536, 200000, 700000])
    length = max(unit, rng.randrange(1, length + 1) // unit * unit)
    off = rng.randrange(0, max(1, size - length)) // unit * unit
    return off, min(length, size - off)


def by_cowimg(model):
    for _ in range(rng.randrange(1, 4)):
        what = rng.randrange(6)
        off, length = some_range(1)
        if what == 0:
            run("cowimg", "zero", "-q", "-f", "qcow2", "-s", str(off), "-l", str(length), IMG)
            model[off:off + length] = bytes(length)
        elif what == 1:
            # Whole clusters become zeroes, ragged edges stay: only the tool knows, so take whole ones.
            off, length = off // (1 << 21) * (1 << 21), 1 << 21
            length = min(length, size - off)
            run("cowimg", "discard", "-q", "-f", "qcow2", "-s", str(off), "-l", str(length), IMG)
            model[off:off + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            run("cowimg", "write", "-q", "-f", "qcow2", "-s", str(off), IMG, data=data)
            model[off:off + length] = data


def qemu_io(command):
    """True, or False where QEMU compresses nothing over a cluster that is there."""
    p = subprocess.run(["qemu-io", "-d", "unmap", "-f", "qcow2", "-c", command, IMG],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if p.returncode == 0:
        return True
    if command.startswith("write -c") and b"write failed: Input/output error" in p.stdout:
        return False
    sys.exit("seed %d, %s: qemu-io %s: %s" % (seed, options, command, p.stdout.decode()))


def by_qemu(model, cluster):
    for _ in range(rng.randrange(1, 6)):
        what = rng.randrange(8)
        off, length = some_range(512)
        byte = rng.randrange(256)
        if what < 4:
            off, length = off // cluster * cluster, cluster
            length = min(length, size - off)
        if what == 0:
            command, byte = "write -z", 0
        elif what == 1 and not base_size:
            command, byte = "discard", 0
        elif what in (2, 3):
            command = "write -c -P %d" % byte
        else:
            command = "write -P %d" % byte
        if qemu_io("%s %d %d" % (command, off, length)):
            model[off:off + length] = bytes([byte]) * length


def snapshots(model, snaps):
    if snaps and rng.randrange(3) == 0:
        name = rng.choice(sorted(snaps))
        if rng.randrange(2):
            run("qemu-img", "snapshot", "-a", name, IMG)
            model[:] = snaps[name]
        else:
            run("qemu-img", "snapshot", "-d", name, IMG)
            del snaps[name]
    else:
        name = "s%d" % rng.randrange(1000)
        if name not in snaps:
            run("qemu-img", "snapshot", "-c", name, IMG)
            snaps[name] = bytes(model)


def compare(what, got, want):
    if got != bytes(want):
        at = next(i for i in range(min(len(got), len(want)) + 1)
                  if i >= len(got) or i >= len(want) or got[i] != want[i])
        sys.exit("seed %d, %s: %s differs from byte %d on (%d and %d bytes)" %
                 (seed, options, what, at, len(got), len(want)))


def judge(model, snaps):
    run("qemu-img", "check", "-q", IMG)
    run("cowimg", "check", "-q", "-f", "qcow2", IMG)
    compare("what cowimg reads", run("cowimg", "read", "-q", "-f", "qcow2", IMG, "-"), model)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", IMG, "q.raw")
    with open("q.raw", "rb") as f:
        compare("what QEMU reads", f.read(), model)
    for name in sorted(snaps):
        compare("snapshot " + name, run("cowimg", "read", "-q", "-f", "qcow2", "-o",
                                        "snapshot=" + name, IMG, "-"), snaps[name])


def main():
    model = create()
    snaps = {}
    opts = dict(o.split("=") for o in options.split(","))
    cluster = int(opts.get("cluster_size", "65536"))
    judge(model, snaps)
    for _ in range(turns):
        turn = rng.randrange(5)
        if turn < 2:
            by_cowimg(model)
        elif turn < 4 or opts.get("refcount_bits") == "1":
            by_qemu(model, cluster)
        else:
            snapshots(model, snaps)
        judge(model, snaps)


main()
