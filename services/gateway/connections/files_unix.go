//go:build unix

package connections

import "syscall"

// Files is how many connections this process may have open, with some descriptors
// left for itself; false when that is not known.
func Files() (int, bool) {
	// The Go runtime has raised the limit to the hard one at the start.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 0, false
	}
	return max(int(limit.Cur)-ownFiles, int(limit.Cur)/2), true
}

// ownFiles are for connections to services, watches, logs.
const ownFiles = 512
