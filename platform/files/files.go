// Package files replaces files whole, and lets one process at a time do what
// several must not do at once.
package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// lockInterval is how often a lock that somebody holds is tried again: the
// kernel's own waiting cannot be ended by a context.
const lockInterval = 50 * time.Millisecond

// Replace makes content the contents of the file at path, with these permissions
// whatever they were: whoever reads it meanwhile gets the old contents or the new.
// Of several processes that do it at once the last one wins; within a process that
// needs a lock. An error leaves the old file.
func Replace(path string, content []byte, mode fs.FileMode) error {
	temp := fmt.Sprintf("%s.%d.new", path, os.Getpid())
	// One that a killed process left would keep its permissions.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err := os.WriteFile(temp, content, mode)
	if err == nil {
		err = os.Chmod(temp, mode) // past the umask
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Lock takes the exclusive lock on a file, which it makes when there is none:
// closing the file gives it back, and the kernel does when all processes that
// have the file open are gone. waiting is called once when somebody else holds
// it, and may be nil. When ctx ends first, that is the error.
func Lock(ctx context.Context, path string, waiting func()) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for told := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !told && waiting != nil {
			waiting()
		}
		told = true
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for who holds the lock %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}
