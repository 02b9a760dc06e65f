# SPDX-License-Identifier: GPL-2.0-or-later
#
# For path-escapes.sh. An image is a stranger's: this puts names of other files into images, and
# looks at the trace of programs that opened them.
#
#	make FOLDER     the jail FOLDER/in, what lies around it, and FOLDER/runs, a script of
#	                all runs: each leaves runs-out/N.{rc,out,err}
#	judge FOLDER    reads what they said and FOLDER/trace.*; the last line counts what was
#	                looked at, each before it is a fault
#
# With FAULT=full each name meets each operation; else one that opens what it names.
import codecs, glob, json, os, re, shlex, shutil, socket, struct, subprocess, sys

TOP = os.path.realpath(sys.argv[2])
JAIL = TOP + "/in"
BUILD = os.environ["BUILD"]
FULL = os.environ.get("FAULT") == "full"
NAME_MAX = 1023		# of a base, and of a data file
CLUSTER = 4096
MARK = b"what nobody may see\n"

# ---- what is put into images ----

ESCAPES = [
	# by the root
	"{secret}", "/{secret}", "/.{secret}", "{top}/./secret.raw", "{dir}/../secret.raw",
	"{dir}/../in/../secret.raw", "{dir}/link", "{dir}/abslink", "{dir}/up/secret.raw", "{dir}", "{dir}/",
	"{top}/inside-it-is-not/secret.raw", "{top}/in-too/secret.raw", "/etc/passwd", "/etc/shadow", "/",
	"//", "/..",
	# by the folder above
	"../secret.raw", "./../secret.raw", "../in/../secret.raw", "../in/base.raw", "../in/{self}", "..",
	"../", "../.", ".", "./", "sub/../../secret.raw", "sub/../../in/base.raw", "sub/..",
	"../../../../../../../../../../etc/passwd", "sub/../../../../../../../../../etc/passwd",
	"../in-too/secret.raw", ".//..//secret.raw", "nowhere/../../secret.raw", "base.raw/../../secret.raw",
	# by links
	"link", "./link", "abslink", "linklink", "sub/link", "up", "up/secret.raw", "up/in/base.raw",
	"away/secret.raw", "link/", "link/.", "abslink/..", "cwd/../secret.raw", "cwd/base.raw", "root/etc/passwd",
	"fd0", "fd9", "devfd9", "null", "zero", "dangling", "loop", "loop1", "loop/secret.raw",
	# by what other programs take for more than a path
	'json:{{"driver":"file","filename":"{secret}"}}', 'json:{{"driver":"raw","file.filename":"{secret}"}}',
	'json:{{"driver":"nbd","host":"localhost"}}', "json:", "json:{{}}", "file:{secret}", "file://{secret}",
	"file:../secret.raw", "file:///etc/passwd", "nbd://localhost/x", "nbd:localhost:10809",
	"nbd:unix:{top}/listens", "nbd+unix:///x?socket={top}/listens", "fd:0", "fd:9", "rbd:pool/image",
	"http://localhost/x", "https://localhost/x", "ftp://localhost/x", "ssh://root@localhost/etc/passwd",
	"iscsi://localhost/x/1", "gluster://localhost/x/y", "host_device:/dev/zero", "host_cdrom:/dev/sr0",
	"vvfat:/etc", "fat:rw:{top}", "blkdebug::{secret}", "raw:{secret}", "qcow2:{secret}", "aio:{secret}",
	"tap:aio:{secret}", "phy:{secret}", "driver=file,filename={secret}", "null-co://",
	# by descriptors and devices
	"/dev/fd/0", "/dev/fd/9", "/dev/stdin", "/proc/self/fd/0", "/proc/self/fd/9", "/proc/thread-self/fd/9",
	"/proc/self/cwd/../secret.raw", "/proc/self/root{secret}", "/proc/1/root{secret}",
	"/proc/self/environ", "/proc/self/mem", "/proc/kcore", "/dev/zero", "/dev/full", "/dev/random",
	"/dev/mem", "/dev/sda", "/dev/loop0", "/dev/mapper/control", "/dev/nbd0", "/sys/power/state",
	# by what a shell makes of it
	"|cat {secret}", "`cat {secret}`", "$(cat {secret})", "x;cat {secret}", "$HOME/x", "~root/x", "~", "-",
	"--help", "-o", "*.raw", "b?se.raw", "{{base,secret}}.raw",
	# by bytes
	"\n", "\n{secret}", "../secret.raw\n", "base.raw\n", "base.raw ", " base.raw", "\033[31mred\033[0m",
	"\x01\x02\x7f", "\r../secret.raw", "\t", "%s%s%n%x", "%2e%2e/secret.raw", "%2e%2e%2fsecret.raw",
	"..%00/secret.raw", "..\\secret.raw", "\\..\\secret.raw", b"\xc0\xae\xc0\xae/secret.raw", b"\xff\xfe",
	"\u2024\u2024/secret.raw", "..\u2215secret.raw", "BASE.RAW",
	# by a NUL inside
	"base.raw\0", "base.raw\0/../../secret.raw", "\0{secret}", "\0", "../secret.raw\0x",
	# by length
	"a" * 255, "a" * 256, "a" * NAME_MAX, "a/" * 500 + "b", "../" * 340 + "x", "./" * 500 + "../secret.raw",
	"/" * 900 + "{secret}", "a" * (NAME_MAX + 1), "../" * 600,
	# what is there, and no image
	"sub", "sub/", "sub/.", "base.raw/", "base.raw/.", "base.raw/..", "pipe", "listens", "device",
	# itself
	"{self}", "./{self}", "{dir}/{self}", "sub/../{self}", "own-{self}", "soft-{self}",
]
if os.path.exists("/usr/bin/id"):
	ESCAPES.append("/usr/bin/id")

# Whatever they look like: files in the folder, and below.
INSIDE = [
	"base.raw", "./base.raw", ".//base.raw", "sub/../base.raw", "{dir}/base.raw", "{dir}//sub/../base.raw",
	"sub/deep.raw", "down", "sub/near", "json:{{}}x", "nbd:x", "file:base.raw", "100%s%n.raw", "a b", "new\nline",
	"-f", "..base", "...", "$(id)",
]

def real(name, own):
	if isinstance(name, bytes):
		return name
	return name.format(secret=TOP + "/secret.raw", dir=JAIL, top=TOP, self=own).encode()

# ---- what is done with them ----

class Op:
	def __init__(self, line, opens=True, formats=("qcow2", "qcow"), data=True, undo="", good=(0,)):
		self.line, self.opens, self.formats, self.data = line, opens, formats, data
		self.undo, self.good = undo, good

# opens: the base. A data file is opened by all of them. {w}: leave to write to the data file.
OPS = [
	Op("cowimg info -f {f} {img}", opens=False),
	Op("cowimg info -f {f} --output=json {img}", opens=False),
	Op("cowimg info -f {f} --backing-chain {img}"),
	Op("cowimg info -f {f} --backing-chain --output=json {img}"),
	Op("cowimg map -f {f} {img}"),
	Op("cowimg map -f {f} --output=json {img}"),
	Op("cowimg check -f {f} {img}", opens=False),
	Op("cowimg check -f {f} -r all {w} {img}", opens=False),
	Op("cowimg read -f {f} {img} {out}"),
	Op("cowimg read -f {f} --backing-dir ../allowed {img} {out}"),
	Op("cowimg read -f {f} --force {img} {out}"),
	Op("cowimg write -f {f} {w} -l 512 --pattern 1 {img}"),
	Op("cowimg zero -f {f} {w} -l 4096 {img}"),
	Op("cowimg discard -f {f} {w} -l 4096 {img}"),
	Op("cowimg bench -f {f} -c 5 {img}"),
	Op("cowimg bench -f {f} {w} -w -c 5 {img}"),
	Op("cowimg convert -f {f} -O raw {img} {out}"),
	Op("cowimg convert -f {f} -O qcow2 --resume {img} {out}"),
	Op("cowimg convert -f raw -O qcow2 -b {img} -F {f} other.raw {out}"),
	Op("cowimg compare -q -f {f} -F raw {img} other.raw", good=(0, 1)),
	Op("cowimg compare -q -f raw -F {f} other.raw {img}", good=(0, 1)),
	Op("cowimg diff -f {f} -F raw {img} other.raw"),
	Op("cowimg diff -f raw -F {f} other.raw {img}"),
	Op("cowimg dd -f {f} -O raw if={img} of={out}"),
	Op("cowimg dd -f raw -O {f} {w} if=other.raw of={img} bs=4096 count=1 conv=notrunc"),
	Op("cowimg measure -f {f} -O qcow2 {img}"),
	Op("cowimg resize -f {f} {w} {img} +1M"),
	Op("cowimg commit -f {f} {img}", data=False),
	Op("cowimg rebase -f {f} {w} -b other.raw -F raw {img}"),
	Op("cowimg rebase -u -f {f} {w} {img}"),
	Op("cowimg rebase -u --force -f {f} {w} -b other.raw -F raw {img}", opens=False),
	Op("cowimg rebase -f dscow -b {img} -F {f} {over}"),
	Op("cowimg create -q -f qcow2 -b {img} -F {f} {out}"),
	Op("cowimg snapshot -f {f} -l {img}", opens=False, formats=("qcow2",)),
	Op("cowimg snapshot -f {f} -c x {img}", opens=False, formats=("qcow2",), data=False),
	Op("cowimg amend -f {f} -o lazy_refcounts=on {img}", opens=False, formats=("qcow2",), data=False),
	Op("cowimg bitmap -f {f} -l {img}", opens=False, formats=("qcow2",)),
	Op("cowimg bitmap -f {f} {w} -a x {img}", opens=False, formats=("qcow2",)),
	Op("cowfuse -p {f} {img} {mnt}", undo="/usr/bin/fusermount3 -u {mnt}"),
	Op("cowfuse -p {f} -o rw{comma_w} {img} {mnt}", undo="/usr/bin/fusermount3 -u {mnt}"),
	Op("cowd --frontend=fuse --no-loop -r -p {f} {dev} {img}", undo="cowctl stop {dev}"),
	Op("cowd --frontend=fuse --no-loop -p {f} {w} {dev} {img}", undo="cowctl stop {dev}"),
	Op("dscow_tool -c {out} {img} -F {f}"),
	Op("cowimg info -f dscow --backing-chain --force {forged}"),
	Op("qcow2raw {out} {img}", formats=("qcow",)),
	Op("qcow-create -F {f} 1 {out} {img}"),
]

PLACES = [("base", "qcow2"), ("data file", "qcow2"), ("base", "qcow")]

def ops_of(place, form):
	return [op for op in OPS if form in op.formats and (op.data or place == "base")]

# All pairs of a name and an operation, or some of them: each name once with one that opens it.
def pairs(place, form):
	ops, names = ops_of(place, form), ESCAPES + ([""] if place == "data file" else [])
	if FULL:
		return [(op, name) for op in ops for name in names]
	opening = [op for op in ops if op.opens or place == "data file"]
	some = [(opening[i % len(opening)], name) for i, name in enumerate(names)]
	rest = [op for op in ops if op not in opening]
	return some + [(op, name) for k, op in enumerate(rest) for name in names[k * 7 % 31::31]]

# ---- images ----

def cowimg(*args):
	subprocess.run(["cowimg", *args], check=True, stdout=subprocess.DEVNULL)

def templates():
	cowimg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4K", "t.qcow2", "1M")
	cowimg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4K,data_file=t.raw", "td.qcow2", "1M")
	cowimg("write", "-q", "-f", "qcow2", "-o", "data_file=t.raw", "-l", "4096", "--pattern", "7", "td.qcow2")
	cowimg("create", "-q", "-f", "qcow", "t.qcow", "1M")
	made = [open(t, "rb").read() for t in ("t.qcow2", "td.qcow2", "t.qcow")]
	for t in ("t.qcow2", "td.qcow2", "t.qcow", "t.raw"):
		os.unlink(t)
	return dict(zip(PLACES, made))

def extension(kind, text):
	return struct.pack(">II", kind, len(text)) + text + bytes(-len(text) % 8)

def qcow2(template, base, data):
	head = bytearray(template[:CLUSTER])
	length = struct.unpack_from(">I", head, 100)[0]
	area = extension(0xe2792aca, b"raw") if base else b""
	if data is not None:
		area += extension(0x44415441, data)
	area += bytes(8)
	struct.pack_into(">QI", head, 8, length + len(area) if base else 0, len(base))
	struct.pack_into(">Q", head, 88, 0)
	area += base
	head[length:] = area + bytes(CLUSTER - length - len(area))
	return bytes(head) + template[CLUSTER:]

def qcow(template, base):
	head = bytearray(template[:CLUSTER])
	struct.pack_into(">QI", head, 8, 200, len(base))
	struct.pack_into(">II16s", head, 176, 0x636f7764, 0, b"raw")
	head[200:200 + len(base)] = base
	return bytes(head) + template[CLUSTER:]

def image(template, place, form, name):
	if form == "qcow":
		return qcow(template, name)
	return qcow2(template, b"other.raw", name) if place == "data file" else qcow2(template, name, None)

# ---- the jail ----

def put(path, data):
	with open(path, "wb") as f:
		f.write(data)

def jail():
	base = bytes(range(256)) * (CLUSTER // 256) * 256
	for d in ("in", "in/sub", "in-too", "allowed", "out", "runs-out", "mnt", "run", "vmap"):
		os.makedirs(TOP + "/" + d, 0o700, exist_ok=True)
	secret = (MARK * 52429)[:1 << 20]
	put(TOP + "/secret.raw", secret)
	put(TOP + "/in-too/secret.raw", secret)
	os.chdir(JAIL)
	for name in ("base.raw", "other.raw", "sub/deep.raw"):
		put(name, base)
	for name in INSIDE:
		name = real(name, "").decode()
		if "/" not in name and name not in ("base.raw", "down"):
			put(name, base)
	links = {
		"link": "../secret.raw", "abslink": TOP + "/secret.raw", "linklink": "link", "up": "..",
		"sub/link": "../../secret.raw", "away": TOP, "cwd": "/proc/self/cwd", "root": "/proc/self/root",
		"fd0": "/proc/self/fd/0", "fd9": "/proc/self/fd/9", "devfd9": "/dev/fd/9", "null": "/dev/null",
		"zero": "/dev/zero", "dangling": "../nothing", "loop": "loop1", "loop1": "loop",
		"down": "sub/deep.raw", "sub/near": "../base.raw",
	}
	for name, to in links.items():
		os.symlink(to, name)
	os.mkfifo("pipe")
	if os.geteuid() == 0:
		try:
			os.mknod("device", 0o600 | 0o020000, os.makedev(1, 5))
		except OSError:
			pass

# ---- what is run ----

class Run:
	def __init__(self, number, place, form, op, name, good):
		self.number, self.place, self.form, self.op, self.good = number, place, form, op, good
		self.file = "r%d.%s" % (number, form)
		self.name = real(name, self.file)

	def opens(self):
		return self.op.opens or self.place == "data file"

	# The option that allows the data file to be written to, where it can be said.
	def leave(self):
		if self.place != "data file" or not self.name or b"\0" in self.name:
			return ""
		return os.fsdecode(self.name.replace(b",", b",,"))

	def line(self, text):
		n, leave = self.number, self.leave()
		img = ("", JAIL + "/", "../in/")[n % 3] + self.file
		comma = ",data_file=" + leave if leave and "," not in leave and "\\" not in leave else ""
		args = [a.format(f=self.form, img=img, out="%s/out/%d" % (TOP, n), mnt="%s/mnt/%d" % (TOP, n),
				 dev="e%d" % n, over="r%d.dscow" % n, forged="r%d.dscow" % n, w="\0", comma_w=comma)
			for a in text.split()]
		at = args.index("\0") if "\0" in args else None
		if at is not None:
			args[at:at + 1] = ["-o", "data_file=" + leave] if leave else []
		return " ".join(shlex.quote(a) for a in args)

	def prepare(self, templates):
		put(self.file, image(templates[self.place, self.form], self.place, self.form, self.name))
		if self.name == b"own-" + self.file.encode():
			os.link(self.file, self.name)
		if self.name == b"soft-" + self.file.encode():
			os.symlink(self.file, self.name)
		if "{mnt}" in self.op.line:
			os.mkdir("%s/mnt/%d" % (TOP, self.number))
		if self.good:
			shutil.copy("base.raw", os.fsdecode(self.name))
		if "{over}" in self.op.line or "{forged}" in self.op.line:
			over = "r%d.dscow" % self.number
			cowimg("create", "-q", "-f", "dscow", "-b", "other.raw", "-F", "raw", over)
		if "{forged}" in self.op.line:
			subprocess.run([BUILD + "/tests/format/dscow-forge", over, "base=" + self.file,
					"base_format=" + self.form], check=True)

def plan():
	runs = []
	for place, form in PLACES:
		for op in ops_of(place, form):
			runs.append(Run(len(runs), place, form, op, "mine-{self}.raw", True))
		for name in INSIDE:
			runs.append(Run(len(runs), place, form, OPS[8], name, None))
		for op, name in pairs(place, form):
			if real(name, "") or place == "data file":
				runs.append(Run(len(runs), place, form, op, name, False))
	return runs

# A verb that nobody thought of here is no verb that was looked at.
def check_verbs():
	said = subprocess.run(["cowimg", "--help"], check=True, capture_output=True, text=True).stdout
	for verb in re.findall("^  ([a-z]+) ", said, re.M):
		if not any(op.line.startswith("cowimg %s " % verb) for op in OPS):
			sys.exit("cowimg %s is not among the operations" % verb)

def make():
	check_verbs()
	jail()
	made = templates()
	runs = plan()
	with open(TOP + "/runs", "w", encoding="utf-8", errors="surrogateescape") as f:
		for r in runs:
			r.prepare(made)
			out = "%s/runs-out/%d" % (TOP, r.number)
			f.write("%s >%s.out 2>%s.err\nrc=$?\necho $rc >%s.rc\n" % (r.line(r.op.line), out, out, out))
			if r.op.undo:
				f.write("[ $rc != 0 ] || %s\n" % r.line(r.op.undo))

# ---- what they did ----

# Programs, libraries, and what these read of the machine.
SYSTEM = re.compile("|".join([
	re.escape(os.path.realpath(BUILD)) + "/.*", "/(usr/)?lib(32|64|x32)?/.*", "/etc/ld\\.so\\..*",
	"(/usr)?/bin/fusermount3", "/dev/(null|tty|fuse)", "/sys/block(/loop[0-9]+/loop/backing_file)?",
	"/proc/(self|[0-9]+)/(exe|mounts|mountinfo|oom_score_adj)", "/etc/(mtab|fuse\\.conf)", "/run", "/",
	"(/usr)?/bin/sh", "/proc/sys/kernel/random/boot_id", "/proc/sys/crypto/fips_enabled", "/etc/gcrypt/.*",
]))
OWN = re.compile(re.escape(TOP) + "(/(allowed|out|runs-out|mnt|run|vmap|runs)(/.*)?)?")
GIVEN = re.compile(re.escape(JAIL) + "(/(r[0-9]+\\.(qcow2?|dscow)|other\\.raw))?")
JAILED = re.compile(re.escape(JAIL) + "(/.*)?|" + re.escape(TOP) + "/allowed(/.*)?", re.S)
AGAIN = re.compile("/proc/self/fd/[0-9]+")
NET = ("socket", "connect", "bind", "listen", "accept4", "getsockopt", "setsockopt", "sendto", "recvfrom",
       "sendmsg", "recvmsg", "shutdown", "getsockname", "getpeername", "socketpair")

CALL = re.compile(r'(\w+)\((.*)\) += (-?\d+|\?)(<.*>)?')
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
FOLDER = re.compile(r'(?:\d+|AT_FDCWD)<((?:[^>\\]|\\.)*)>, ')

def text(escaped):
	return os.fsdecode(codecs.escape_decode(escaped.encode("utf-8", "surrogateescape"))[0])

# The image's own folder, or one above it, by whatever spelling.
def ours(path):
	return OWN.fullmatch(path) or GIVEN.fullmatch(path) or (TOP + "/").startswith(path + "/")

def net_fault(call, args):
	if call == "socket" and not args.startswith("AF_UNIX,"):
		return "asks for a network"
	if call in ("connect", "bind") and not re.search(r'sun_path="(/dev/log|/proc/self/fd/\d+/e\d+\.sock)"', args):
		return "talks to somebody else"
	return None

# One call: None, or what is wrong.
def fault(call, args, result, at):
	if call in NET:
		return net_fault(call, args)
	if "AT_EMPTY_PATH" in args:	# of what is open
		return None
	folder = FOLDER.match(args)
	opened = text(at[1:-1]).removesuffix("(deleted)") if at and int(result) >= 0 else None
	if call == "openat2":
		if "RESOLVE_BENEATH" not in args or "RESOLVE_NO_MAGICLINKS" not in args:
			return "is not kept beneath a folder"
		if not JAILED.fullmatch(text(folder.group(1))):
			return "looks in another folder"
		return "opened " + opened if opened and not JAILED.fullmatch(opened) else None
	path = STRING.search(args)
	path = text(path.group(1)) if path else ""
	if AGAIN.fullmatch(path):
		return "opened " + opened if opened and not (JAILED.fullmatch(opened) or ours(opened)) else None
	if call in ("mount", "umount2") and re.fullmatch("e?[0-9]+", path):
		return None
	path = os.path.normpath(os.path.join(text(folder.group(1)) if folder else JAIL, path)).replace("//", "/")
	for p in [path, opened] if opened else [path]:
		if not SYSTEM.fullmatch(p) and not ours(p):
			return "%s %s" % ("opened" if p is opened else "touches", p)
	return None

def judge_trace(bad):
	calls = found = 0
	for trace in glob.glob(TOP + "/trace.*"):
		who = "?"
		for line in open(trace, encoding="utf-8", errors="surrogateescape"):
			m = CALL.match(line)
			if not m:
				continue
			calls += 1
			call, args, result, at = m.groups()
			who = args[:400] if call == "execve" else who
			found += call == "openat2" and int(result) >= 0
			why = fault(call, args, result, at)
			if why:
				bad.append("%s: %s, in %s" % (why, line.strip()[:400], who))
	return calls, found

# What a run printed: its status, and whether it was as it must be.
def judge_run(r, bad):
	def tell(why):
		bad.append("%s of a %s, %r: %s: %s\n\t%s" % (r.place, r.form, r.name[:80], r.line(r.op.line)[:200],
							      why, err.decode(errors="replace").strip()))
	out, err, rc = (open("%s/runs-out/%d.%s" % (TOP, r.number, kind), "rb").read() for kind in ("out", "err", "rc"))
	rc = int(rc)
	said = [l for l in err.splitlines() if b"warning:" not in l]
	if r.good is not False:
		if rc not in (r.op.good if r.good else (0,)):
			tell("failed with status %d" % rc)
		return
	if rc >= 126 or len(said) != (rc != 0):
		tell("status %d and %d sentences" % (rc, len(said)))
	if rc == 0 and r.opens():
		tell("was opened")
	if re.search(rb"[\0-\x08\x0b-\x1f\x7f]", out + err):
		tell("a control character was printed")
	if rc and os.path.exists("%s/out/%d" % (TOP, r.number)):
		tell("left a file")
	if rc == 0 and "--output=json" in r.op.line:
		json.loads(out.decode())

def judge():
	os.chdir(JAIL)
	bad, runs = [], plan()
	for r in runs:
		judge_run(r, bad)
	calls, found = judge_trace(bad)
	for folder, _, names in os.walk(TOP):
		for name in names:
			path = folder + "/" + name
			if os.path.isfile(path) and not os.path.islink(path) and name != "secret.raw" and \
			   not name.startswith("trace.") and MARK in open(path, "rb").read():
				bad.append("what nobody may see is in " + path)
	good = sum(r.good is not False for r in runs)
	if found < good // 2:
		bad.append("the trace shows %d files that images name, of %d" % (found, good))
	for line in bad:
		print(line)
	print("%d names, %d operations, %d runs, %d with names that are allowed, %d calls, %d files were opened "
	      "beneath their folder" % (len({r.name for r in runs if r.good is False}), len(OPS), len(runs), good,
					calls, found))
	sys.exit(bool(bad))

{"make": make, "judge": judge}[sys.argv[1]]()
