/* The smallest service that answers its health check, so that a thousand of them run on a small machine.
   cc -O2 -o serve serve.c; serve PORT */
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments) {
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (count < 2)
        return 2;
    address.sin_port = htons(atoi(arguments[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        return 1;
    for (;;) {
        char request[2048];
        int caller = accept(listener, NULL, NULL);
        if (caller >= 0 && read(caller, request, sizeof request) > 0 && write(caller, answer, sizeof answer - 1) > 0)
            shutdown(caller, SHUT_WR);
        close(caller);
    }
}
