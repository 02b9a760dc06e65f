# SPDX-License-Identifier: GPL-2.0-or-later
"""What lab-dm and lab-xen share: the halves of them that run in the lab, values, the table.

A half prints, a line each, and nothing else:
	R ROUND ROW TARGET JSON    what the client said of a row on a target, maybe more
	S ROUND WHO VERB NUMBER    nanoseconds that a script took
	M NAME NUMBER              a fact; "M done 1" is the last line
	N TARGET WHY               a target is left out
"""
import json
import os
import shutil
import statistics
import subprocess
import sys

MIB = 1 << 20
PAGE = 4096

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get('BUILD') or os.path.join(TOP, 'build'))


class Unable(Exception):
    """The comparison cannot be made here; the text says why."""


# A value of what the client said.

def p50(r):
    return r['p50_ns'] / 1e3


def mean(r):
    return r['elapsed_ns'] / r['ops'] / 1e3


def iops(r):
    return r['ops'] * 1e9 / r['elapsed_ns'] / 1e3


def mb(r):
    return r['ops'] * MIB * 1e3 / r['elapsed_ns']


def call(*cmd):
    """Runs a program of the lab; returns its status and what it printed."""
    p = subprocess.run(cmd, stdout=subprocess.PIPE, text=True, cwd=TOP, env=dict(os.environ, BUILD=BUILD))
    return p.returncode, p.stdout


def module(kernel):
    """The device-mapper target for this kernel; None if it cannot be built."""
    status, path = call(TOP + '/tests/lab/kmod', kernel)
    return path.strip() if status == 0 else None


def need(what, *files):
    for f in files:
        if not os.path.exists(os.path.join(BUILD, f)):
            raise Unable('%s is missing: make %s builds it' % (os.path.join(BUILD, f), what))


def options(parser):
    """Those that both have."""
    parser.add_argument('--ms', type=int, default=400, help='duration of a timed row on one device')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--share', action='store_true',
                        help='leave the machine to others too: no real-time priority')


def first(share):
    """Emulated processors starve beside anything else; with real-time priority they do not."""
    if not share and shutil.which('chrt') and not subprocess.run(
            ('chrt', '-r', '5', 'true'), stderr=subprocess.DEVNULL).returncode:
        return ['chrt', '-r', '5']
    return []


def boot(machine, env, half):
    """Runs @half in the lab; returns {row: {target: [one dict a round]}}, facts, what is left out."""
    cmd = list(machine)
    for e in env:
        cmd += ['-e', e]
    status, said = call(*cmd, '--', 'sh', os.path.join(HERE, half))
    values, facts, missing = {}, {}, {}
    for line in said.splitlines():
        kind, _, rest = line.partition(' ')
        if kind == 'R':
            _, row, target, result = rest.split(' ', 3)
            values.setdefault(row, {}).setdefault(target, []).append(json.loads(result))
        elif kind == 'S':
            _, who, verb, ns = rest.split()
            values.setdefault(verb, {}).setdefault(who, []).append(int(ns))
        elif kind == 'M':
            name, value = rest.split()
            facts[name] = int(value)
        elif kind == 'N':
            target, _, why = rest.partition(' ')
            missing[target] = why
        else:
            print(line, file=sys.stderr)
    if status or 'done' not in facts:
        raise Unable('the lab ended with %d' % status)
    return values, facts, missing


def present(targets, missing):
    """The targets that were measured; says which were not."""
    for t, why in missing.items():
        print('%s is left out: %s' % (t, why))
    return [t for t in targets if t not in missing]


def within(r, sign, limit):
    return limit is None or (r <= limit if sign == '<=' else r >= limit)


def ratio(v, who, whom, sign, limit, floor=None):
    r = {t: statistics.median(a / b for a, b in zip(v[t], v[whom])) for t in (who, floor) if t in v}
    good = within(r[who], sign, limit)
    said = 'OK' if good else 'FLOOR' if floor in r and not within(r[floor], sign, limit) else 'MISS'
    return {'who': who, 'whom': whom, 'ratio': r[who], 'sign': sign, 'limit': limit, 'said': said}


def verdict(r):
    if r['limit'] is None:
        return '', ''
    return '%s %.2f' % (r['sign'], r['limit']), r['said']


def table(values, rows, targets):
    """Prints @rows: (title, row, value, unit, asked), asked being (who, against whom, sign, limit);
    without a limit it is there to be read. A fifth is the target that nobody of @who's kind can
    surpass: where that one misses too, FLOOR is said instead of MISS."""
    fmt = '%-34s' + ' %10s' * len(targets) + '  %-6s %-26s %-14s %s'
    print(fmt % ('', *targets, '', 'ratio', 'asked', ''))
    result = []
    for title, row, f, unit, asked in rows:
        v = {t: [f(r) for r in rs] for t, rs in values.get(row, {}).items()}
        if not v:
            continue
        cells = ['%.2f' % statistics.median(v[t]) if t in v else '-' for t in targets]
        ratios = [ratio(v, *a) for a in asked if a[0] in v and a[1] in v]
        lines = [('%.2f %s/%s' % (r['ratio'], r['who'], r['whom']), *verdict(r)) for r in ratios]
        for i, line in enumerate(lines or [('', '', '')]):
            head = (title, *cells, unit) if i == 0 else ('',) * (len(targets) + 2)
            print((fmt % (*head, *line)).rstrip())
        result += [dict(r, row=title) for r in ratios if r['limit'] is not None]
    if result:
        said = [r['said'] for r in result]
        print('%d asked, %d missed, %d missed by the floor too' %
              (len(said), said.count('MISS'), said.count('FLOOR')))
    print()
    return result


def run(name, measure, opt):
    """@measure(opt) returns what is left in opt.json; or says why it cannot."""
    try:
        result = measure(opt)
        with open(opt.json, 'w') as f:
            json.dump(result, f)
    except Unable as e:
        sys.exit('%s: %s' % (name, e))
