/* What the process is called: comm, cmdline, environ, exe and auxv, as /proc shows them. */
#include "check.h"
#include <sys/auxv.h>
#include <sys/prctl.h>

extern char **environ;

struct file {
    const char *path;
    char text[65536];
    ssize_t len;
};

static struct file files[] = {{"/proc/self/cmdline", "", 0},
                              {"/proc/self/environ", "", 0},
                              {"/proc/self/auxv", "", 0},
                              {"/proc/self/comm", "", 0}};

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char exe[512] = "", exe_now[512] = "", now[65536], comm[17] = "";
    MUST(prctl(PR_SET_NAME, "renamed (x) y"));
    /* Servers write their state over their arguments; the paths are kept first. */
    check_ready_path = strdup(argv[1]);
    check_go_path = strdup(argv[2]);
    memset(argv[0], 'z', strlen(argv[0]));
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    for (size_t i = 0; i < 4; i++)
        files[i].len = check_read_file(files[i].path, files[i].text, sizeof files[i].text);
    CHECK(files[0].text[0] == 'z', "cmdline, expected to show the change");
    CHECK(files[2].len > 100, "auxv, expected entries, got %zd bytes", files[2].len);
    unsigned long page = getauxval(AT_PAGESZ), random = getauxval(AT_RANDOM);
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
    char seed[16];
    memcpy(seed, (void *)random, 16);
    check_freeze_here();
    for (size_t i = 0; i < 4; i++) {
        ssize_t len = check_read_file(files[i].path, now, sizeof now);
        CHECK_EQ(files[i].path, files[i].len, len);
        CHECK(!memcmp(now, files[i].text, len), "%s, expected the same bytes, got others", files[i].path);
    }
    MUST(prctl(PR_GET_NAME, comm));
    CHECK(!strcmp(comm, "renamed (x) y"), "comm, expected `renamed (x) y`, got `%s`", comm);
    MUST(readlink("/proc/self/exe", exe_now, sizeof exe_now - 1));
    CHECK(!strcmp(exe, exe_now), "exe, expected %s, got %s", exe, exe_now);
    CHECK_EQ("AT_PAGESZ", page, getauxval(AT_PAGESZ));
    CHECK_EQ("AT_RANDOM", random, getauxval(AT_RANDOM));
    CHECK_EQ("AT_SYSINFO_EHDR", vdso, getauxval(AT_SYSINFO_EHDR));
    CHECK(!memcmp(seed, (void *)random, 16), "bytes at AT_RANDOM, expected the same");
    CHECK(!memcmp((void *)vdso, "\177ELF", 4), "vdso at AT_SYSINFO_EHDR, expected an ELF header");
    return 0;
}
