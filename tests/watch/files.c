// What a program does with files, a line each in $FUSEDPO_WATCH: preloaded, it stands before open, mmap and madvise.
//   open PATH          for reading
//   dropped BYTES PATH pages of a mapping given back: they have been read, and whoever wants them again reads them again
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)

typedef int (*open_fn)(const char *, int, ...);
typedef int (*openat_fn)(int, const char *, int, ...);
typedef void *(*mmap_fn)(void *, size_t, int, int, int, off_t);
typedef int (*madvise_fn)(void *, size_t, int);

// Mappings of files, never taken out: an address that is used again stands later, and is found first.
static struct { char *start; size_t len; char path[PATH_MAX]; } maps[1024];
static int num_maps;

static void say(const char *line) {
    static int log = -1;
    if (log < 0) {
        const char *to = getenv("FUSEDPO_WATCH");
        REAL("open", open_fn);
        if (to) log = real(to, O_WRONLY | O_APPEND | O_CREAT, 0666);
    }
    if (log >= 0 && write(log, line, strlen(line)) < 0) abort();
}

static void opened(const char *path, int flags) {
    char line[PATH_MAX + 16];
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_DIRECTORY)) return;
    snprintf(line, sizeof line, "open %s\n", path);
    say(line);
}

#define MODE() mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, int); va_end(a); }

int open(const char *path, int flags, ...) { MODE(); REAL("open", open_fn); opened(path, flags); return real(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(); REAL("open64", open_fn); opened(path, flags); return real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(); REAL("openat", openat_fn); opened(path, flags); return real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(); REAL("openat64", openat_fn); opened(path, flags); return real(at, path, flags, mode); }

static void mapped(void *start, size_t len, int fd) {
    char link[64];
    if (fd < 0 || start == MAP_FAILED) return;
    if (num_maps == sizeof maps / sizeof *maps) abort();
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, maps[num_maps].path, PATH_MAX - 1);
    if (n < 0) return;
    maps[num_maps].path[n] = 0;
    maps[num_maps].start = start;
    maps[num_maps++].len = len;
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset) {
    REAL("mmap", mmap_fn);
    void *start = real(at, len, prot, flags, fd, offset);
    mapped(start, len, fd);
    return start;
}
void *mmap64(void *at, size_t len, int prot, int flags, int fd, off_t offset) {
    REAL("mmap64", mmap_fn);
    void *start = real(at, len, prot, flags, fd, offset);
    mapped(start, len, fd);
    return start;
}

int madvise(void *at, size_t len, int advice) {
    char line[PATH_MAX + 64];
    REAL("madvise", madvise_fn);
    for (int i = num_maps - 1; advice == MADV_DONTNEED && i >= 0; i--)
        if ((char *)at >= maps[i].start && (char *)at < maps[i].start + maps[i].len) {
            snprintf(line, sizeof line, "dropped %zu %s\n", len, maps[i].path);
            say(line);
            break;
        }
    return real(at, len, advice);
}
