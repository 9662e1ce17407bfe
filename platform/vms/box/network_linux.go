package box

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Within runs f on a thread that is in the network of a file, such as a box's
// NetworkFile: sockets that f makes on that very thread belong there, wherever
// they are used. Dialling one address stays on the thread.
func Within(networkFile string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// A thread keeps the network that it entered: this one is not unlocked,
		// and ends with the goroutine.
		runtime.LockOSThread()
		file, err := os.Open(networkFile)
		if err != nil {
			done <- fmt.Errorf("enter a network: %w", err)
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network %s: %w", networkFile, err)
			return
		}
		done <- f()
	}()
	return <-done
}
