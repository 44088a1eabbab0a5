// What a hostile program would try from inside a container. Static, so that it runs in an image that holds nothing else.
//
//   probe syscalls    tries system calls that must be refused; prints NAME=ERRNO (0: it worked) for each
//   probe eat BYTES   uses so much memory, then prints "ate"
//   probe spawn N     starts N processes that stay; prints how many it got and the errno that stopped it
//   probe shm BYTES   fills a file in /dev/shm; prints the errno that stopped it, or 0
//   probe fds         prints every open descriptor but the one it reads them with
//   probe rights PATH prints the effective ids and the errno of opening PATH (0: it worked)
//   probe spin MS     uses so much CPU time in milliseconds
//   probe watch N     opens up to N inotify instances; prints how many it got and the errno that stopped it, and stays
//   probe crash       dumps core if it may; first tries to bring dumps back, and prints the limit
//   probe priority    prints NAME=ERRNO for each way to more than one's share of the host's CPUs and memory
//   probe sockets     prints every kind of socket that can be opened: FAMILY, or netlink/PROTOCOL
//   probe mark PATH   prints NAME=ERRNO of giving a file attributes that the kernel or overlayfs obeys
//   probe steal PATH  looks into every process that appears until PATH exists; prints what it got hold of that is not the container's
//   probe ipc KEY     prints NAME=ERRNO of finding what `probe ipc-make KEY` has made in the same IPC namespace, which stays
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <time.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static void tell(const char *name, long answer) {
    printf("%s=%d\n", name, answer < 0 ? errno : 0);
    fflush(stdout);
}

#define TRY(name, call) (errno = 0, tell(name, (long)(call)))

static void syscalls(void) {
    char zeros[4096] = {0};
    int fds[2];
    TRY("io_uring_setup", syscall(425, 1, zeros));
    TRY("bpf", syscall(SYS_bpf, 0, zeros, 72));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
    TRY("perf_event_open", syscall(SYS_perf_event_open, zeros, 0, -1, -1, 0));
    TRY("keyctl", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, -3, 1));
    TRY("add_key", syscall(SYS_add_key, "user", "name", "x", 1, -3));
    TRY("request_key", syscall(SYS_request_key, "user", "name", 0, -3));
    TRY("unshare_user", unshare(CLONE_NEWUSER));
    TRY("unshare_mount", unshare(CLONE_NEWNS));
    TRY("unshare_network", unshare(CLONE_NEWNET));
    TRY("clone_new_user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    TRY("clone3", syscall(435, zeros, 88));
    TRY("setns", setns(open("/proc/self/ns/net", O_RDONLY), 0));
    TRY("mount", mount("none", "/tmp", "tmpfs", 0, 0));
    TRY("remount", mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0));
    TRY("umount", umount2("/proc", MNT_DETACH));
    TRY("pivot_root", syscall(SYS_pivot_root, ".", "."));
    TRY("open_tree", syscall(428, AT_FDCWD, "/", 1));
    TRY("move_mount", syscall(429, -1, "", AT_FDCWD, "/tmp", 4));
    TRY("fsopen", syscall(430, "tmpfs", 0));
    TRY("mount_setattr", syscall(442, AT_FDCWD, "/", 0, zeros, 32));
    TRY("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, zeros, 0));
    TRY("name_to_handle_at", syscall(SYS_name_to_handle_at, AT_FDCWD, "/", zeros, zeros + 64, 0));
    TRY("init_module", syscall(SYS_init_module, zeros, 16, ""));
    TRY("finit_module", syscall(SYS_finit_module, -1, "", 0));
    TRY("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    TRY("reboot", reboot(RB_DISABLE_CAD));
    TRY("swapon", syscall(SYS_swapon, "/tmp", 0));
    TRY("clock_settime", clock_settime(CLOCK_REALTIME, (struct timespec[]){{1, 0}}));
    TRY("sethostname", sethostname("evil", 4));
    TRY("syslog", syscall(SYS_syslog, 3, zeros, 100));
    TRY("quotactl", syscall(SYS_quotactl, 0, "/", 0, zeros));
    TRY("fanotify_init", syscall(SYS_fanotify_init, 0, 0));
    TRY("personality_no_randomize", personality(ADDR_NO_RANDOMIZE));
    TRY("mknod_memory", mknod("/tmp/mem", S_IFCHR | 0666, makedev(1, 1)));
    TRY("mknod_disk", mknod("/tmp/disk", S_IFBLK | 0666, makedev(254, 0)));
    TRY("mknod_in_dev", mknod("/dev/mem", S_IFCHR | 0666, makedev(1, 1)));
    TRY("socket_alg", socket(38, SOCK_SEQPACKET, 0));
    TRY("socket_vsock", socket(40, SOCK_STREAM, 0));
    TRY("socket_packet", socket(17, SOCK_RAW, 0x300));
    TRY("socket_raw", socket(AF_INET, SOCK_RAW, 1));
    TRY("socket_netfilter", socket(AF_NETLINK, SOCK_RAW, 12));
    TRY("socket_xfrm", socket(AF_NETLINK, SOCK_RAW, 6));
    TRY("socket_sctp", socket(AF_INET, SOCK_STREAM, 132));
    TRY("socket_tipc", socket(30, SOCK_SEQPACKET, 0));
    TRY("socketpair_tipc", socketpair(30, SOCK_SEQPACKET, 0, fds));
    TRY("push_terminal_input", ioctl(0, 0x5412, "x"));
    // The filter must not be lifted, and rights must not come back.
    TRY("seccomp_off", prctl(PR_SET_SECCOMP, 0, 0, 0, 0));
    TRY("no_new_privs_off", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    TRY("ambient_sys_admin", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0));
}

static void eat(size_t bytes) {
    char *memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        printf("refused\n");
        return;
    }
    memset(memory, 1, bytes);
    printf("ate\n");
}

static void spawn(long wanted) {
    long got = 0;
    int stopped = 0;
    while (got < wanted) {
        pid_t pid = fork();
        if (pid == 0) {
            pause();
            _exit(0);
        }
        if (pid < 0) {
            stopped = errno;
            break;
        }
        got++;
    }
    printf("spawned %ld errno %d\n", got, stopped);
}

static void shm(size_t bytes) {
    static char block[65536];
    int fd = open("/dev/shm/fill", O_CREAT | O_WRONLY, 0600);
    size_t done = 0;
    while (fd >= 0 && done < bytes) {
        ssize_t written = write(fd, block, sizeof block);
        if (written < 0) {
            printf("errno %d after %zu\n", errno, done);
            return;
        }
        done += written;
    }
    printf("errno %d after %zu\n", fd < 0 ? errno : 0, done);
}

static void fds(void) {
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(directory))
            printf("fd %s\n", entry->d_name);
}

static void watch(long wanted) {
    long got = 0;
    errno = 0;
    while (got < wanted && inotify_init1(0) >= 0)
        got++;
    printf("watched %ld errno %d\n", got, errno);
    fflush(stdout);
    pause();
}

static void crash(void) {
    struct rlimit limit = {0, 0};
    setrlimit(RLIMIT_CORE, &limit);
    limit.rlim_cur = limit.rlim_max = RLIM_INFINITY;
    setrlimit(RLIMIT_CORE, &limit);
    getrlimit(RLIMIT_CORE, &limit);
    printf("core %ld %ld\n", (long)limit.rlim_cur, (long)limit.rlim_max);
    fflush(stdout);
    prctl(PR_SET_DUMPABLE, 1);
    // Not abort(): the first process of a container does not take that signal.
    *(volatile int *)0 = 1;
}

static void priority(void) {
    struct sched_param param = {.sched_priority = 1};
    TRY("fifo", sched_setscheduler(0, SCHED_FIFO, &param));
    TRY("round_robin", sched_setscheduler(0, SCHED_RR, &param));
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } deadline = {48, 6, 0, 0, 0, 1000000, 10000000, 10000000};
    TRY("deadline", syscall(SYS_sched_setattr, 0, &deadline, 0));
    TRY("nice", setpriority(PRIO_PROCESS, 0, -5));
    TRY("io_real_time", syscall(SYS_ioprio_set, 1, 0, 1 << 13));
    TRY("huge_pages", mmap(0, 2 << 20, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
    TRY("huge_file", syscall(SYS_memfd_create, "x", 4));
    TRY("huge_segment", shmget(IPC_PRIVATE, 2 << 20, IPC_CREAT | 04000 | 0600));
    struct rlimit more = {1 << 20, 1 << 20};
    TRY("limit", setrlimit(RLIMIT_RTPRIO, &more));
}

static void ipc(long key, int make) {
    int flags = make ? IPC_CREAT | 0666 : 0;
    char name[32];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = offsetof(struct sockaddr_un, sun_path) + 1 +
                 snprintf(address.sun_path + 1, 32, "atoll-probe-%ld", key);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(name, sizeof name, "/atoll-probe-%ld", key);
    TRY("segment", shmget(key, 4096, flags));
    TRY("semaphore", semget(key, 1, flags));
    TRY("messages", msgget(key, flags));
    TRY("queue", mq_open(name, make ? O_CREAT | O_RDWR : O_RDWR, 0666, NULL));
    if (make)
        TRY("abstract", bind(fd, (void *)&address, length) || listen(fd, 1) ? -1 : 0), pause();
    else
        TRY("abstract", connect(fd, (void *)&address, length));
}

static void spin(long millis) {
    volatile uint64_t count = 0;
    while (clock() < millis * (CLOCKS_PER_SEC / 1000))
        count++;
}

static void sockets(void) {
    for (int family = 0; family < 64; family++)
        for (int kind = SOCK_STREAM; kind <= SOCK_SEQPACKET && family != AF_NETLINK; kind++)
            if (socket(family, kind, 0) >= 0) {
                printf("%d\n", family);
                break;
            }
    for (int protocol = 0; protocol < 64; protocol++)
        if (socket(AF_NETLINK, SOCK_RAW, protocol) >= 0)
            printf("netlink/%d\n", protocol);
}

static void mark(const char *path) {
    // SOURCE: struct vfs_cap_data and vfs_ns_cap_data in include/uapi/linux/capability.h; all rights, effective.
    uint32_t second[5] = {0x02000001, ~0u, 0, ~0u, 0}, third[6] = {0x03000001, ~0u, 0, ~0u, 0, 0};
    TRY("capability", setxattr(path, "security.capability", second, sizeof second, 0));
    TRY("capability_3", setxattr(path, "security.capability", third, sizeof third, 0));
    TRY("ima", setxattr(path, "security.ima", "x", 1, 0));
    TRY("redirect", setxattr(path, "trusted.overlay.redirect", "/etc", 4, 0));
    TRY("opaque", setxattr(path, "trusted.overlay.opaque", "y", 1, 0));
    TRY("metacopy", setxattr(path, "trusted.overlay.metacopy", "", 0, 0));
    TRY("origin", setxattr(path, "trusted.overlay.origin", "", 0, 0));
}

static int kept[256], keeps, ours[3][2];

static int is_ours(struct stat *found) {
    for (int one = 0; one < 3; one++)
        if (ours[one][0] == (int)found->st_ino && ours[one][1] == (int)found->st_dev)
            return 1;
    return 0;
}

// What `name` of a process leads to, unless it is the container's root or one of the image's programs.
static void look(int pid, const char *name) {
    char path[64], link[256];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &found) < 0 || is_ours(&found)) {
        close(fd);
        return;
    }
    // By what is held: the process may be gone by now.
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, link, sizeof link - 1);
    printf("stole %s: %.*s\n", name, (int)(length < 0 ? 0 : length), link);
    fflush(stdout);
    if (keeps < 256)
        kept[keeps++] = fd;
}

static void steal(const char *end) {
    const char *known[] = {"/", "/bin/busybox", "/bin/probe"};
    struct stat found;
    int last = 0, seen = 0;
    for (int one = 0; one < 3; one++)
        if (!stat(known[one], &found))
            ours[one][0] = found.st_ino, ours[one][1] = found.st_dev;
    printf("watching\n");
    fflush(stdout);
    while (stat(end, &found) < 0) {
        DIR *directory = opendir("/proc");
        struct dirent *entry;
        while (directory && (entry = readdir(directory))) {
            int pid = atoi(entry->d_name);
            char name[32];
            if (pid <= 0 || pid == getpid())
                continue;
            if (pid > last)
                last = pid, seen++;
            look(pid, "exe");
            look(pid, "cwd");
            look(pid, "root");
            for (int fd = 3; fd < 40; fd++)
                snprintf(name, sizeof name, "fd/%d", fd), look(pid, name);
        }
        if (directory)
            closedir(directory);
    }
    // What ran when it was opened cannot be written; by now it has ended.
    for (int one = 0; one < keeps; one++) {
        char path[64], link[256];
        snprintf(path, sizeof path, "/proc/self/fd/%d", kept[one]);
        ssize_t length = readlink(path, link, sizeof link);
        if (open(path, O_WRONLY) >= 0)
            printf("can write %.*s\n", (int)(length < 0 ? 0 : length), link);
    }
    printf("seen %d\n", seen);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    long number = argc > 2 ? atol(argv[2]) : 0;
    if (!strcmp(what, "syscalls"))
        syscalls();
    else if (!strcmp(what, "eat"))
        eat(number);
    else if (!strcmp(what, "spawn"))
        spawn(number);
    else if (!strcmp(what, "shm"))
        shm(number);
    else if (!strcmp(what, "fds"))
        fds();
    else if (!strcmp(what, "rights"))
        printf("euid %d egid %d\n", geteuid(), getegid()), TRY("open", open(argc > 2 ? argv[2] : "/", O_RDONLY));
    else if (!strcmp(what, "spin"))
        spin(number);
    else if (!strcmp(what, "watch"))
        watch(number);
    else if (!strcmp(what, "crash"))
        crash();
    else if (!strcmp(what, "sockets"))
        sockets();
    else if (!strcmp(what, "mark"))
        mark(argc > 2 ? argv[2] : "/");
    else if (!strcmp(what, "steal"))
        steal(argc > 2 ? argv[2] : "/end");
    else if (!strcmp(what, "priority"))
        priority();
    else if (!strncmp(what, "ipc", 3))
        ipc(number, what[3] == '-');
    else
        return 2;
    return 0;
}
