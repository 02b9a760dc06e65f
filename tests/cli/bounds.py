# SPDX-License-Identifier: GPL-2.0-or-later
#
# For bounds.sh: crafted qcow2 and qcow images, some of each class that the unit tests
# qcow2-badimages and qcow-badimages have, as files; and what the tools take for them.
#
#	bounds.py FOLDER
import os, subprocess, sys

FULL = os.environ.get("FAULT") == "full"
PATIENCE = int(os.environ.get("TEST_PATIENCE", "1"))
SAN = bool(os.environ.get("SAN"))
RSS_MAX_KIB = 64 << 10
CPU_MAX_S = 1 * PATIENCE
M1 = (1 << 64) - 1
HUGE = [0, 1, 8, 512, 4096, 4104, 1 << 30, 1 << 40, (1 << 56) - 4096, 1 << 56, 1 << 63, M1 - 4095, M1]

# ---- images ----

# Class: where its number stands (or what says so), its bytes, and what it becomes.
QCOW2 = {
	"magic": (0, 4, [0]), "version": (4, 4, [0, 4, M1]), "place of the base's name": (8, 8, HUGE),
	"length of the base's name": (16, 4, [1, 1023, 1024, M1]), "cluster bits": (20, 4, [0, 8, 9, 21, 22, 63, M1]),
	"size": (24, 8, [0, 1, 1 << 21, 1 << 40, 1 << 56, 1 << 63, M1]), "encryption": (32, 4, [1, 2, 3, M1]),
	"L1 entries": (36, 4, [0, 2, 4 << 20, (4 << 20) + 1, 1 << 31, M1]), "L1 table": (40, 8, HUGE),
	"refcount table": (48, 8, HUGE), "its clusters": (56, 4, [0, 2, 2048, 2049, 1 << 31, M1]),
	"snapshots": (60, 4, [0, 2, 65535, 65536, M1]), "snapshot table": (64, 8, HUGE),
	"features": (72, 8, [1, 2, 4, 8, 16, 32, M1]), "autoclear features": (88, 8, [0, 1, 2, 1 << 63, M1]),
	"refcount order": (96, 4, [0, 5, 6, 7, 63, M1]), "header length": (100, 4, [0, 104, 111, 4096, M1]),
	"extension": (lambda f: f.at(100, 4) + 4, 4, [0, 1, 4096, 1 << 31, M1]),
	"L1 entry": (lambda f: f.at(40, 8), 8, HUGE), "L2 entry": (lambda f: f.at(f.at(40, 8), 8) & ~(1 << 63), 8, HUGE),
	"compressed cluster": (lambda f: f.at(f.at(40, 8), 8) & ~(1 << 63), 8,
			       [1 << 62 | v for v in (0, 4096, 1 << 40, (1 << 62) - 1)]),
	"refcount table entry": (lambda f: f.at(48, 8), 8, HUGE), "refcounts": (lambda f: f.at(f.at(48, 8), 8), 8, HUGE),
	"snapshot": (lambda f: f.at(64, 8), 8, HUGE), "snapshot's L1 entries": (lambda f: f.at(64, 8) + 8, 4, [0, 4 << 20, M1]),
	"snapshot's extra data": (lambda f: f.at(64, 8) + 36, 4, [0, 1024, M1]),
}
QCOW = {
	"magic": (0, 4, [0]), "version": (4, 4, [0, 2, M1]), "place of the base's name": (8, 8, HUGE),
	"length of the base's name": (16, 4, [1, 1023, 1024, M1]),
	"size": (24, 8, [0, 1, 1 << 21, 1 << 40, 8 << 40, 1 << 56, 1 << 63, M1 - 4095, M1]),
	"cluster bits": (32, 1, [0, 8, 9, 16, 17, 63, 255]), "L2 bits": (33, 1, [0, 5, 6, 13, 14, 63, 255]),
	"encryption": (36, 4, [1, 2, M1]), "L1 table": (40, 8, HUGE),
	"L1 entry": (lambda f: f.at(40, 8), 8, HUGE), "L2 entry": (lambda f: f.at(f.at(40, 8), 8), 8, HUGE),
	"compressed cluster": (lambda f: f.at(f.at(40, 8), 8), 8, [1 << 63 | v for v in (0, 48, 1 << 40, (1 << 63) - 1)]),
}

class File:
	def __init__(self, data):
		self.data = bytearray(data)

	def at(self, off, n):
		return int.from_bytes(self.data[off:off + n], "big")

	def put(self, off, n, value):
		self.data[off:off + n] = (value & ((1 << 8 * n) - 1)).to_bytes(n, "big")

def cowimg(*args):
	subprocess.run(["cowimg", *args], check=True)

def template(form):
	cowimg("create", "-q", "-f", form, "-o", "cluster_size=4K", "t", "1M")
	cowimg("write", "-q", "-f", form, "-l", "8192", "--pattern", "5", "t")
	if form == "qcow2":
		cowimg("snapshot", "-q", "-f", form, "-c", "one", "t")
		cowimg("bitmap", "-q", "-f", form, "-a", "two", "t")
		cowimg("write", "-q", "-f", form, "-l", "512", "--pattern", "6", "t")
	data = open("t", "rb").read()
	os.unlink("t")
	return data

def crafted():
	for form, classes in (("qcow2", QCOW2), ("qcow", QCOW)):
		whole = template(form)
		for name, (where, n, values) in classes.items():
			for value in values:
				f = File(whole)
				f.put(where(f) if callable(where) else where, n, value)
				yield form, "%s = %#x" % (name, value), f.data
		for cut in (0, 1, 48, 72, 103, 4095, 4096, 12288):
			yield form, "cut at %d" % cut, whole[:cut]

# ---- tools ----

ALWAYS = ["info -f {f} {i}"]
SOME = [
	"read -f {f} -l 512 {i}",
	"check -f {f} {i}", "map -f {f} -l 1M {i}", "measure -f {f} -O raw {i}", "check -f {f} -r all {i}",
	"write -f {f} -l 512 --pattern 1 {i}", "resize -f {f} {i} +1M", "commit -f {f} {i}", "snapshot -f {f} -l {i}",
	"snapshot -f {f} -c x {i}", "bitmap -f {f} -l {i}", "zero -f {f} -l 4096 {i}", "info -f {f} --output=json {i}",
]

# Status, last words, resident KiB at most, seconds of processor time.
def run(line):
	with open("out", "wb") as out, open("err", "w+b") as err:
		p = subprocess.Popen(["cowimg"] + line.split(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
				     close_fds=False)
		_, status, used = os.wait4(p.pid, 0)
		p.returncode = os.waitstatus_to_exitcode(status)
		err.seek(0)
		return p.returncode, err.read().decode(errors="replace"), used.ru_maxrss, used.ru_utime + used.ru_stime

def main():
	os.chdir(sys.argv[1])
	bad = images = runs = refused = most_kib = 0
	counts, most_s, turn = {}, 0.0, 0
	for form, name, data in crafted():
		counts[form] = counts.get(form, 0) + 1
		some = SOME if FULL else [SOME[turn % len(SOME)]]
		turn += 1
		for line in ALWAYS + some:
			with open("i", "wb") as f:
				f.write(data)
			status, said, kib, seconds = run(line.format(f=form, i="i"))
			runs += 1
			refused += status != 0
			said = [l for l in said.splitlines() if "warning:" not in l]
			why = None
			if status < 0 or status >= 126:
				why = "died with %d" % status
			elif status in (0, 1) and len(said) != status:
				why = "status %d and %d sentences" % (status, len(said))
			elif not SAN and kib > RSS_MAX_KIB:
				why = "took %d KiB" % kib
			elif not SAN and status and seconds > CPU_MAX_S:
				why = "took %.2f s of the processor to refuse it" % seconds
			most_kib = max(most_kib, kib)
			most_s = max(most_s, seconds if status else 0)
			if why:
				bad += 1
				print("%s, %s: cowimg %s: %s: %s" % (form, name, line, why, "\n\t".join(said)), file=sys.stderr)
	print("%s, %d runs, %d refused: at most %d KiB, and %.2f s of the processor for a refusal" %
	      (", ".join("%d images of %s" % (n, f) for f, n in counts.items()), runs, refused, most_kib, most_s))
	sys.exit(bad != 0)

main()
