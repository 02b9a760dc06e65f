// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The control protocol's parser: packets from a socket. What it accepts can be
 * written down again and gives the same words; what it refuses gets a sentence.
 */
#include "cowd/proto.h"
#include "fuzz.h"

static void split_and_join(const uint8_t *data, size_t size)
{
	static struct proto_words w, again;
	static char line[8 * PROTO_PACKET];
	const char *why = NULL;
	int rc = proto_split(data, size, &w, &why);

	if (rc) {
		FUZZ_CHECK(why && *why);
		return;
	}
	FUZZ_CHECK(w.argc > 0 && w.argc <= PROTO_WORDS && !w.argv[w.argc]);
	line[0] = 0;
	for (int i = 0; i < w.argc; i++)
		FUZZ_CHECK(proto_join(line, sizeof(line), w.argv[i]) == 0);
	if (strlen(line) > PROTO_PACKET)
		return;
	FUZZ_CHECK(proto_split(line, strlen(line), &again, &why) == 0);
	FUZZ_CHECK(again.argc == w.argc);
	for (int i = 0; i < w.argc; i++)
		FUZZ_CHECK(strcmp(again.argv[i], w.argv[i]) == 0);
}

static void final(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	const char *sentence = NULL;

	FUZZ_CHECK(text);
	memcpy(text, data, size);
	text[size] = 0;
	if (proto_final(text, &sentence) > 0)
		FUZZ_CHECK(sentence >= text && sentence <= text + size);
	free(text);
}

/* However little room there is, nothing is written behind it. */
static void narrow(const uint8_t *data, size_t size)
{
	char word[64], buf[40], before[40];
	size_t n = cow_min(size, sizeof(word) - 1);
	size_t room = 1 + (size ? data[0] % (sizeof(buf) - 1) : 0);

	memcpy(word, data, n);
	word[n] = 0;
	memset(buf, 0x5a, sizeof(buf));
	buf[0] = 0;
	memcpy(before, buf, sizeof(buf));
	if (proto_join(buf, room, word))
		FUZZ_CHECK(buf[0] == 0);
	FUZZ_CHECK(memcmp(buf + room, before + room, sizeof(buf) - room) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	split_and_join(data, size);
	final(data, size);
	narrow(data, size);
	return 0;
}
