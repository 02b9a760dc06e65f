# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 10800
#
# A hostile guest on a direct ring (tests/xenlab/hostile.c): malformed requests, indexes and
# setup, states without sense, requests that change while they are looked at, events without
# end, a guest that dies with a full ring. Each is answered as the protocol says and harms
# nobody else: the same cowd goes on, its memory is bounded, no page of the guest stays
# mapped, another guest's load runs on without an error, and the image is sound.
#
# environment: FAULT=full: longer (10000 states, one written 20000 times, a million requests
#              raced, storm 60 s), and cowd is the one with sanitizers in $BUILD-asan;
#              STATES, REWRITES, RACE: other counts
. tests/lib/xenlab.sh
guest_programs="$guest_programs $BUILD/tests/xenlab/hostile"
guest_modules='xen-evtchn xen-gntalloc'
require_cmd jq cmp
[ -x "$BUILD/tests/xenlab/hostile" ] || skip "built without Xen's libraries"
states=1000 rewrites=1000 race=20000 storm=3 limit=800 grows=2048
if [ "${FAULT:-quick}" = full ]; then
	states=10000 rewrites=20000 race=1000000 storm=60 limit=10400 grows=16384
	[ -x "$BUILD-asan/bin/cowd" ] || skip "no cowd with sanitizers in $BUILD-asan"
fi
states=${STATES:-$states} rewrites=${REWRITES:-$rewrites} race=${RACE:-$race}
xen_up -t $limit -e FAULT -e STATES -e REWRITES -e RACE

PATH=$BUILD/tests/lab:$PATH
cd "$TMP"
# What they find is in files: nobody reads a daemon's standard error. Freed memory is not kept for
# long, since it is asked how much memory there is.
if [ "${FAULT:-quick}" = full ]; then
	PATH=$BUILD-asan/bin:$PATH
	ASAN_OPTIONS=detect_odr_violation=0:detect_leaks=1:quarantine_size_mb=4:log_path=$TMP/found
	UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:log_path=$TMP/found
	export ASAN_OPTIONS UBSAN_OPTIONS
fi
at_exit 'cd /; for g in g1 g2; do xl destroy $g; done >/dev/null 2>&1'

memory() {	# kB of the daemon of disk $1
	sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(cowctl status "$1" --json | jq .pid)/status"
}

hostile() {	# DEVICE WHAT [N]: finds nothing wrong
	guest_run g1 "hostile $*" $limit >said || fail "hostile $*: $(cat said)"
	[ "$(cowctl status "xen-$g1-$1" --json | jq .pid)" = "$pid" ] || fail "another cowd serves $1"
	guest_run g2 'kill -0 $(cat /tmp/pid)' || fail "the other guest: $(guest_run g2 'cat /tmp/load')"
}

kept_pages() {	# of domain $1, mapped by its cowd
	cowctl status "xen-$1-51712" --json | jq .xen.mapped_pages
}

# Grants of domain $1 that another one uses, as Xen says: its console and xenstore are two.
grants_in_use() {
	awk -v d="d$1" '/grant-table for remote/ { on = $5 == d } on && /^\(XEN\) \[0x/ { n++ } END { print n + 0 }' grants
}

subtest two guests, one of them honest
truncate -s 16M base.raw
payload fill -s 3 base.raw
cowimg create -q -f dscow -b base.raw -F raw honest.dscow
cp base.raw was.raw
cowimg create -q -f dscow -b base.raw -F raw bad.dscow
cowimg create -q -f dscow -b base.raw -F raw race.dscow
guest_start g2
cowctl xen-attach -p dscow g2 honest.dscow xvda
guest_disk g2 xvda
guest_check g2 'payload run -s 3 -t 2 -w 2M -S /tmp/state /dev/xvda >/tmp/load 2>&1 &
	echo $! >/tmp/pid; until [ -s /tmp/load ]; do usleep 100000; done'
guest_start g1
g1=$(guest_id g1) g2=$(guest_id g2)
guest_check g1 'rmmod xen_blkfront'
cowctl xen-attach -p dscow g1 bad.dscow xvda
cowctl xen-attach -p dscow g1 race.dscow xvdb
cowctl xen-attach -p raw -r g1 base.raw xvdc

subtest malformed requests
pid=$(cowctl status "xen-$g1-51712" --json | jq .pid)
hostile 51712 requests
before=$(memory "xen-$g1-51712")

subtest indexes and setup without sense
hostile 51712 indexes
hostile 51712 setup

subtest "$states states without sense"
hostile 51712 states $states

subtest "a state that is written $rewrites times"
hostile 51712 rewrites $rewrites

subtest "a storm of events for $storm s"
hostile 51712 storm $storm
cat said

subtest a guest that dies with a full ring, again and again
for i in 1 2 3; do
	hostile 51712 die
done
hostile 51712 requests
after=$(memory "xen-$g1-51712")
[ "$after" -lt $((before + grows)) ] || fail "cowd grew from $before to $after kB"

subtest a disk that is read-only
pid=$(cowctl status "xen-$g1-51744" --json | jq .pid)
hostile 51744 readonly
cmp base.raw was.raw || fail "it was written to"

subtest "$race requests that change while they are looked at"
pid=$(cowctl status "xen-$g1-51728" --json | jq .pid)
before=$(memory "xen-$g1-51728")
hostile 51728 race $race
after=$(memory "xen-$g1-51728")
[ "$after" -lt $((before + 16384)) ] || fail "cowd grew from $before to $after kB"

subtest a state that ends it
guest_run g1 'hostile 51728 unknown' >said || fail "$(cat said)"
wait_for 20 '! cowctl status "xen-$g1-51728" >/dev/null 2>&1'

subtest no page of the guest stays mapped
least=$(kept_pages "$g2")
xl debug-keys g
xl dmesg -c >grants
most=$(kept_pages "$g2")
# What every guest has for xenstore and its console; the honest one has a ring of one page
# besides, and the pages that it promised to use again.
used=$(grants_in_use "$g1")
[ "$used" -le 2 ] || fail "grants of the hostile guest: $(cat grants)"
now=$(($(grants_in_use "$g2") - used - 1))
[ "$now" -gt 0 ] && [ "$now" -ge "$least" ] && [ "$now" -le "$most" ] ||
	fail "$now grants of the honest guest, not $least to $most: $(cat grants)"

subtest the images are sound, and hold nothing that was not written rightly
guest_destroy g1
wait_for 20 '! cowctl list --json | jq -e ".devices[] | select(.name | startswith(\"xen-$g1-\"))" >/dev/null'
for f in bad race; do
	cowimg check -q -f dscow $f.dscow || fail "$f.dscow is not sound"
done
cowimg read -q -f dscow bad.dscow flat.raw
cmp -i 4096 flat.raw was.raw || fail "a malformed request wrote"
guest_check g2 'kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do usleep 100000; done
	tail -n 1 /tmp/load; payload verify -S /tmp/state /dev/xvda' 180
guest_off g2
xen_calm
cowimg check -q -f dscow honest.dscow || fail "honest.dscow is not sound"
wait_for 20 '! pidof cowd >/dev/null'
! cat found.* 2>/dev/null || fail "a sanitizer found something"
