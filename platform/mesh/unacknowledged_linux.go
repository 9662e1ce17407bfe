package mesh

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// endUnacknowledged has the kernel end a connection whose peer takes nothing of
// what was sent to it. It only makes dead peers known sooner: where it is refused,
// the connection goes on without.
func (s DialSettings) endUnacknowledged(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(s.unacknowledged()/time.Millisecond))
	})
}
