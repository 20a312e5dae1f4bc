/* A packet socket with a ring that is mapped (PACKET_RX_RING). */
#include "check.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = MUST(socket(AF_PACKET, SOCK_RAW, 0));
    struct tpacket_req ring = {4096, 4, 2048, 8};
    MUST(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring));
    struct tpacket_hdr *frames = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    check_freeze_here();
    CHECK_EQ("status of the first frame", TP_STATUS_KERNEL, frames->tp_status);
    return 0;
}
