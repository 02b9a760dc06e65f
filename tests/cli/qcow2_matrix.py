# SPDX-License-Identifier: GPL-2.0-or-later
#
# All options of qcow2 with each other: what is valid makes an image, by cowimg or by
# QEMU, which its maker changes first and then the other one (qcow2_histories.py); what
# is not is refused by both, in a sentence, and leaves nothing.
#
# usage: qcow2_matrix.py SEED pairs|all [N/M]
#        pairs: so many combinations that each two values that go together do so in one
#        all: every combination; N/M: the Nth of M equal parts of them
import concurrent.futures
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile

from qcow2_histories import DATA, Failed, History

AXES = {
    "cluster_size": [512 << i for i in range(13)],
    "refcount_bits": [16, 1, 2, 4, 8, 32, 64],
    "extended_l2": ["off", "on"],
    "compression_type": ["zlib", "zstd"],
    "lazy_refcounts": ["off", "on"],
    "data": ["none", "plain", "raw"],
    "base": ["none", "shorter", "longer", "qcow2"],
    "compat": ["1.1", "0.10"],
    "creator": ["cowimg", "qemu-img"],
}
OPTIONS = ["cluster_size", "refcount_bits", "extended_l2", "compression_type", "lazy_refcounts", "compat"]
SMALLEST = 4096  # clusters that cowimg writes to

# What is not possible, and how cowimg says it.
REFUSED = [
    (lambda c: c["extended_l2"] == "on" and c["cluster_size"] < 16384, "extended_l2 needs clusters of 16K or more"),
    (lambda c: c["compat"] == "0.10" and (c["refcount_bits"] != 16 or c["extended_l2"] == "on" or
                                          c["compression_type"] != "zlib" or c["lazy_refcounts"] == "on" or
                                          c["data"] != "none"), "compat=0.10 has neither"),
    (lambda c: c["data"] == "raw" and c["base"] != "none", "data_file_raw does not go with a base"),
]
TOO_SMALL = "not a power of two between 4K and 2M"


def why_refused(c):
    """Sentences of cowimg for a combination that neither program makes; none: it is valid."""
    return [words for what, words in REFUSED if what(c)]


def options(c):
    data = {"none": [], "plain": ["data_file=" + DATA], "raw": ["data_file=" + DATA, "data_file_raw=on"]}
    return ",".join(["%s=%s" % (name, c[name]) for name in OPTIONS] + data[c["data"]])


def history_of(seed, c):
    rng = random.Random(seed)
    clusters = max(rng.randrange(2, 4), 400000 // c["cluster_size"])
    size = clusters * c["cluster_size"] + rng.randrange(0, c["cluster_size"], 512)
    base = {"none": 0, "shorter": size * 3 // 5, "longer": size * 3 // 2, "qcow2": size // 2}[c["base"]]
    return History(seed, c["creator"], size, base // 512 * 512, options(c),
                   base_format="qcow2" if c["base"] == "qcow2" else "raw")


def run_history(seed, c):
    h = history_of(seed, c)
    if c["data"] == "none" and h.rng.randrange(3) == 0:
        h.create_compressed()
    else:
        h.create()
    first, second = (h.by_cowimg, h.by_qemu) if c["creator"] == "cowimg" else (h.by_qemu, h.by_cowimg)
    first()
    h.judge()
    if c["cluster_size"] < SMALLEST:
        only_read(h)
        return
    # With fewer bits there may be no room for one more reference to where compressed clusters lie together.
    if c["data"] == "none" and c["refcount_bits"] > 8 and h.rng.randrange(3) == 0:
        h.snapshot(False)
    second()
    h.judge()


def only_read(h):
    refused(h, ["cowimg", "zero", "-q", *h.open, "-l", "4096", h.img], ["those below 4 KiB can only be read"])
    h.judge()


def refused(h, cmd, words):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = p.stderr.decode(errors="replace")
    if p.returncode not in range(1, 126) or not said.strip():
        h.fail("%s: status %d, and says '%s'" % (" ".join(cmd), p.returncode, said))
    if words and (said.count("\n") != 1 or not any(re.search(w, said) for w in words)):
        h.fail("%s: says '%s'" % (" ".join(cmd), said))


def run_refused(seed, c):
    h = history_of(seed, c)
    words = why_refused(c) if c["creator"] == "qemu-img" else why_refused(c) + [TOO_SMALL]
    base = ["-b", "base.raw", "-F", "raw"] if c["base"] != "none" else []
    with open("base.raw", "wb") as f:
        f.write(bytes(4096))
    refused(h, [c["creator"], "create", "-f", "qcow2", "-o", options(c), *base, h.img, str(h.size)],
            words if c["creator"] == "cowimg" else [])
    if c["creator"] == "cowimg" and (os.path.exists(h.img) or os.path.exists(DATA)):
        h.fail("refused, and left something")


def run(job):
    """One combination, in a folder of its own. What is wrong, or nothing."""
    seed, c = job
    home = os.getcwd()
    with tempfile.TemporaryDirectory(dir=home) as here:
        os.chdir(here)
        try:
            (run_history if possible(c) else run_refused)(seed, c)
        except Failed as e:
            return str(e)
        finally:
            os.chdir(home)
    return None


def possible(c):
    return not why_refused(c) and (c["creator"] == "qemu-img" or c["cluster_size"] >= SMALLEST)


# ---- which ones ----

def everything():
    for values in itertools.product(*AXES.values()):
        yield dict(zip(AXES, values))


def pairs_of(c):
    return set(itertools.combinations(sorted(c.items()), 2))


def cover(rng, candidates):
    """A few of the candidates, in which every pair of values is that is in any: greedy, at random."""
    left = set().union(*map(pairs_of, candidates))
    while left:
        sample = rng.sample(candidates, min(len(candidates), 60))
        best = max(sample, key=lambda c: len(pairs_of(c) & left))
        if not pairs_of(best) & left:
            pair = min(left, key=str)
            best = rng.choice([c for c in candidates if set(pair) <= set(c.items())])
        left -= pairs_of(best)
        yield best


def violate(rng, valid, invalid):
    """One combination for each pair of values that is impossible, with nothing else that is."""
    never = set().union(*map(pairs_of, invalid)) - set().union(*map(pairs_of, valid))
    single = {}
    for c in invalid:
        pairs = pairs_of(c) & never
        if len(pairs) == 1:
            single.setdefault(pairs.pop(), []).append(c)
    assert set(single) == never
    return [rng.choice(single[pair]) for pair in sorted(never, key=str)]


def main():
    seed, which = int(sys.argv[1]), sys.argv[2]
    rng = random.Random(seed)
    valid = [c for c in everything() if possible(c)]
    invalid = [c for c in everything() if not possible(c)]
    if which == "pairs":
        valid, invalid = list(cover(rng, valid)), violate(rng, valid, invalid)
    jobs = [(seed + i, c) for i, c in enumerate(valid + invalid)]
    part, parts = map(int, (sys.argv[3] if len(sys.argv) > 3 else "1/1").split("/"))
    jobs = jobs[part - 1::parts]
    failed = 0
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for bad in pool.map(run, jobs, chunksize=1):
            if bad:
                failed += 1
                print(bad, file=sys.stderr)
    made = sum(possible(c) for _, c in jobs)
    print("%d combinations are possible, %d are refused; %d failed" % (made, len(jobs) - made, failed))
    sys.exit(failed != 0)


main()
