# SPDX-License-Identifier: GPL-2.0-or-later
#
# Every format behind every front end, by the same steps (formats.sh in frontend, lab and
# xenlab). After `. tests/lib/test.sh`:
#
#	$conform_kinds       the kinds of image: FORMAT, FORMAT,OPTIONS of its creation, or
#	                     FORMAT,qemu: made by qemu-img
#	conform_make KIND    image.KIND over base.raw here, which gets filled when it is not there
#	conform_sound KIND   image.KIND is sound, also by qemu-img where that knows the format,
#	                     and the base as it was
#	conform KIND         the whole course, for who defines
#		up FORMAT IMAGE      serves it and sets $disk
#		down                 ends that
#		dies                 kills what serves it: kill -9
#		again FORMAT IMAGE   takes up what that left
#		user CMD...          runs CMD where $disk is seen, if that is not here; its
#		                     state goes to the file $conform_state there
#
# The course: the base shows through; a random load, after which every sector is what was
# written last; the same when the image is served again; the image itself, flattened,
# holds what its user saw. Then a second load, a kill, and what was flushed is there.
conform_kinds='dscow qcow2 qcow2,extended_l2=on qcow2,qemu qcow,cluster_size=4K'
conform_mib=40
conform_seed=2006
conform_state=state

user() {
	"$@"
}

conform_payload() {	# VERB [OPTION]... FILE
	conform_verb=$1
	shift
	user payload "$conform_verb" -s $conform_seed "$@" >"$TMP/payload" 2>&1 ||
		fail "$conform_what: payload $conform_verb: $(tail -n 3 "$TMP/payload")"
}

conform_make() {
	conform_what=$1
	if [ ! -e base.raw ]; then
		truncate -s ${conform_mib}M base.raw
		payload fill -s $conform_seed base.raw
		sha256sum base.raw >base.sum
	fi
	conform_options=${1#"${1%%,*}"}
	case $conform_options in
	,qemu) qemu-img create -q -f "${1%%,*}" -b base.raw -F raw "image.$1" ;;
	*) cowimg create -q -f "${1%%,*}" ${conform_options:+-o "${conform_options#,}"} --overwrite \
		-b base.raw -F raw "image.$1" ;;
	esac
}

conform_sound() {
	conform_status=0
	cowimg check -q -f "${1%%,*}" "image.$1" >"$TMP/check" 2>&1 || conform_status=$?
	# What a kill left that nothing refers to is no damage.
	[ $conform_status != 3 ] || cowimg check -q -f "${1%%,*}" --repair "image.$1" >"$TMP/check" 2>&1 ||
		fail "image.$1: not repaired: $(cat "$TMP/check")"
	[ $conform_status = 0 ] || [ $conform_status = 3 ] || fail "image.$1 is not sound: $(cat "$TMP/check")"
	case $1 in
	qcow2*) qemu-img check -q -f qcow2 "image.$1" >"$TMP/check" 2>&1 ||
		fail "image.$1: qemu-img: $(cat "$TMP/check")" ;;
	esac
	sha256sum -c --quiet base.sum || fail "image.$1: the base was written to"
}

conform_load() {	# OPERATIONS
	conform_payload run -n "$1" -S "$conform_state" "$disk"
}

# What the user saw last, while nobody has the image open.
conform_flat() {
	rm -f flat.raw
	cowimg read -q -f "${1%%,*}" "image.$1" flat.raw
	[ "$(sha256sum <flat.raw)" = "$conform_seen" ] || fail "image.$1 holds other bytes than its user saw"
	rm flat.raw
}

conform() {
	conform_make "$1"
	up "${1%%,*}" "image.$1"
	conform_payload verify "$disk"
	conform_load 800
	conform_payload verify -S "$conform_state" "$disk"
	conform_seen=$(user sh -c "sha256sum <$disk")
	down
	conform_sound "$1"
	conform_flat "$1"
	up "${1%%,*}" "image.$1"
	conform_payload verify -S "$conform_state" "$disk"
	conform_load 400
	dies
	again "${1%%,*}" "image.$1"
	conform_payload verify -F -S "$conform_state" "$disk"
	down
	conform_sound "$1"
	user rm "$conform_state"
	rm "image.$1"
}
