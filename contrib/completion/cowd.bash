# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion for cowd, cowctl, cowimg, cowfuse, dscow_tool and blktap's names.
# Options come from the programs themselves (--long-options), so this file never lags behind.

_cowd()
{
	local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[0]} words

	COMPREPLY=()
	if [[ $cur == -* ]]; then
		# A verb has options of its own; a program without verbs ignores the word.
		if [[ $COMP_CWORD -gt 1 && ${COMP_WORDS[1]} != -* ]]; then
			words=$("$cmd" "${COMP_WORDS[1]}" --long-options 2>/dev/null)
		fi
		[[ -n $words ]] || words=$("$cmd" --long-options 2>/dev/null)
		mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
		return
	fi
	if [[ ${cmd##*/} == cowctl && $COMP_CWORD -ge 2 ]]; then
		# Names of running devices, one a line as the first word of `cowctl list`.
		words=$("$cmd" list 2>/dev/null | cut -d ' ' -f 1)
		mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
	fi
}
complete -o default -o bashdefault -F _cowd cowd cowctl cowimg cowfuse dscow_tool qcow-create img2qcow qcow2raw
