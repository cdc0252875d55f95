/* Asks servers for their health, all at once, and ends once each has answered 200: what it takes at least to look at many
   services.
   cc -O2 -o ask ask.c; ask PORT... */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const char REQUEST[] = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
static const char GOOD[] = "HTTP/1.1 200";

int main(int count, char **arguments) {
    int all = epoll_create1(0);
    for (int at = 1; at < count; at++) {
        struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[at]))};
        server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = socket(AF_INET, SOCK_STREAM, 0)};
        if (connect(event.data.fd, (struct sockaddr *)&server, sizeof server) != 0) return 1;
        if (send(event.data.fd, REQUEST, strlen(REQUEST), 0) < 0) return 1;
        if (epoll_ctl(all, EPOLL_CTL_ADD, event.data.fd, &event) != 0) return 1;
    }
    for (int left = count - 1; left > 0;) {
        struct epoll_event events[64];
        int ready = epoll_wait(all, events, 64, -1);
        for (int at = 0; at < ready; at++, left--) {
            char answer[4096];
            if (recv(events[at].data.fd, answer, sizeof answer, 0) < (ssize_t)strlen(GOOD)) return 1;
            if (memcmp(answer, GOOD, strlen(GOOD)) != 0) return 1;
            close(events[at].data.fd);
        }
    }
    return 0;
}
