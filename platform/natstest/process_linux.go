package natstest

import "syscall"

// dieWithParent has the kernel end the server when the test binary ends without
// running its cleanups, as it does on its own time-out.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
