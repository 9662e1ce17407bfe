package load

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpOn makes connections fail whose peer has not acknowledged what was sent
// for so long.
func giveUpOn(after time.Duration) func(network, address string, conn syscall.RawConn) error {
	return func(_, _ string, conn syscall.RawConn) error {
		var set error
		err := conn.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
		})
		if err != nil {
			return err
		}
		return set
	}
}
