# SPDX-License-Identifier: GPL-2.0-or-later
#
# Random histories of qcow2 images, and qcow images, in which cowimg and QEMU's
# programs take turns. After each turn both read the image and find it clean (QEMU
# has no check for qcow); what they read is compared with a model.
#
# usage: qcow2_histories.py SEED TURNS CREATOR SIZE BASE OPTIONS [snapshots|qcow]
#        CREATOR: cowimg or qemu-img; BASE: bytes of a raw base, 0: none
#        snapshots: every other turn is about snapshots, or changes the size
#        qcow: images of that format, instead of qcow2
# Options with encrypt.format= make encrypted images, and the key is in the file "key".
import os
import random
import subprocess
import sys

seed, turns, creator = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
size, base_size, options = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
focus = sys.argv[7:] == ["snapshots"]
fmt = "qcow" if sys.argv[7:] == ["qcow"] else "qcow2"
rng = random.Random(seed)
IMG = "img." + fmt
DATA = "data.raw"  # where the options name a data file
opts = dict(o.split("=") for o in options.split(",") if o)
# An image of qcow that QEMU made does not say the format of its base.
OPEN = ["-f", fmt] + (["-o", "backing_format=raw"] if fmt == "qcow" and base_size else [])
if "data_file" in opts:
    OPEN += ["-o", "data_file=" + opts["data_file"]]
encrypted = "encrypt.format" in opts
if encrypted:
    OPEN += ["-o", "key_file=key"]
# How QEMU's programs are told of the image.
SECRET = ["--object", "secret,id=s,file=key"] if encrypted else []
QEMU = [*SECRET, "--image-opts", "driver=%s,file.filename=%s,encrypt.key-secret=s" % (fmt, IMG)] \
    if encrypted else ["-f", fmt, IMG]


# Over what is stored already, QEMU's compressed writes damage an image of qcow.
touched = bytearray(size)


def change(model, off, data):
    model[off:off + len(data)] = data
    touched[off:off + len(data)] = b"\1" * len(data)


def run(*cmd, data=None):
    p = subprocess.run(cmd, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if p.returncode:
        sys.exit("seed %d, %s: %s: status %d: %s" % (seed, options, " ".join(cmd), p.returncode,
                                                     p.stdout.decode(errors="replace")))
    return p.stdout


def create():
    for path in (IMG, DATA):
        if os.path.exists(path):
            os.unlink(path)
    model = bytearray(size)
    backing = []
    if base_size:
        base = rng.randbytes(base_size)
        with open("base.raw", "wb") as f:
            f.write(base)
        model[:min(size, base_size)] = base[:size]
        backing = ["-b", "base.raw", "-F", "raw"]
    key = []
    if encrypted and creator == "cowimg":
        key = ["-o", "key_file=key"]
    elif encrypted:
        key = [*SECRET, "-o", "encrypt.key-secret=s"]
    make = [creator, "create", "-f", fmt, *(["-o", options] if options else []), *key, *backing, IMG, str(size)]
    # qemu-img may see no tick of the clock by which it times its key derivation: see qemu_luks in lib/qcow2.sh.
    for _ in range(10):
        made = subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if made.returncode == 0 or b"accurate CPU usage" not in made.stderr:
            break
    if made.returncode:
        sys.exit("seed %d: %s: %s" % (seed, " ".join(make), made.stderr.decode(errors="replace")))
    return model


def some_range(unit, size):
    length = rng.choice([512, 3000, 4096, 40000, 65536, 200000, 700000])
    length = max(unit, rng.randrange(1, length + 1) // unit * unit)
    off = rng.randrange(0, max(1, size - length)) // unit * unit
    return off, min(length, size - off)


def by_cowimg(model):
    for _ in range(rng.randrange(1, 4)):
        what = rng.randrange(6)
        size = len(model)
        off, length = some_range(1, size)
        if what == 0:
            run("cowimg", "zero", "-q", *OPEN, "-s", str(off), "-l", str(length), IMG)
            change(model, off, bytes(length))
        elif what == 1:
            # Whole clusters become zeroes, ragged edges stay: only the tool knows, so take whole ones.
            off, length = off // (1 << 21) * (1 << 21), 1 << 21
            length = min(length, size - off)
            run("cowimg", "discard", "-q", *OPEN, "-s", str(off), "-l", str(length), IMG)
            change(model, off, bytes(length))
        else:
            data = rng.randbytes(length)
            run("cowimg", "write", "-q", *OPEN, "-s", str(off), IMG, data=data)
            change(model, off, data)


def qemu_io(command):
    """True, or False where QEMU compresses nothing over a cluster that is there."""
    p = subprocess.run(["qemu-io", "-d", "unmap", "-c", command, *QEMU],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if p.returncode == 0:
        return True
    if command.startswith("write -c") and b"write failed: Input/output error" in p.stdout:
        return False
    sys.exit("seed %d, %s: qemu-io %s: %s" % (seed, options, command, p.stdout.decode()))


def by_qemu(model, cluster):
    for _ in range(rng.randrange(1, 6)):
        what = rng.randrange(8)
        size = len(model)
        off, length = some_range(512, size)
        byte = rng.randrange(256)
        if what < 4:
            off, length = off // cluster * cluster, cluster
            length = min(length, size - off)
        if what == 0:
            command, byte = "write -z", 0
        elif what == 1 and not base_size and fmt == "qcow2":
            command, byte = "discard", 0
        elif what in (2, 3) and "data_file" not in opts and not encrypted and (fmt == "qcow2" or not any(touched[off:off + length])):
            command = "write -c -P %d" % byte
        else:
            command = "write -P %d" % byte
        if qemu_io("%s %d %d" % (command, off, length)):
            change(model, off, bytes([byte]) * length)


def snapshots(model, snaps):
    tool = rng.choice([["qemu-img", "snapshot"], ["cowimg", "snapshot", "-q", "-f", "qcow2"]])
    image = QEMU if encrypted and tool[0] == "qemu-img" else [IMG]
    if snaps and rng.randrange(3 - focus) == 0:
        name = rng.choice(sorted(snaps))
        if rng.randrange(2):
            run(*tool, "-a", name, *image)
            model[:] = snaps[name]
        else:
            run(*tool, "-d", name, *image)
            del snaps[name]
    else:
        name = "s%d" % rng.randrange(1000)
        if name not in snaps:
            run(*tool, "-c", name, *image)
            snaps[name] = bytes(model)


def resize(model):
    """What comes into view is zeroes, whatever was there before and whatever the base has."""
    new = rng.randrange(1, 2 * size // 512) * 512
    if rng.randrange(2) or len(model) % 512:
        run("cowimg", "resize", "-q", *OPEN, "--shrink", IMG, str(new))
    elif new < len(model):
        # QEMU leaves the rest of the last cluster as it is, and shows it when the image grows again.
        run("qemu-io", "-c", "write -z %d %d" % (new, len(model) - new), *QEMU)
        run("qemu-img", "resize", "-q", "--shrink", *QEMU, str(new))
    else:
        run("qemu-img", "resize", "-q", *QEMU, str(new))
    model[:] = bytes(model[:new]) + bytes(max(0, new - len(model)))


def compare(what, got, want):
    if got != bytes(want):
        at = next(i for i in range(min(len(got), len(want)) + 1)
                  if i >= len(got) or i >= len(want) or got[i] != want[i])
        sys.exit("seed %d, %s: %s differs from byte %d on (%d and %d bytes)" %
                 (seed, options, what, at, len(got), len(want)))


def judge(model, snaps):
    if fmt == "qcow2":
        run("qemu-img", "check", "-q", *(QEMU if encrypted else [IMG]))
    # What a compressed cluster leaves of itself is a leak in qcow, for both programs.
    run("cowimg", "check", "-q", *OPEN, *(["-r", "all"] if fmt == "qcow" else []), IMG)
    compare("what cowimg reads", run("cowimg", "read", "-q", *OPEN, IMG, "-"), model)
    run("qemu-img", "convert", "-O", "raw", *QEMU, "q.raw")
    with open("q.raw", "rb") as f:
        compare("what QEMU reads", f.read(), model)
    if opts.get("data_file_raw") == "on":
        with open(DATA, "rb") as f:
            compare("the data file", f.read(len(model)), model)  # QEMU makes it end with a cluster
    for name in sorted(snaps):
        compare("snapshot " + name, run("cowimg", "read", "-q", *OPEN, "-o", "snapshot=" + name, IMG, "-"),
                snaps[name])


def main():
    model = create()
    snaps = {}
    default = 65536 if fmt == "qcow2" else 512 if base_size else 4096
    cluster = int(opts.get("cluster_size", default))
    judge(model, snaps)
    for _ in range(turns):
        turn = rng.randrange(5)
        if focus and rng.randrange(2):
            if rng.randrange(4) and "data_file" not in opts:
                snapshots(model, snaps)
            elif not (snaps and opts.get("compat") == "0.10"):
                resize(model)
        elif turn < 2:
            by_cowimg(model)
        elif turn < 4 or fmt == "qcow" or opts.get("refcount_bits") == "1" or "data_file" in opts:
            by_qemu(model, cluster)
        else:
            snapshots(model, snaps)
        judge(model, snaps)


main()
