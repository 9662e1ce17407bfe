//go:build !linux

package load

import (
	"syscall"
	"time"
)

// giveUpOn does nothing where the kernel has no such setting.
func giveUpOn(time.Duration) func(network, address string, conn syscall.RawConn) error { return nil }
