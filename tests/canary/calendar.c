// For LD_PRELOAD: the calendar's clock stands at $CALENDAR, in seconds since 1970; all others go on.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
    const char *calendar = getenv("CALENDAR");
    if (clock == CLOCK_REALTIME && calendar) {
        time->tv_sec = atoll(calendar);
        time->tv_nsec = 0;
        return 0;
    }
    return syscall(SYS_clock_gettime, clock, time);
}
