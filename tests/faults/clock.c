/* A wall clock that is off by CLOCK_OFFSET seconds, put under a process by LD_PRELOAD. The monotonic one stays. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
	const char *text = getenv("CLOCK_OFFSET");
	return text ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *out) {
	static int (*real)(clockid_t, struct timespec *);
	if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
	int result = real(id, out);
	if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) out->tv_sec += offset();
	return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
	static int (*real)(struct timeval *, void *);
	if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
	int result = real(out, zone);
	if (!result) out->tv_sec += offset();
	return result;
}

time_t time(time_t *out) {
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (out) *out = now.tv_sec;
	return now.tv_sec;
}
