#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Reads a dscow image by what man/dscow.5 says and nothing else, and writes the
virtual disk to a raw file. It shares no code with the plugin: where the two
disagree, the page or the plugin is wrong. Not a tool for daily use: it checks
no locks, repairs nothing, and knows only raw bases and dscow ones.

usage: dscow_reader.py OVERLAY OUT        exit status 1 and a sentence: refused
"""
import ctypes
import os
import struct
import sys

SECTOR = 512
MAGIC = bytes.fromhex("44 53 43 4f 57 0d 0a 1a")
EXTMAP = 1
COMMITTING = 4
SECTOR_GRANULES = 3968
CHUNK = 1 << 20

xxh = ctypes.CDLL("libxxhash.so.0")
xxh.XXH3_64bits.restype = ctypes.c_uint64
xxh.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
xxh.XXH3_64bits_withSeed.restype = ctypes.c_uint64
xxh.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]


class Refused(Exception):
    pass


def xxh3(data, seed=None):
    if seed is None:
        return xxh.XXH3_64bits(data, len(data))
    return xxh.XXH3_64bits_withSeed(data, len(data), seed)


def need(cond, sentence):
    if not cond:
        raise Refused(sentence)


def pread(fd, length, off):
    """Holes, and what lies behind the end of the file, are zeroes."""
    parts = []
    while length:
        part = os.pread(fd, length, off)
        if not part:
            break
        parts.append(part)
        length -= len(part)
        off += len(part)
    return b"".join(parts) + bytes(length)


class Raw:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self.mtime_ns = os.fstat(self.fd).st_mtime_ns

    def read(self, virt, length):
        return pread(self.fd, length, virt)


# offset, struct code, name: the table of the section Header
FIELDS = [
    (8, "I", "version"), (12, "I", "header_bytes"), (16, "Q", "compat"), (24, "Q", "incompat"),
    (48, "Q", "size"), (56, "Q", "below_limit"), (64, "Q", "first_block"), (72, "Q", "ext_off"),
    (80, "Q", "ext_first"), (88, "Q", "ext_count"), (96, "B", "block_bits"),
    (97, "B", "granule_bits"), (98, "H", "state"), (100, "I", "text_off"), (104, "H", "path_len"),
    (106, "H", "format_len"), (112, "Q", "text_hash"), (120, "Q", "base_size"),
    (128, "q", "base_mtime_ns"), (136, "Q", "base_sample"), (144, "Q", "session"),
]


class Dscow:
    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)
        self.mtime_ns = os.fstat(self.fd).st_mtime_ns
        self.sectors = {}
        self.base = None
        self.header()
        self.check_geometry()
        self.text()
        if self.base_path:
            self.open_base()

    def header(self):
        sec = pread(self.fd, SECTOR, 0)
        need(sec[:8] == MAGIC, "no magic number")
        need(struct.unpack_from("<Q", sec, 504)[0] == xxh3(sec[:504]), "the header is damaged")
        self.uuid = sec[32:48]
        for off, code, name in FIELDS:
            setattr(self, name, struct.unpack_from("<" + code, sec, off)[0])
        need(self.version == 1, "another version")
        need(not self.incompat & ~EXTMAP, "an unknown feature")

    def check_geometry(self):
        need(1 <= self.size <= 1 << 56, "size")
        need(self.below_limit <= self.size, "below_limit")
        need(12 <= self.block_bits <= 24, "block_bits")
        need(12 <= self.granule_bits <= self.block_bits, "granule_bits")
        need(4608 <= self.first_block <= 1 << 56, "first_block")
        need(self.first_block % (1 << self.block_bits) == 0, "first_block")
        self.granule = 1 << self.granule_bits
        granules = -(-self.size // self.granule)
        self.needed = -(-granules // SECTOR_GRANULES)
        self.fits = (self.first_block - 4096) // SECTOR
        length = self.first_block + self.size
        if self.incompat & EXTMAP:
            need(self.ext_off % 4096 == 0 and length <= self.ext_off <= 1 << 57, "ext_off")
            need(self.ext_first == self.fits, "ext_first")
            need(self.ext_count <= 1 << 47, "ext_count")
            need(self.ext_first + self.ext_count >= self.needed, "ext_count")
            length = self.ext_off + SECTOR * self.ext_count
        else:
            need(not (self.ext_off or self.ext_first or self.ext_count), "extension without EXTMAP")
            need(self.needed <= self.fits, "the map is too small")
        need(os.lseek(self.fd, 0, os.SEEK_END) >= length, "cut off")

    def text(self):
        self.base_path = self.base_format = ""
        if not self.text_off:
            return
        need(self.text_off in (1024, 2560), "text_off")
        need(1 <= self.path_len <= 1023 and self.format_len <= 15, "length of the text")
        text = pread(self.fd, self.path_len + self.format_len, self.text_off)
        need(xxh3(text) == self.text_hash, "the text is damaged")
        need(b"\0" not in text, "NUL in the text")
        self.base_path = os.fsdecode(text[:self.path_len])
        self.base_format = text[self.path_len:].decode("ascii")

    def open_base(self):
        path = os.path.join(os.path.dirname(self.path), self.base_path)
        kinds = {"raw": Raw, "dscow": Dscow}
        need(self.base_format in kinds, "a base of format '%s'" % self.base_format)
        self.base = kinds[self.base_format](path)
        if self.base_size == 0 or self.state & COMMITTING:
            return
        need(self.base.size == self.base_size, "the base has another size")
        if self.base_mtime_ns and self.base.mtime_ns:
            need(self.base.mtime_ns == self.base_mtime_ns, "the base was modified")
        need(self.sample() == self.base_sample, "the base has other contents")

    def sample(self):
        size = self.base_size
        if size < 65536:
            return xxh3(self.base.read(0, size))
        step = (size - 4096) // 15
        offsets = [i * step for i in range(15)] + [size - 4096]
        return xxh3(b"".join(self.base.read(off, 4096) for off in offsets))

    def bits(self, s):
        if s not in self.sectors:
            off = 4096 + SECTOR * s if s < self.fits else self.ext_off + SECTOR * (s - self.fits)
            sec = pread(self.fd, SECTOR, off)
            if sec != bytes(SECTOR):
                seed = struct.unpack_from("<Q", self.uuid)[0] ^ s
                reserved, hashed = struct.unpack_from("<QQ", sec, 496)
                need(reserved == 0 and hashed == xxh3(sec[:504], seed), "map sector %d is damaged" % s)
            self.sectors[s] = sec[:496]
        return self.sectors[s]

    def present(self, v):
        s, n = divmod(v // self.granule, SECTOR_GRANULES)
        return self.bits(s)[n // 8] >> (n % 8) & 1

    def runs(self, virt, length):
        """Ranges that are present, or absent, as a whole."""
        end = virt + length
        while virt < end:
            here = self.present(virt)
            stop = (virt // self.granule + 1) * self.granule
            while stop < end and self.present(stop) == here:
                stop += self.granule
            stop = min(stop, end)
            yield virt, stop - virt, here
            virt = stop

    def below(self, virt, length):
        shown = 0
        if self.base:
            shown = max(0, min(length, self.below_limit - virt, self.base.size - virt))
        data = self.base.read(virt, shown) if shown else b""
        return data + bytes(length - shown)

    def read(self, virt, length):
        return b"".join(pread(self.fd, n, self.first_block + v) if here else self.below(v, n)
                        for v, n, here in self.runs(virt, length))


def main(overlay, out):
    img = Dscow(overlay)
    with open(out, "wb") as f:
        for virt in range(0, img.size, CHUNK):
            data = img.read(virt, min(CHUNK, img.size - virt))
            if data.count(0) == len(data):
                f.seek(len(data), os.SEEK_CUR)
            else:
                f.write(data)
        f.truncate(img.size)


if len(sys.argv) != 3:
    sys.exit("usage: dscow_reader.py OVERLAY OUT")
try:
    main(sys.argv[1], sys.argv[2])
except (Refused, OSError) as e:
    sys.exit("dscow_reader: %s: %s" % (sys.argv[1], e))
