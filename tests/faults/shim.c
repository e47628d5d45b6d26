/* Faults of a disk, put under a process by LD_PRELOAD. All of it concerns what lies under FAULT_ROOT and nothing else.

   FAULT_CONTROL  a file of lines "sync|write ERRNO PROBABILITY [SUFFIX]", read anew at each call: so it fails, with that
                  errno, for files whose name ends so. Each fault is one byte at the end of FAULT_COUNT.
   FAULT_SHADOW   a folder that is kept as the platter would be: it holds what was synced and nothing else. A file's
                  content gets there by fsync and fdatasync on it, a name by fsync on its folder. A sync that fails drops
                  what it should have written: Linux marks such pages clean (https://lwn.net/Articles/752063/).
   FAULT_LIE      syncs answer 0 and write nothing to the shadow: a disk that lies.

   In the shadow: c-INODE-GENERATION is a file's durable content, d-INODE-GENERATION a folder's durable names, t-… says
   that this one was unlinked (inodes are used again). What is made of it after a kill: powercut.py. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096

typedef struct {
	ino_t inode;
	unsigned generation;
	int dead, outside;
	size_t pages;
	unsigned char *dirty;
	char name[NAME_MAX + 1];
} File;

static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_ftruncate)(int, off_t), (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int), (*real_rename)(const char *, const char *);
static ssize_t (*real_write)(int, const void *, size_t), (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], shadow[PATH_MAX - 64], control[PATH_MAX], count[PATH_MAX];
static size_t root_length;
static dev_t device;
static int lying;
static File *files;
static size_t known;
static unsigned seed;

static void stop(const char *what) { perror(what); abort(); }

static void shadow_path(char *to, char kind, const File *f) {
	snprintf(to, PATH_MAX, "%s/%c-%lu-%u", shadow, kind, (unsigned long)f->inode, f->generation);
}

static void touch(char kind, const File *f) {
	char path[PATH_MAX];
	shadow_path(path, kind, f);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0) stop(path);
	close(fd);
}

static void mark(File *f, off_t from, off_t to) {
	size_t first = from / PAGE, last = (to + PAGE - 1) / PAGE;
	if (last > f->pages) {
		f->dirty = realloc(f->dirty, last);
		memset(f->dirty + f->pages, 0, last - f->pages);
		f->pages = last;
	}
	for (size_t i = first; i < last; i++) f->dirty[i] = 1;
}

/* The file with that inode; what was not seen before is new, and all of it is unsynced. */
static File *file_of(const struct stat *st, const char *path) {
	for (size_t i = 0; i < known; i++)
		if (files[i].inode == st->st_ino && !files[i].dead) return &files[i];
	unsigned generation = 0;
	for (size_t i = 0; i < known; i++)
		if (files[i].inode == st->st_ino) generation = files[i].generation + 1;
	files = realloc(files, (known + 1) * sizeof(File));
	File *f = &files[known++];
	memset(f, 0, sizeof *f);
	f->inode = st->st_ino;
	f->generation = generation;
	f->outside = strncmp(path, root, root_length) || (path[root_length] && path[root_length] != '/');
	const char *slash = strrchr(path, '/');
	snprintf(f->name, sizeof f->name, "%s", slash ? slash + 1 : path);
	if (!f->outside && *shadow) {
		touch(S_ISDIR(st->st_mode) ? 'd' : 'c', f);
		if (S_ISREG(st->st_mode)) mark(f, 0, st->st_size);
	}
	return f;
}

/* Of an open descriptor, where it lies under the root; else NULL. */
static File *file_at(int fd, struct stat *st) {
	if (!root_length || fstat(fd, st) || st->st_dev != device || !(S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)))
		return NULL;
	for (size_t i = 0; i < known; i++)
		if (files[i].inode == st->st_ino && !files[i].dead) return files[i].outside ? NULL : &files[i];
	char link[64], path[PATH_MAX];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof path - 1);
	if (n < 0) return NULL;
	path[n] = 0;
	File *f = file_of(st, path);
	return f->outside ? NULL : f;
}

static void write_names(const char *path, const File *folder) {
	char to[PATH_MAX], temporary[PATH_MAX + 8], child[PATH_MAX + NAME_MAX + 2];
	shadow_path(to, 'd', folder);
	snprintf(temporary, sizeof temporary, "%s.new", to);
	FILE *out = fopen(temporary, "w");
	DIR *in = opendir(path);
	if (!out || !in) stop(path);
	for (struct dirent *e; (e = readdir(in));) {
		struct stat st;
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
		snprintf(child, sizeof child, "%s/%s", path, e->d_name);
		if (lstat(child, &st) || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) continue;
		File *f = file_of(&st, child);
		fprintf(out, "%c %lu-%u %s\n", S_ISDIR(st.st_mode) ? 'd' : 'c', (unsigned long)f->inode, f->generation, e->d_name);
	}
	closedir(in);
	fclose(out);
	if (real_rename(temporary, to)) stop(to);
}

static void write_content(int descriptor, File *f, off_t size) {
	char to[PATH_MAX], page[PAGE], link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
	int from = open(link, O_RDONLY | O_CLOEXEC); /* the given one may be for writing alone */
	if (from < 0) stop(link);
	shadow_path(to, 'c', f);
	int fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0) stop(to);
	for (size_t i = 0; i < f->pages; i++) {
		if (!f->dirty[i]) continue;
		ssize_t n = pread(from, page, PAGE, (off_t)i * PAGE);
		if (n < 0 || real_pwrite(fd, page, n, (off_t)i * PAGE) != n) stop(to);
		f->dirty[i] = 0;
	}
	if (real_ftruncate(fd, size)) stop(to);
	close(fd);
	close(from);
}

/* What lies there at the start is on the platter. */
static void snapshot(const char *path) {
	struct stat st;
	if (lstat(path, &st)) return;
	File *f = file_of(&st, path);
	if (S_ISREG(st.st_mode)) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0) stop(path);
		size_t slot = f - files;
		write_content(fd, &files[slot], st.st_size);
		close(fd);
	} else if (S_ISDIR(st.st_mode)) {
		File folder = *f; /* the table moves */
		write_names(path, &folder);
		DIR *in = opendir(path);
		for (struct dirent *e; in && (e = readdir(in));) {
			char child[PATH_MAX + NAME_MAX + 2];
			if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
			snprintf(child, sizeof child, "%s/%s", path, e->d_name);
			if (!lstat(child, &st) && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) snapshot(child);
		}
		if (in) closedir(in);
	}
}

static int fault(const char *operation, const File *f) {
	static const struct { const char *name; int number; } errors[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}};
	char word[16], error[16], line[256], suffix[64];
	double probability;
	if (!*control) return 0;
	FILE *in = fopen(control, "re");
	if (!in) return 0;
	int found = 0;
	while (!found && fgets(line, sizeof line, in)) {
		*suffix = 0;
		if (sscanf(line, "%15s %15s %lf %63s", word, error, &probability, suffix) < 3 || strcmp(word, operation)) continue;
		size_t n = strlen(f->name), m = strlen(suffix);
		if (m > n || strcmp(f->name + n - m, suffix)) continue;
		if (rand_r(&seed) / (RAND_MAX + 1.0) >= probability) continue;
		for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
			if (!strcmp(errors[i].name, error)) found = errors[i].number;
	}
	fclose(in);
	if (found && *count) {
		int fd = open(count, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (fd >= 0) { if (real_write(fd, "x", 1) != 1) stop(count); close(fd); }
	}
	return found;
}

__attribute__((constructor)) static void start(void) {
	real_fsync = dlsym(RTLD_NEXT, "fsync");
	real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
	real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
	real_unlink = dlsym(RTLD_NEXT, "unlink");
	real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
	real_rename = dlsym(RTLD_NEXT, "rename");
	real_write = dlsym(RTLD_NEXT, "write");
	real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
	real_writev = dlsym(RTLD_NEXT, "writev");
	const char *given = getenv("FAULT_ROOT");
	struct stat st;
	if (!given || !realpath(given, root) || stat(root, &st)) { *root = 0; return; }
	device = st.st_dev;
	seed = (unsigned)getpid();
	snprintf(control, sizeof control, "%s", getenv("FAULT_CONTROL") ?: "");
	snprintf(count, sizeof count, "%s", getenv("FAULT_COUNT") ?: "");
	snprintf(shadow, sizeof shadow, "%s", getenv("FAULT_SHADOW") ?: "");
	lying = getenv("FAULT_LIE") != NULL;
	root_length = strlen(root);
	if (*shadow) snapshot(root);
}

static int sync_it(int fd, int (*real)(int)) {
	struct stat st;
	pthread_mutex_lock(&lock);
	File *f = file_at(fd, &st);
	int error = f ? fault("sync", f) : 0;
	int done = f && *shadow && !lying;
	if (done && S_ISREG(st.st_mode)) {
		if (error) memset(f->dirty, 0, f->pages);
		else write_content(fd, f, st.st_size);
	} else if (done && !error) {
		char link[64], path[PATH_MAX];
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(link, path, sizeof path - 1);
		if (n > 0) { path[n] = 0; File folder = *f; write_names(path, &folder); }
	}
	int emulated = f && *shadow;
	pthread_mutex_unlock(&lock);
	if (error) { errno = error; return -1; }
	return emulated ? 0 : real(fd);
}

int fsync(int fd) { return sync_it(fd, real_fsync); }
int fdatasync(int fd) { return sync_it(fd, real_fdatasync); }

static ssize_t write_it(int fd, const void *data, size_t n, off_t at, int positioned) {
	struct stat st;
	if (!root_length) return positioned ? real_pwrite(fd, data, n, at) : real_write(fd, data, n);
	pthread_mutex_lock(&lock);
	File *f = file_at(fd, &st);
	if (!f) {
		pthread_mutex_unlock(&lock); /* it may block */
		return positioned ? real_pwrite(fd, data, n, at) : real_write(fd, data, n);
	}
	ssize_t written = -1;
	int error = fault("write", f);
	if (!error) {
		if (!positioned) at = lseek(fd, 0, SEEK_CUR);
		written = positioned ? real_pwrite(fd, data, n, at) : real_write(fd, data, n);
		error = errno;
		if (written > 0 && *shadow) mark(f, at, at + written);
	}
	pthread_mutex_unlock(&lock);
	errno = error;
	return written;
}

ssize_t write(int fd, const void *data, size_t n) { return write_it(fd, data, n, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return write_it(fd, data, n, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return write_it(fd, data, n, at, 1); }

/* Piece by piece: a fault may then fall between two of them, as a kernel's partial write does. */
ssize_t writev(int fd, const struct iovec *pieces, int count) {
	struct stat st;
	pthread_mutex_lock(&lock);
	int ours = root_length && file_at(fd, &st);
	pthread_mutex_unlock(&lock);
	if (!ours) return real_writev(fd, pieces, count);
	ssize_t sum = 0;
	for (int i = 0; i < count; i++) {
		ssize_t n = write(fd, pieces[i].iov_base, pieces[i].iov_len);
		if (n < 0) return sum ? sum : n;
		sum += n;
		if ((size_t)n < pieces[i].iov_len) break;
	}
	return sum;
}

static int truncate_it(int fd, off_t size) {
	struct stat st;
	pthread_mutex_lock(&lock);
	File *f = file_at(fd, &st);
	int result = real_ftruncate(fd, size), error = errno;
	if (f && !result && *shadow) mark(f, size < st.st_size ? size : st.st_size, size < st.st_size ? st.st_size : size);
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int ftruncate(int fd, off_t size) { return truncate_it(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_it(fd, size); }

/* Its inode may be used again: what comes then is another file. */
static void bury(int at, const char *path) {
	struct stat st;
	if (!root_length || !*shadow || fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) || st.st_dev != device) return;
	for (size_t i = 0; i < known; i++)
		if (files[i].inode == st.st_ino && !files[i].dead && st.st_nlink == 1) {
			files[i].dead = 1;
			if (!files[i].outside) touch('t', &files[i]);
		}
}

int unlink(const char *path) {
	pthread_mutex_lock(&lock);
	bury(AT_FDCWD, path);
	int result = real_unlink(path), error = errno;
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int unlinkat(int at, const char *path, int flags) {
	pthread_mutex_lock(&lock);
	if (!(flags & AT_REMOVEDIR)) bury(at, path);
	int result = real_unlinkat(at, path, flags), error = errno;
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int rename(const char *from, const char *to) {
	pthread_mutex_lock(&lock);
	bury(AT_FDCWD, to);
	int result = real_rename(from, to), error = errno;
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}
