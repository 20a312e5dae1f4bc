/* A map of BPF programs, with something in it. */
#include "check.h"
#include <linux/bpf.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 4};
    int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
    if (fd < 0)
        SKIP("bpf (CAP_BPF)");
    int key = 2;
    uint64_t value = 4711;
    union bpf_attr element = {.map_fd = fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
    MUST(syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &element, sizeof element));
    check_freeze_here();
    value = 0;
    MUST(syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &element, sizeof element));
    CHECK_EQ("value", 4711, value);
    return 0;
}
