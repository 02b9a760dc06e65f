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
# qcow2_matrix.py runs histories of all combinations of options.
import os
import random
import re
import subprocess
import sys

DATA = "data.raw"  # where the options name a data file


class Failed(Exception):
    pass


class History:
    """An image, what it has to read as, and who changes it. Files are in the working folder."""

    def __init__(self, seed, creator, size, base_size, options, fmt="qcow2", base_format="raw"):
        self.rng = random.Random(seed)
        self.name = "seed %d, made by %s, %d bytes, base of %d: %s" % (seed, creator, size, base_size, options)
        self.creator, self.size, self.options, self.fmt = creator, size, options, fmt
        self.base_size, self.base_format = base_size, base_format
        self.img = "img." + fmt
        self.opts = dict(o.split("=") for o in options.split(",") if o)
        default = 65536 if fmt == "qcow2" else 512 if base_size else 4096
        self.cluster = int(self.opts.get("cluster_size", default))
        self.encrypted = "encrypt.format" in self.opts
        self.model = bytearray(size)
        # Over what is stored already, QEMU's compressed writes damage an image of qcow.
        self.touched = bytearray(size)
        self.snaps = {}
        self.address()

    def address(self):
        """How programs are told of the image."""
        # An image of qcow that QEMU made does not say the format of its base.
        self.open = ["-f", self.fmt]
        if self.fmt == "qcow" and self.base_size:
            self.open += ["-o", "backing_format=raw"]
        if "data_file" in self.opts:
            self.open += ["-o", "data_file=" + self.opts["data_file"]]
        self.secret, self.qemu = [], ["-f", self.fmt, self.img]
        if self.encrypted:
            self.open += ["-o", "key_file=key"]
            self.secret = ["--object", "secret,id=s,file=key"]
            self.qemu = [*self.secret, "--image-opts", "driver=%s,file.filename=%s,encrypt.key-secret=s" %
                         (self.fmt, self.img)]

    def fail(self, text):
        raise Failed("%s: %s" % (self.name, text))

    def run(self, *cmd, data=None):
        p = subprocess.run(cmd, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if p.returncode:
            self.fail("%s: status %d: %s" % (" ".join(cmd), p.returncode, p.stdout.decode(errors="replace")))
        return p.stdout

    def change(self, off, data):
        self.model[off:off + len(data)] = data
        self.touched[off:off + len(data)] = b"\1" * len(data)

    # ---- making it ----

    def make_base(self):
        """The arguments that name it."""
        if not self.base_size:
            return []
        base = self.rng.randbytes(self.base_size)
        with open("base.raw", "wb") as f:
            f.write(base)
        self.model[:min(self.size, self.base_size)] = base[:self.size]
        if self.base_format != "raw":
            self.run("qemu-img", "convert", "-f", "raw", "-O", self.base_format, "base.raw", "base.img")
            return ["-b", "base.img", "-F", self.base_format]
        return ["-b", "base.raw", "-F", "raw"]

    def create(self):
        for path in (self.img, DATA):
            if os.path.exists(path):
                os.unlink(path)
        backing, key = self.make_base(), []
        if self.encrypted and self.creator == "cowimg":
            key = ["-o", "key_file=key"]
        elif self.encrypted:
            key = [*self.secret, "-o", "encrypt.key-secret=s"]
        options = ["-o", self.options] if self.options else []
        make = [self.creator, "create", "-f", self.fmt, *options, *key, *backing, self.img, str(self.size)]
        # qemu-img may see no tick of the clock by which it times its key derivation: see qemu_luks in lib/qcow2.sh.
        for _ in range(10):
            made = subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if made.returncode == 0 or b"accurate CPU usage" not in made.stderr:
                break
        if made.returncode:
            self.fail("%s: %s" % (" ".join(make), made.stderr.decode(errors="replace")))

    def create_compressed(self):
        """By a conversion: compressed clusters, plain ones of what does not shrink, and none of zeroes."""
        backing = self.make_base()
        if self.creator == "qemu-img":
            backing = ["-B" if word == "-b" else word for word in backing]
        for off in range(0, self.size, self.cluster):
            what = self.rng.randrange(4)
            length = min(self.cluster, self.size - off)
            if what < 3:
                self.change(off, [bytes(length), bytes([self.rng.randrange(256)]) * length,
                                  self.rng.randbytes(length)][what])
        with open("source.raw", "wb") as f:
            f.write(self.model)
        self.run(self.creator, "convert", "-q", "-c", "-f", "raw", "-O", self.fmt, "-o", self.options, *backing,
                 "source.raw", self.img)

    # ---- changing it ----

    def some_range(self, unit):
        size = len(self.model)
        length = self.rng.choice([512, 3000, 4096, 40000, 65536, 200000, 700000])
        length = max(unit, self.rng.randrange(1, length + 1) // unit * unit)
        off = self.rng.randrange(0, max(1, size - length)) // unit * unit
        return off, min(length, size - off)

    def by_cowimg(self):
        for _ in range(self.rng.randrange(1, 4)):
            what = self.rng.randrange(6)
            off, length = self.some_range(1)
            there = ["-s", str(off), "-l", str(length), self.img]
            if what == 0:
                self.run("cowimg", "zero", "-q", *self.open, *there)
                self.change(off, bytes(length))
            elif what == 1:
                # Whole clusters become zeroes, ragged edges stay: only the tool knows, so take whole ones.
                off = off // self.cluster * self.cluster
                length = min(-(-length // self.cluster) * self.cluster, len(self.model) - off)
                there = ["-s", str(off), "-l", str(length), self.img]
                self.run("cowimg", "discard", "-q", *self.open, *there)
                self.change(off, bytes(length))
            else:
                data = self.rng.randbytes(length)
                self.run("cowimg", "write", "-q", *self.open, "-s", str(off), self.img, data=data)
                self.change(off, data)

    def qemu_command(self):
        """A command of qemu-io, and what it changes: where, and to which bytes."""
        what = self.rng.randrange(8)
        off, length = self.some_range(512)
        byte = self.rng.randrange(256)
        if what < 4:
            off = off // self.cluster * self.cluster
            length = min(self.cluster, len(self.model) - off)
        if what == 0:
            command, byte = "write -z", 0
        elif what == 1 and self.fmt == "qcow2" and not (self.base_size and self.opts.get("compat") == "0.10"):
            command, byte = "discard", 0
        elif what in (2, 3) and "data_file" not in self.opts and not self.encrypted and \
                (self.fmt == "qcow2" or not any(self.touched[off:off + length])):
            command = "write -c -P %d" % byte
        else:
            command = "write -P %d" % byte
        self.touched[off:off + length] = b"\1" * length
        return "%s %d %d" % (command, off, length), off, bytes([byte]) * length

    def by_qemu(self):
        todo = [self.qemu_command() for _ in range(self.rng.randrange(1, 6))]
        commands = [word for command, _, _ in todo for word in ("-c", command)]
        p = subprocess.run(["qemu-io", "-d", "unmap", *commands, *self.qemu],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = re.findall(rb"^(wrote|discard|write failed: Input/output error)\b", p.stdout, re.M)
        # QEMU compresses nothing over a cluster that is there.
        bad = len(said) != len(todo) or any(s.startswith(b"write failed") and not t[0].startswith("write -c")
                                            for s, t in zip(said, todo))
        if bad:
            self.fail("qemu-io %s: %s" % (commands, p.stdout.decode(errors="replace")))
        for s, (_, off, data) in zip(said, todo):
            if not s.startswith(b"write failed"):
                self.change(off, data)

    def snapshot(self, focus):
        tool = self.rng.choice([["qemu-img", "snapshot"], ["cowimg", "snapshot", "-q", "-f", "qcow2"]])
        image = self.qemu if self.encrypted and tool[0] == "qemu-img" else [self.img]
        if self.snaps and self.rng.randrange(3 - focus) == 0:
            name = self.rng.choice(sorted(self.snaps))
            if self.rng.randrange(2):
                self.run(*tool, "-a", name, *image)
                self.model[:] = self.snaps[name]
            else:
                self.run(*tool, "-d", name, *image)
                del self.snaps[name]
        else:
            name = "s%d" % self.rng.randrange(1000)
            if name not in self.snaps:
                self.run(*tool, "-c", name, *image)
                self.snaps[name] = bytes(self.model)

    def resize(self):
        """What comes into view is zeroes, whatever was there before and whatever the base has."""
        old, new = len(self.model), self.rng.randrange(1, 2 * self.size // 512) * 512
        if self.rng.randrange(2) or old % 512:
            self.run("cowimg", "resize", "-q", *self.open, "--shrink", self.img, str(new))
        elif new < old:
            # QEMU leaves the rest of the last cluster as it is, and shows it when the image grows again.
            self.run("qemu-io", "-c", "write -z %d %d" % (new, old - new), *self.qemu)
            self.run("qemu-img", "resize", "-q", "--shrink", *self.qemu, str(new))
        else:
            self.run("qemu-img", "resize", "-q", *self.qemu, str(new))
        self.model[:] = bytes(self.model[:new]) + bytes(max(0, new - old))

    # ---- looking at it ----

    def compare(self, what, got, want):
        if got != bytes(want):
            at = next(i for i in range(min(len(got), len(want)) + 1)
                      if i >= len(got) or i >= len(want) or got[i] != want[i])
            self.fail("%s differs from byte %d on (%d and %d bytes)" % (what, at, len(got), len(want)))

    def judge(self):
        if self.fmt == "qcow2":
            self.run("qemu-img", "check", "-q", *(self.qemu if self.encrypted else [self.img]))
        # What a compressed cluster leaves of itself is a leak in qcow, for both programs.
        self.run("cowimg", "check", "-q", *self.open, *(["-r", "all"] if self.fmt == "qcow" else []), self.img)
        for who, cmd in (("cowimg", ["cowimg", "read", "-q", *self.open, self.img]),
                         ("QEMU", ["qemu-img", "convert", "-O", "raw", *self.qemu])):
            self.run(*cmd, "read.raw")
            with open("read.raw", "rb") as f:
                self.compare("what %s reads" % who, f.read(), self.model)
            os.unlink("read.raw")
        if self.opts.get("data_file_raw") == "on":
            with open(DATA, "rb") as f:
                # QEMU makes it end with a cluster.
                self.compare("the data file", f.read(len(self.model)), self.model)
        for name in sorted(self.snaps):
            kept = self.run("cowimg", "read", "-q", *self.open, "-o", "snapshot=" + name, self.img, "-")
            self.compare("snapshot " + name, kept, self.snaps[name])

    def turn(self, focus):
        which = self.rng.randrange(5)
        if focus and self.rng.randrange(2):
            if self.rng.randrange(4) and "data_file" not in self.opts:
                self.snapshot(focus)
            elif not (self.snaps and self.opts.get("compat") == "0.10"):
                self.resize()
        elif which < 2:
            self.by_cowimg()
        elif which < 4 or self.fmt == "qcow" or self.opts.get("refcount_bits") == "1" or "data_file" in self.opts:
            self.by_qemu()
        else:
            self.snapshot(focus)


def main():
    seed, turns, creator, size, base, options = sys.argv[1:7]
    history = History(int(seed), creator, int(size), int(base), options,
                      "qcow" if sys.argv[7:] == ["qcow"] else "qcow2")
    try:
        history.create()
        history.judge()
        for _ in range(int(turns)):
            history.turn(sys.argv[7:] == ["snapshots"])
            history.judge()
    except Failed as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
