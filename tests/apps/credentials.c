/* Users, groups, capabilities and securebits of the process. */
#include "check.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

#define BIT(cap) (1ull << (cap))

static const gid_t groups[] = {7, 1010, 1020, 65530};
static const uint64_t permitted = BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_CHOWN) | BIT(CAP_SETUID) | BIT(CAP_CHECKPOINT_RESTORE);
static const uint64_t effective = BIT(CAP_CHOWN) | BIT(CAP_NET_BIND_SERVICE);
static const uint64_t inheritable = BIT(CAP_CHOWN) | BIT(CAP_NET_RAW);
static const int dropped[] = {CAP_SYS_BOOT, CAP_SYS_MODULE, CAP_WAKE_ALARM};

static void set_caps(uint64_t p, uint64_t e, uint64_t i)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{e, p, i}, {e >> 32, p >> 32, i >> 32}};
    MUST(syscall(SYS_capset, &head, data));
}

static void verify_caps(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    MUST(syscall(SYS_capget, &head, data));
    CHECK_EQ("permitted", permitted, data[0].permitted | (uint64_t)data[1].permitted << 32);
    CHECK_EQ("effective", effective, data[0].effective | (uint64_t)data[1].effective << 32);
    CHECK_EQ("inheritable", inheritable, data[0].inheritable | (uint64_t)data[1].inheritable << 32);
    CHECK_EQ("ambient CHOWN", 1, prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0));
    CHECK_EQ("ambient NET_RAW", 0, prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_RAW, 0, 0));
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        CHECK_EQ("bounding set", 0, prctl(PR_CAPBSET_READ, dropped[i]));
    CHECK_EQ("bounding set has CHOWN", 1, prctl(PR_CAPBSET_READ, CAP_CHOWN));
}

static void verify_ids(void)
{
    uid_t r, e, s;
    MUST(getresuid(&r, &e, &s));
    CHECK_EQ("real uid", 1001, r);
    CHECK_EQ("effective uid", 1002, e);
    CHECK_EQ("saved uid", 1003, s);
    CHECK_EQ("file system uid", 1001, setfsuid(-1));
    MUST(getresgid(&r, &e, &s));
    CHECK_EQ("real gid", 2001, r);
    CHECK_EQ("effective gid", 2002, e);
    CHECK_EQ("saved gid", 2003, s);
    gid_t now[32];
    CHECK_EQ("number of groups", 4, MUST(getgroups(32, now)));
    for (int i = 0; i < 4; i++)
        CHECK_EQ("group", groups[i], now[i]);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    if (geteuid() != 0)
        SKIP("root");
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        MUST(prctl(PR_CAPBSET_DROP, dropped[i]));
    int bits = SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED;
    MUST(prctl(PR_SET_SECUREBITS, bits));
    MUST(setgroups(4, groups));
    MUST(setresgid(2001, 2002, 2003));
    MUST(setresuid(1001, 1002, 1003));
    setfsuid(1001);
    set_caps(permitted, effective, inheritable);
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
    verify_ids();
    verify_caps();
    check_freeze_here();
    verify_ids();
    verify_caps();
    CHECK_EQ("securebits", bits, prctl(PR_GET_SECUREBITS));
    CHECK_EQ("no_new_privs", 0, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    return 0;
}
